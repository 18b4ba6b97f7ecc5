"""Targets that are trained here, one file each; the name of the file is the name of the target.

Add one: a file with a class that fulfils ``stages.targets.definition.TargetDefinition``, and its steps and seed in
params/targets.yaml.
"""

from pathlib import Path

from stages.base.registry import Registry

__all__ = ["ZOO"]

ZOO = Registry(
    Path(__file__).parent,
    __name__,
    "target",
    lambda cls: all(hasattr(cls, part) for part in ("build", "data", "sample", "fit", "hooks", "components", "layout")),
)
