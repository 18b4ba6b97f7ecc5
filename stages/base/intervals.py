"""Bootstrap intervals. Examples are resampled, never rows: token positions of one example are not independent."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Interval", "over_items", "percentile_interval", "resamples", "t_interval"]

LEVEL = 0.95


def resamples(n: int, n_resamples: int, generator: torch.Generator) -> Tensor:
    """(n_resamples, n) float64: how often each of n examples was drawn, n draws with replacement."""
    draws = torch.randint(n, (n_resamples, n), generator=generator)
    return torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones(n_resamples, n, dtype=torch.float64)
    )


class Interval(NamedTuple):
    low: float
    high: float

    def holding(self, point: float) -> "Interval":
        """Widened to hold the point, which a skewed distribution can leave just outside."""
        return Interval(min(self.low, point), max(self.high, point))


def percentile_interval(draws: npt.ArrayLike) -> Interval:
    """The 95% percentile interval of resampled values (Efron and Tibshirani 1993, ch. 13); NaN where none is finite.

    The one step that all bootstraps here share. What is resampled, and together with what, is each one's own design.

    Args:
        draws: (n_resamples,) without the original sample; values that are not finite are left out.
    """
    values = np.asarray(draws, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(math.nan, math.nan)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def t_interval(values: Sequence[float]) -> Interval:
    """The 95% t interval of the mean of at least two independent values."""
    from scipy.stats import t as student  # half a second of import, wanted by few who read this module

    mean = statistics.fmean(values)
    half = float(student.ppf((1 + LEVEL) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean - half, mean + half)


def over_items(values: Tensor, n_resamples: int, generator: torch.Generator) -> tuple[float, float, float]:
    """Mean of the finite items with its bootstrap interval: for metrics whose population is the latents."""
    values = values.double()[torch.isfinite(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    weights = resamples(len(values), n_resamples, generator)
    return values.mean().item(), *percentile_interval(weights @ values / len(values))
