"""M: the zoo of target models. Trains each, checks that it learned, and freezes it.

Add a target: one file in zoo/ with a class that fulfils ``TargetDefinition``, plus one line in zoo/__init__.py.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
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

_HEAVY = {"ZOO": "zoo", "TargetDefinition": "zoo", "load_target": "storage", "save_target": "storage"}


def __getattr__(name: str) -> Any:
    # The zoo needs transformer_lens, which takes seconds to import: it is loaded by whoever builds or loads a model.
    if name in _HEAVY:
        return getattr(import_module(f"stages.targets.{_HEAVY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
