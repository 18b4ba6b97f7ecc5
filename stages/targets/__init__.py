"""M: the target models. Trains each, checks that it learned, and freezes it.

Add a target: one file in zoo/ with a class that fulfils ``definition.TargetDefinition``, and its entry in
params/targets.yaml. The names below are what files of methods imported before there was ``lensmith``.
"""

from stages.contracts.target import Component, Corpus, Intervention, Objective, TargetAccess, TargetSpec

__all__ = ["Component", "Corpus", "Intervention", "Objective", "TargetAccess", "TargetSpec"]
