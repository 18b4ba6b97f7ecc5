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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.contracts.target import Component, TargetAccess

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
]


@dataclass(frozen=True)
class Represent:
    """Answer (n, k): k features of each input."""

    inputs: Tensor
    """(n, *input_shape)."""
    labels: Tensor | None = None
    """(n,) the output asked about, where the question is about one."""


@dataclass(frozen=True)
class Attribute:
    """Answer (n, S) or (n, S, k): contribution of each segment to the output ``labels``."""

    inputs: Tensor
    """(n, *input_shape)."""
    segments: tuple[tuple[int, ...], ...]
    """S groups of indices along axis 1 of the inputs."""
    labels: Tensor | None = None
    """(n,) the output whose score is attributed; None: the target's own answer."""


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
    """Answer (n, k): predicted change of the outputs when each direction is added at the hook point."""

    hook_point: str
    directions: Tensor
    """(n, width)."""
    inputs: Tensor
    """(m, *input_shape)."""


@dataclass(frozen=True)
class Propose:
    """Answer (n, *input_shape): candidate inputs that reach a declared objective."""

    labels: Tensor
    """(n,) outputs to make likely."""
    inputs: Tensor
    """(m, *input_shape): ordinary inputs to start from."""


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
