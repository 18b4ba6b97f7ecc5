"""The reward of one task: R_t = gain + lambda * FLOP reduction.

    gain           score(assisted) - score(baseline), in [-1, 1]
    FLOP reduction f(assisted FLOPs, baseline FLOPs), in [-1, 1]; its positive part counts only where
                   score(assisted) >= score(baseline) - margin, so trivial answers at no cost earn nothing

Forms of f, with s = (baseline - assisted) / budget, the share of the compute budget that was saved:
    linear      s
    log         log2(baseline / assisted) / log2(LOG_SPAN)
    polynomial  sign(s) s^2
All are clipped to [-1, 1] and defined for zero FLOPs on either side. The denominator is the budget, which no arm can
move, so that one extra forward pass within a wide budget is a small cost and not a doubling.

R_t is the mean over the budgets a task is posed at.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from stages.base.params import Params

__all__ = ["FORMS", "Form", "Pay", "flop_reduction", "reward"]

FloatArray = npt.NDArray[np.float64]
Form = Literal["linear", "log", "polynomial"]
FORMS: tuple[Form, ...] = ("linear", "log", "polynomial")
LOG_SPAN = 64.0
"""A 64-fold saving is a reduction of 1 in the log form."""


class Pay(Params):
    """What an arm is paid; of params/reward.yaml."""

    flop_weight: float = Field(default=0.1, ge=0, le=10)
    """lambda: what a complete saving of compute is worth, in units of score."""
    form: Form = "linear"
    margin: float = Field(default=0.02, ge=0, le=1)
    """Savings count only where assisted >= baseline - margin."""


def flop_reduction(assisted: float, baseline: float, budget: float, form: Form = "linear") -> float:
    """f of one pair of costs, in [-1, 1].

    Args:
        assisted: FLOPs of the assisted arm.
        baseline: FLOPs of the baseline arm.
        budget: FLOPs that savings are measured against; > 0.
        form: linear, log or polynomial.

    Raises:
        ValueError: a negative cost, a budget that is not positive, or an unknown form.
    """
    if assisted < 0 or baseline < 0:
        raise ValueError(f"FLOPs are {assisted} and {baseline}: a cost is never negative")
    if not budget > 0:
        raise ValueError(f"the budget is {budget} FLOPs: it must be positive")
    saved = (baseline - assisted) / budget
    match form:
        case "linear":
            value = saved
        case "log":
            value = float(np.sign(saved))
            if assisted > 0 and baseline > 0:
                value = (np.log2(baseline) - np.log2(assisted)) / np.log2(LOG_SPAN)
        case "polynomial":
            value = np.sign(saved) * min(abs(saved), 1.0) ** 2
        case _:
            raise ValueError(f"form {form!r} is unknown: use {', '.join(FORMS)}")
    return float(np.clip(value, -1.0, 1.0))


def reward(gain: FloatArray, reduction: FloatArray, weight: float, margin: float) -> FloatArray:
    """R_t, elementwise.

    Args:
        gain: score(assisted) - score(baseline).
        reduction: ``flop_reduction``.
        weight: lambda.
        margin: how much worse assisted may be and still be paid for its savings.
    """
    saved = np.where((gain >= -margin) | (reduction < 0), reduction, 0.0)
    return np.asarray(gain + weight * saved)
