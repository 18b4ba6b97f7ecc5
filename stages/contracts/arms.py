"""What an executor did on one task: the ladder it climbs, a method's answer, and the three arms.

Shape legend: N = instances, E = evaluation instances, I = items, K = features.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from stages.contracts.outcomes import Outcome

__all__ = ["Answered", "ArmResult", "Baseline", "Fit", "Kind", "LadderStep", "MethodArms"]

FloatArray = npt.NDArray[np.float64]
Kind = Literal["ridge", "kernel", "mean"]


@dataclass(frozen=True)
class LadderStep:
    """One step of the black-box ladder on all instances of a task."""

    effort: int
    features: FloatArray
    """(N, I, K)."""
    flops: float
    """Per instance."""
    look: float = 0.0
    """FLOPs per instance of one look at what the question shows, and two gradients of it: the same at every step."""


@dataclass(frozen=True)
class Fit:
    """What cross-validation found for one set of features."""

    kind: Kind
    score: float
    """Of the out-of-fold predictions."""


@dataclass(frozen=True)
class Answered:
    """What came of one query to a method."""

    status: Outcome
    rows: FloatArray | None
    """(N, I, K); None unless ok."""
    target_flops: float
    """Per instance: spent by the target."""
    own_flops: float
    """Per instance: spent by the method's own operations."""
    reason: str = ""
    layer: str = ""
    """Which limit or check stopped it; empty where none did."""
    unseen_flops: float = 0.0
    """Per instance: what could have been computed without being seen. 0 for an answer that was recorded and priced;
    above for one of an ``adaptive`` method, which is metered by CPU time."""

    @property
    def flops(self) -> float:
        return self.target_flops + self.own_flops


@dataclass(frozen=True)
class ArmResult:
    """What one arm did on one task, seed and budget."""

    seed: int
    budget: str
    predictions: FloatArray
    """(E, I)."""
    index: npt.NDArray[np.int64]
    """(E,) which instances were evaluated."""
    flops: float
    """Charged per evaluated instance."""
    budget_flops: float
    """What the budget amounts to per instance; for ``ample`` the cost of the whole ladder's top."""
    effort: int
    """Ladder step used; -1: none, the method's answer or the constant alone."""
    used_answer: bool
    calibrator: str
    cv_score: float
    explored_flops: float
    """Per instance, spent on choosing among the options; the same rule in all arms, reported and not charged."""


@dataclass(frozen=True)
class Baseline:
    """The baseline arm of one task."""

    first: list[ArmResult]
    """One per seed and budget."""
    second: list[ArmResult]
    """The same arm, handed an answer for nothing that says nothing: the difference is noise."""
    rungs: list[list[LadderStep]]
    """[seed][effort]: features of ``first``, reused by every assisted arm."""
    fits: list[list[Fit]]
    """[seed][effort]."""


@dataclass(frozen=True)
class MethodArms:
    """Assisted and placebo arms of one method on one task."""

    status: Outcome
    """ok, declined or failed: the other outcomes have no arms."""
    reason: str
    target_flops: float
    own_flops: float
    unseen_flops: float
    """See ``Answered``."""
    assisted: list[ArmResult]
    """One per seed and budget, in the order of the baseline's."""
    placebo: list[ArmResult]
