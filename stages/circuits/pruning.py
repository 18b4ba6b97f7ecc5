"""Cutting edges one after the other: ACDC, and elimination down to a circuit that nothing can be taken from.

ACDC: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability", algorithm 1.

Both try a run of cuts as one batch of masks and keep those up to the first that must not be made, which gives what one
cut at a time would. Forwards count every mask tried.

Shape legend: E = edges, W = window.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor

from stages.circuits.found import Found, billed
from stages.circuits.masked import MaskedForward
from stages.circuits.objectives import Objective
from stages.errors import UserError

__all__ = ["acdc", "acdc_scores", "eliminate", "losses"]

WINDOW = 8
"""Cuts tried at once."""


def losses(engine: MaskedForward, objective: Objective, masks: Tensor) -> Tensor:
    """(S,) mean loss over the data under (S, E) masks."""
    return objective(engine.evaluate(masks), engine.clean_outputs).mean(-1)


def cut(
    engine: MaskedForward,
    objective: Objective,
    mask: Tensor,
    order: Sequence[int],
    allowed: Callable[[float, float], bool],
    window: int = WINDOW,
) -> Tensor:
    """Cut edges of ``mask`` in this order wherever ``allowed(loss before, loss after)``; returns the mask that is
    left."""
    mask = mask.clone()
    ahead = [place for place in order if mask[place] > 0.5]
    now = float(losses(engine, objective, mask))
    while ahead:
        batch = ahead[:window]
        masks = mask.repeat(len(batch), 1)
        for step, place in enumerate(batch):
            masks[step:, place] = 0.0
        after = losses(engine, objective, masks).tolist()
        for step, value in enumerate(after):
            if allowed(now, value):
                mask[batch[step]], now = 0.0, value
                ahead = ahead[1:]
            else:
                ahead = ahead[1:]  # this one stays; what was tried after it was tried without it
                break
    return mask


def acdc(engine: MaskedForward, objective: Objective, threshold: float, *, window: int = WINDOW) -> Found:
    """ACDC at one threshold: readers from the output backwards, an edge stays cut if the loss rises by less.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        threshold: in units of the loss, > 0.
        window: cuts tried at once; changes nothing but the time.

    Raises:
        UserError: the threshold is not a positive number.
    """
    if not (isfinite(threshold) and threshold > 0):
        raise UserError(f"ACDC's threshold is {threshold}: give a positive number, in units of the loss")
    with billed(engine) as bill:
        order = list(range(engine.n_edges))[::-1]
        mask = cut(engine, objective, engine.ones(), order, lambda before, after: after - before < threshold, window)
    return Found(mask.clone(), mask, bill)


def acdc_scores(engine: MaskedForward, objective: Objective, thresholds: Sequence[float]) -> Found:
    """ACDC as a ranking: an edge's score is the number of thresholds at which it is kept."""
    with billed(engine) as bill:
        kept = torch.stack([acdc(engine, objective, threshold).scores for threshold in thresholds])
    return Found(kept.sum(0), None, bill)


def eliminate(
    engine: MaskedForward,
    objective: Objective,
    mask: Tensor,
    order: Sequence[int],
    tolerance: float,
    window: int = WINDOW,
) -> Tensor:
    """Cut edges in this order wherever the loss stays at or below ``tolerance``, until a round cuts nothing.

    The result is irreducible: no single edge of it can be cut.
    """
    while True:
        left = cut(engine, objective, mask, order, lambda _, after: after <= tolerance, window)
        if bool((left == mask).all()):
            return left
        mask = left
