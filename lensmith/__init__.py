"""The public face of Lensmith: what a file or notebook of your own imports.

    from lensmith import Interpretation, Method, Represent    # write a method
    lensmith.score("my_method.py")                            # or a Method class: what is it worth?

Nothing heavy is imported until it is used. Everything else in this repository may move; these names stay.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lensmith.scores import Score, score
    from stages.contracts.method import (
        Answer,
        Attribute,
        Budget,
        Compare,
        Interpretation,
        Localise,
        Method,
        Propose,
        Query,
        Represent,
        Steer,
        by_group,
        segment_sums,
    )
    from stages.contracts.reading import Unembed, at_readout
    from stages.contracts.target import (
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
        keep_segments,
    )
    from stages.contracts.task import Instances, TaskFamily, Truth, skill
    from stages.dictionaries.architectures.codec import decode, encode
    from stages.targets.storage import load_target

_HOMES = {
    "lensmith.scores": "Score score",
    "stages.contracts.method": "Answer Attribute Budget Compare Interpretation Localise Method Propose Query Represent"
    " Steer by_group segment_sums",
    "stages.contracts.reading": "Unembed at_readout",
    "stages.contracts.target": "Component Corpus Forward Gradients HookSpec Intervention Objective Target TargetAccess"
    " TargetSpec keep_segments",
    "stages.contracts.task": "Instances TaskFamily Truth skill",
    "stages.dictionaries.architectures.codec": "decode encode",
    "stages.targets.storage": "load_target",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Answer",
    "Attribute",
    "Budget",
    "Compare",
    "Component",
    "Corpus",
    "Forward",
    "Gradients",
    "HookSpec",
    "Instances",
    "Interpretation",
    "Intervention",
    "Localise",
    "Method",
    "Objective",
    "Propose",
    "Query",
    "Represent",
    "Score",
    "Steer",
    "Target",
    "TargetAccess",
    "TargetSpec",
    "TaskFamily",
    "Truth",
    "Unembed",
    "at_readout",
    "by_group",
    "decode",
    "encode",
    "keep_segments",
    "load_target",
    "score",
    "segment_sums",
    "skill",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lensmith' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
