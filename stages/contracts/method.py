"""The contract of an interpretability method: one Python file is enough.

    class MyMethod(Method):
        def interpret(self, target, budget): ...           # once per target, free, frozen afterwards
        def answer(self, query, interpretation, target): ...   # metered, for every query

Queries are general and never name a task. A method answers those it can and declines the rest by returning None;
the executor then falls back to black-box work. The executor fits a small model on what is answered, so an answer is
a set of *features*: scale and sign do not matter, information does.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.contracts.target import Component, ObjectiveKind, TargetAccess

__all__ = [
    "Answer",
    "Attribute",
    "Budget",
    "Compare",
    "Interpretation",
    "Localise",
    "Method",
    "Propose",
    "Query",
    "Represent",
    "Steer",
    "by_group",
    "segment_sums",
]


@dataclass(frozen=True)
class Represent:
    """Answer (n, k): k features of each input."""

    inputs: Tensor
    """(n, *input_shape)."""
    labels: Tensor | None = None
    """(n,) the output asked about, where the question is about one."""
    groups: bool = False
    """Whether a row is a set of m inputs: then inputs are (n, m, *input_shape), labels (n, m), and the answer still has
    n rows. ``by_group`` makes an answer about single inputs one about sets."""


@dataclass(frozen=True)
class Attribute:
    """Answer (n, S) or (n, S, k): contribution of each segment to the output ``labels``."""

    inputs: Tensor
    """(n, *input_shape)."""
    segments: tuple[tuple[int, ...], ...]
    """S groups of indices along axis 1 of the inputs."""
    labels: Tensor | None = None
    """(n,) the output whose score is attributed; None: the target's own answer."""
    replacements: Tensor | None = None
    """(n, S, length, ...): what stands in each segment instead, in the question; None: the segment is hidden. The same
    segment may be asked about several times, with other replacements. All segments then have one length."""


@dataclass(frozen=True)
class Localise:
    """Answer (n, P) or (n, P, k): how much each component matters for each of n behaviours."""

    inputs: Tensor
    """(n, m, *input_shape): m inputs that show the behaviour."""
    labels: Tensor
    """(n, m): the right outputs."""
    components: tuple[Component, ...]
    """The P components asked about."""


@dataclass(frozen=True)
class Compare:
    """Answer (n, k): how each variant of the target differs from the original."""

    variants: tuple[int, ...]
    """n indices for ``target.variant(index)``."""
    inputs: Tensor
    """(m, *input_shape): ordinary inputs to compare on; a method may use its own as well."""
    labels: Tensor
    """(m,) the right outputs."""


@dataclass(frozen=True)
class Steer:
    """Answer (n, k): what each direction does to the outputs when it is added at the place."""

    hook_point: str
    """Where: a hook point, or "input", the input itself."""
    directions: Tensor
    """(n, width); (n, *input_shape) at the input."""
    inputs: Tensor
    """(m, *input_shape): ordinary inputs it is added on."""
    labels: Tensor | None = None
    """(n,) the output asked about, where the question is about one."""


@dataclass(frozen=True)
class Propose:
    """Answer (n, *input_shape), or (n, p, *input_shape) with p proposals: inputs that reach much of an objective.

    The agent runs the proposals, which is charged, and what they reach is what it learns from.
    """

    labels: Tensor
    """(n,) the outputs that the objective is about."""
    inputs: Tensor
    """(n, *input_shape): what each proposal starts from."""
    changes: Tensor
    """(P, *input_shape), or (n, P, *input_shape): the closed pool. One of them is added to the input; asked is how much
    the best of them reaches."""
    objective: ObjectiveKind = "margin"
    """What is to be large; see ``Objective``."""
    variants: tuple[int, ...] = ()
    """The modified copy of the target that each row is about; empty: the target itself."""


Query = Represent | Attribute | Localise | Compare | Steer | Propose
Answer = Tensor | None
"""Features, first axis one row per thing asked about; None declines."""


def _as_tensor(value: Any) -> Any:
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype != np.longdouble
    return torch.from_numpy(np.ascontiguousarray(value)) if numbers else value


@dataclass(frozen=True)
class Interpretation:
    """I(M): data only. Saved as safetensors + JSON; nothing executable is ever loaded."""

    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only."""

    def __post_init__(self) -> None:
        # What numpy made is taken as well, as it is in an answer.
        if any(isinstance(value, np.ndarray) for value in self.arrays.values()):
            taken = {name: _as_tensor(value) for name, value in self.arrays.items()}
            object.__setattr__(self, "arrays", taken)
        # A file gives its arrays back in any order, another one in each process: who goes over them meets this one.
        object.__setattr__(self, "arrays", dict(sorted(self.arrays.items(), key=lambda item: str(item[0]))))


@dataclass(frozen=True)
class Budget:
    """Limits of the free phase."""

    max_seconds: float
    """Wall-clock limit of ``interpret``; the process is stopped at it."""
    max_bytes: int
    """Size cap of I(M) on disk."""
    seed: int
    started: float = field(default_factory=time.monotonic)

    def generator(self) -> torch.Generator:
        """The random generator a method should use: same seed, same I(M)."""
        return torch.Generator().manual_seed(self.seed)

    def seconds_left(self) -> float:
        return self.max_seconds - (time.monotonic() - self.started)


class Method(ABC):
    """An interpretability method. It must be constructible without arguments; state belongs into I(M)."""

    name: str = ""
    """Shown in every table; empty: the class name in snake case."""
    adaptive: bool = False
    """Whether ``answer`` needs the values of tensors in Python. An answer that does not is recorded once on shapes and
    priced exactly. One that does runs in the sandbox and is charged by CPU time: its rows say so, and it is called
    better only where what such a meter could miss is below 1% of the tight budget."""

    @abstractmethod
    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        """I(M): computed once per target, cached, not charged. ``weights()``, ``corpus()`` and ``dictionaries()`` of
        the target are open only here."""

    @abstractmethod
    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        """Features for the query, or None to decline. Everything it asks of the target and computes is charged.

        Unless the method is ``adaptive`` it is called with tensors that have shapes and no values, and what it does
        with them is written down: so Python cannot look at values (no ``item``, ``if tensor``, numpy), and loops over
        items belong onto a batch axis. ``interpretation.data`` is there as it was stored."""


def segment_sums(values: Tensor, segments: Sequence[Sequence[int]]) -> Tensor:
    """(n, L, ...) per-position values -> (n, S) sums over each segment's positions and all further axes."""
    flat = values.flatten(2).sum(-1) if values.dim() > 2 else values
    if len({len(segment) for segment in segments}) == 1:  # all at once: a loop makes a recorded answer long
        return flat[:, torch.tensor([list(segment) for segment in segments])].sum(-1)
    return torch.stack([flat[:, list(segment)].sum(-1) for segment in segments], dim=1)


def by_group(query: Represent, answer: Callable[[Represent], Tensor]) -> Tensor:
    """An answer about single inputs, or about sets of them where the query asks about sets: the mean and the largest
    of each feature over the set.

    Args:
        query: about inputs or sets.
        answer: (B, k) features of the inputs of a query that is about single ones.

    Returns:
        (n, k), or (n, 2k) of sets.
    """
    if not query.groups:
        return answer(query)
    n, m = query.inputs.shape[:2]
    labels = None if query.labels is None else query.labels.flatten()
    each = answer(replace(query, inputs=query.inputs.flatten(0, 1), labels=labels, groups=False)).reshape(n, m, -1)
    return torch.cat([each.mean(1), each.amax(1)], dim=-1)
