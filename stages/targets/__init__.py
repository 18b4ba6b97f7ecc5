"""M: the zoo of target models. Trains each, checks that it learned, and freezes it.

Add a target: one file in zoo/ with a class that fulfils ``TargetDefinition``, plus one line in zoo/__init__.py.
"""

from stages.targets.contract import (
    Component,
    Corpus,
    Forward,
    Gradients,
    HookSpec,
    Intervention,
    Objective,
    Target,
    TargetAccess,
    TargetSpec,
    digest_of,
    keep_segments,
    objective_values,
)
from stages.targets.storage import load_target, save_target
from stages.targets.zoo import ZOO, TargetDefinition

__all__ = [
    "ZOO",
    "Component",
    "Corpus",
    "Forward",
    "Gradients",
    "HookSpec",
    "Intervention",
    "Objective",
    "Target",
    "TargetAccess",
    "TargetDefinition",
    "TargetSpec",
    "digest_of",
    "keep_segments",
    "load_target",
    "objective_values",
    "save_target",
]
