"""What was changed in a variant: its weights less the target's, weight by weight.

Free phase: the target's weights. A query about variants reads theirs, which costs one FLOP for every number, and asks
the target nothing. Model diffing by weights is as old as fine-tuning; that fine-tuning changes few directions, see
Aghajanyan et al. 2020 (Intrinsic dimensionality), 2012.13255; that a trigger shows in single units, Liu et al. 2018
(Fine-pruning), 1805.12185.

Shape legend: V = variants, I, O = the two axes of a weight.
"""

import torch
from torch import Tensor

from stages.contracts.method import (
    Answer,
    Budget,
    Compare,
    Interpretation,
    Method,
    Query,
)
from stages.contracts.target import TargetAccess

__all__ = ["WeightDifference"]

TOP = 3
"""Largest rows, and columns, of a change that are told one by one."""


class WeightDifference(Method):
    name = "weight_difference"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        kept, left = {}, budget.max_bytes
        weights = {name: value for name, value in target.weights().items() if value.is_floating_point()}
        for name in reversed(list(weights)):  # the last are the nearest to the answer: they are kept where not all fit
            size = weights[name].numel() * 4
            if size <= 0.9 * left:
                kept[name] = weights[name].to(torch.float32)
                left -= size
        return Interpretation(kept)

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        if not isinstance(query, Compare):
            return None
        changed = target.variants(query.variants).weights()
        columns = []
        for name, value in changed.items():
            if name in interpretation.arrays:
                columns += _looks(value - interpretation.arrays[name])
        return torch.stack(columns, dim=-1) if columns else None


def _looks(change: Tensor) -> list[Tensor]:
    """(V, ...) change of one weight -> its looks, each (V,): size, mean, extremes, and how few rows or columns hold
    it."""
    flat = change.flatten(1)
    whole = (flat * flat).sum(-1)
    looks = [whole.sqrt(), flat.mean(-1), flat.amax(-1), flat.amin(-1)]
    if change.dim() < 3:
        return looks
    square = change * change
    matrix = square.flatten(2) if change.dim() > 3 else square
    for axis in (1, 2):
        shares = matrix.sum(axis) / (whole.unsqueeze(-1) + 1e-12)
        top = shares.sort(dim=-1, descending=True).values
        looks += [top[:, place] for place in range(min(TOP, top.shape[1]))] + [(shares * shares).sum(-1)]
    return looks
