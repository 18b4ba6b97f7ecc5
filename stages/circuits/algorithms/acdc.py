"""Cutting edges one after the other: ACDC, and elimination down to a circuit that no single edge can be taken
from.

ACDC: Conmy et al. 2023, "Towards Automated Circuit Discovery for Mechanistic Interpretability", algorithm 1.

Both try a run of cuts as one batch of masks and keep those up to the first that must not be made, which gives what one
cut at a time would. An edge into a component that no one reads any more is cut without a forward. Forwards count every
mask tried.

Shape legend: E = edges, W = window.
"""

from collections.abc import Callable, Sequence
from math import isfinite

import torch
from torch import Tensor

from stages.base.progress import report
from stages.circuits.algorithms.found import Found, billed
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective
from stages.errors import UserError

__all__ = ["acdc", "acdc_scores", "eliminate", "losses"]

WINDOW = 5
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
    start, end = (ends.tolist() for ends in engine.layout.ends())
    readers, place_of = engine.layout.readers, {name: i for i, name in enumerate(engine.layout.sources)}
    writers = [[place_of[name] for name in engine.layout.writers[reader]] for reader in readers]
    leaving = torch.zeros(len(place_of)).index_add(0, torch.tensor(start), mask).tolist()

    def take(place: int) -> None:
        mask[place] = 0.0
        leaving[start[place]] -= 1.0

    def unread(place: int) -> bool:
        """What the edge feeds is read by no one any more, so that the edge changes nothing and needs no forward."""
        fed = writers[end[place]]
        return bool(fed) and not any(leaving[source] for source in fed)

    ahead = [place for place in order if mask[place] > 0.5]
    n_ahead = len(ahead)
    now = float(losses(engine, objective, mask))
    while ahead:
        batch: list[int] = []
        later = []
        for place in ahead:
            if unread(place) and allowed(now, now):
                take(place)
            elif len(batch) < window:
                batch.append(place)
            else:
                later.append(place)
        report("cutting edges", n_ahead - len(batch) - len(later), n_ahead)
        if not batch:
            break
        masks = mask.repeat(len(batch), 1)
        for step, place in enumerate(batch):
            masks[step:, place] = 0.0
        kept = None
        for step, value in enumerate(losses(engine, objective, masks).tolist()):
            if not allowed(now, value):
                kept = step  # this one stays; what was tried after it was tried without it
                break
            take(batch[step])
            now = value
        ahead = later if kept is None else batch[kept + 1 :] + later
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

    No single edge of the result can be cut. Several at once may: see ``joint``.
    """
    while True:
        left = cut(engine, objective, mask, order, lambda _, after: after <= tolerance, window)
        if bool((left == mask).all()):
            return left
        mask = left
