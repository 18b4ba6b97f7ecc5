"""Where targets come from, one file each: those that are trained here, and three ways of reading a model.

Add one that is trained: a file with a class that fulfils ``stages.targets.definition.TargetDefinition``, and an entry
in params/targets.yaml with the file's name as its source. A class that has a ``Config`` reads a model: see
``stages.targets.read_target``.
"""

from pathlib import Path

from stages.base.registry import Registry

__all__ = ["ZOO", "trained"]

ZOO = Registry(
    Path(__file__).parent,
    __name__,
    "target",
    lambda cls: all(hasattr(cls, part) for part in ("build", "data", "sample", "fit", "hooks", "components", "layout")),
)


def trained() -> tuple[str, ...]:
    """Names of the files that train a target."""
    return tuple(name for name in ZOO.names() if not hasattr(ZOO.find(name), "Config"))
