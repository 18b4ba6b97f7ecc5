"""Bootstrap intervals. Examples are resampled, never rows: token positions of one example are not independent."""

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["estimate", "over_items", "percentiles", "resamples"]

DIGITS = 6
"""Decimals kept in files: below the noise of every metric, above the noise of summation order."""


def resamples(n: int, n_resamples: int, generator: torch.Generator) -> Tensor:
    """(n_resamples, n) float64: how often each of n examples was drawn, n draws with replacement."""
    draws = torch.randint(n, (n_resamples, n), generator=generator)
    return torch.zeros(n_resamples, n, dtype=torch.float64).scatter_add_(
        1, draws, torch.ones(n_resamples, n, dtype=torch.float64)
    )


def percentiles(values: Tensor) -> tuple[float, float]:
    """95% percentile interval of the resampled values; NaN where a value is not finite in all resamples."""
    values = values.double()[torch.isfinite(values)]
    if not len(values):
        return math.nan, math.nan
    return torch.quantile(values, 0.025).item(), torch.quantile(values, 0.975).item()


def over_items(values: Tensor, n_resamples: int, generator: torch.Generator) -> tuple[float, float, float]:
    """Mean of the finite items with its bootstrap interval: for metrics whose population is the latents."""
    values = values.double()[torch.isfinite(values)]
    if not len(values):
        return math.nan, math.nan, math.nan
    weights = resamples(len(values), n_resamples, generator)
    return values.mean().item(), *percentiles(weights @ values / len(values))


def estimate(value: float, low: float = math.nan, high: float = math.nan, null: float = math.nan) -> dict[str, Any]:
    """The JSON form of a measured number; NaN becomes null."""

    def clean(number: float) -> float | None:
        return round(number, DIGITS) + 0.0 if math.isfinite(number) else None

    return {"value": clean(value), "low": clean(low), "high": clean(high), "null": clean(null)}
