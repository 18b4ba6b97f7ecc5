"""Rows of words that are left out of dictionaries because they are not like the others.

A transformer may hold an activation of a hundred times the usual size at some words and attend to them where there is
nothing to attend to: an attention sink. The first word of an input is one, and has no row at all. So is the second, if
it is the same word: of 37,200 rows of SmolLM2-135M after block 20, 29 are 53 to 118 times as large as the median row,
and no other is more than 3.4 times. Those 29 hold .95 of the variance.

Such rows decide mean, scale and explained variance of a dictionary. Planted in an eighth of the rows of ``facts_lm`` at
a hundred times their size, they took the explained variance of the others from .89 to .20 (topk) and below 0
(standard), while that of all rows together read .999.

Shape legend: R = rows, D = width.
"""

import math

import torch
from torch import Tensor

from stages.activations.cache import ActivationCache, Rows
from stages.contracts.target import Target

__all__ = ["SINK", "largest_size", "training_rows", "without_sinks"]

SINK = 30.0
"""Rows more than this many times as large as the median row are sinks."""


def largest_size(target: Target, acts: Tensor) -> float:
    """Norm above which a row is a sink; infinite where inputs are no words.

    Args:
        acts: (R, D) training rows.
    """
    if target.spec.n_vocabulary is None or not len(acts):
        return math.inf
    return SINK * float(acts.norm(dim=1).median())


def without_sinks(rows: Rows, largest: float) -> Rows:
    """The rows that are no larger than ``largest``; the same ones where none is."""
    kept = rows.acts.norm(dim=1) <= largest if math.isfinite(largest) else torch.ones(len(rows.acts), dtype=torch.bool)
    return rows if bool(kept.all()) else Rows(*(column[kept] for column in rows))


def training_rows(target: Target, cache: ActivationCache) -> Tensor:
    """(R, D) what dictionaries of a target are trained on: the rows of its training cache but sinks."""
    rows = cache.read()
    return without_sinks(rows, largest_size(target, rows.acts)).acts
