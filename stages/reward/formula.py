"""The reward of one task: R_t = gain + lambda * FLOP reduction.

    gain           score(assisted) - score(baseline), in [-1, 1]
    FLOP reduction f(assisted FLOPs / baseline FLOPs), in [-1, 1]; its positive part counts only where
                   score(assisted) >= score(baseline) - margin, so trivial answers at no cost earn nothing

Forms of f, with r = assisted / baseline:
    linear      1 - r
    log         log2(1 / r) / log2(LOG_SPAN)
    polynomial  sign(1 - r) |1 - r|^2
All are clipped to [-1, 1] and defined for zero FLOPs on either side.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["FORMS", "Form", "flop_reduction", "reward"]

FloatArray = npt.NDArray[np.float64]
Form = Literal["linear", "log", "polynomial"]
FORMS: tuple[Form, ...] = ("linear", "log", "polynomial")
LOG_SPAN = 64.0
"""A 64-fold saving is a reduction of 1 in the log form."""


def flop_reduction(assisted: float, baseline: float, form: Form = "linear") -> float:
    """f of one pair of costs, in [-1, 1].

    Raises:
        ValueError: a negative cost or an unknown form.
    """
    if assisted < 0 or baseline < 0:
        raise ValueError(f"FLOPs are {assisted} and {baseline}: a cost is never negative")
    if baseline == 0:
        return 0.0 if assisted == 0 else -1.0
    ratio = assisted / baseline
    match form:
        case "linear":
            value = 1 - ratio
        case "log":
            value = 1.0 if ratio == 0 else -np.log2(ratio) / np.log2(LOG_SPAN)
        case "polynomial":
            value = np.sign(1 - ratio) * (1 - ratio) ** 2
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
