"""Cutting several edges at once: sets that cancel, which no cut of a single edge can take away.

Two units of weights +w and -w into one reader: cutting either ruins the outputs, cutting both changes nothing. Which
edges go together is read from the gradient of a relaxed mask: with D (outputs x edges) the change of the outputs per
edge, as its mask starts to fall from 1 and when it is cut, a set S can go to first order if the sum of its columns is
near zero. For every edge e the smallest |D z|^2 with z_e = 1 and 0 <= z <= 1 says what must go with it; sets so found
are then tried with forwards, and only those forwards decide. Last, all pairs are tried, which makes the result
irreducible up to pairs, or says that there were too many to try.

Larger sets that cancel only through a nonlinearity may be missed: nothing is claimed about them.

Shape legend: E = edges of the graph, K = edges of the circuit, S = masks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, islice

import torch
from torch import Tensor

from stages.base.progress import report
from stages.circuits.algorithms.acdc import WINDOW, cut, losses
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective

__all__ = ["MOST_PAIRS", "Irreducible", "irreducible", "joint_cuts"]

MOST_PAIRS = 10_000
"""Pairs tried at most: those of 141 edges."""
MOST_GROUPED = 400
"""Edges up to which sets are looked for."""
SLIGHT = 1 / 16
"""How far one edge's mask falls for the gradient."""
QP_STEPS = 300
"""Of the descent that finds what goes together; on a K x K matrix, without forwards."""
Allowed = Callable[[float, float], bool]
"""(loss before, loss after) of a cut that may be made."""


@dataclass(frozen=True)
class Irreducible:
    """What was tried on a circuit, and what it showed."""

    up_to: str
    """"pairs" or "single edges": no such set can be cut; "nothing": one can."""
    set: tuple[int, ...] = ()
    """The set that can be cut."""
    pairs: int = 0
    """Pairs tried; 0 where there are too many."""


def joint_cuts(
    engine: MaskedForward, objective: Objective, mask: Tensor, order: Sequence[int], allowed: Allowed
) -> Tensor:
    """Cut sets of edges, and single edges after that, until no set that was found and no pair can be cut.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        mask: (E,) a circuit from which no single edge can be cut.
        order: edges in the order of cutting, those to lose first in front.
        allowed: what a cut may do to the loss.
    """
    while True:
        now = float(losses(engine, objective, mask))
        kept = [place for place in order if mask[place] > 0.5]
        going = _first(engine, objective, mask, _together(engine, mask, kept), now, allowed)
        if going is None and len(kept) * (len(kept) - 1) // 2 <= MOST_PAIRS:
            going = _first(engine, objective, mask, combinations(kept, 2), now, allowed)
        if going is None:
            return mask
        mask = mask.clone()
        mask[list(going)] = 0.0
        while True:
            left = cut(engine, objective, mask, order, allowed, WINDOW)
            if bool((left == mask).all()):
                break
            mask = left


def irreducible(engine: MaskedForward, objective: Objective, mask: Tensor, allowed: float) -> Irreducible:
    """Try every single edge and every pair of a circuit: can any be cut with the loss at most ``allowed``?"""
    kept = (mask > 0.5).nonzero().flatten().tolist()
    fine: Allowed = lambda _, after: after <= allowed  # noqa: E731
    single = _first(engine, objective, mask, ((place,) for place in kept), 0.0, fine)
    if single is not None:
        return Irreducible("nothing", single)
    n_pairs = len(kept) * (len(kept) - 1) // 2
    if n_pairs > MOST_PAIRS:
        return Irreducible("single edges")
    pair = _first(engine, objective, mask, combinations(kept, 2), 0.0, fine)
    return Irreducible("pairs", (), n_pairs) if pair is None else Irreducible("nothing", pair, n_pairs)


def _first(
    engine: MaskedForward,
    objective: Objective,
    mask: Tensor,
    sets: Iterator[tuple[int, ...]] | Sequence[tuple[int, ...]],
    now: float,
    allowed: Allowed,
) -> tuple[int, ...] | None:
    """The first of the sets that may be cut."""
    ahead = iter(sets)
    tried, at_once = 0, max(1, 4096 // engine.batch)
    while some := list(islice(ahead, at_once)):
        report("trying sets of edges", tried, tried + len(some))
        tried += len(some)
        masks = mask.repeat(len(some), 1)
        for row, places in enumerate(some):
            masks[row, list(places)] = 0.0
        for places, value in zip(some, losses(engine, objective, masks).tolist(), strict=True):
            if allowed(now, value):
                return places
    return None


def _together(engine: MaskedForward, mask: Tensor, kept: Sequence[int]) -> list[tuple[int, ...]]:
    """Sets of at least two edges that the gradient says go together, the largest first."""
    if not 2 <= len(kept) <= MOST_GROUPED:
        return []
    found: dict[tuple[int, ...], None] = {}
    for depth in (SLIGHT, 1.0):
        gram = _gram(engine, mask, kept, depth)
        if not bool(torch.isfinite(gram).all()):
            continue
        for row in _companions(gram):
            places = tuple(kept[i] for i in row.nonzero().flatten().tolist())
            if 2 <= len(places) < len(kept):
                found[places] = None
    return sorted(found, key=len, reverse=True)


def _gram(engine: MaskedForward, mask: Tensor, kept: Sequence[int], depth: float) -> Tensor:
    """(K, K) products of the outputs' changes when one edge's mask falls by ``depth``; outputs of each input weigh
    alike, so that an outlier does not decide."""
    whole = engine.evaluate(mask)[0].double().flatten(1)
    size = whole.square().mean(1, keepdim=True).sqrt()
    size = torch.maximum(size, size.median()) + 1e-300
    changes = []
    for part in torch.split(torch.tensor(list(kept)), max(1, 4096 // engine.batch)):
        masks = mask.repeat(len(part), 1)
        masks[torch.arange(len(part)), part] = 1.0 - depth
        shift = engine.evaluate(masks).double().flatten(2) - whole
        changes.append((shift / size / depth).flatten(1))
    change = torch.cat(changes)
    return change @ change.T


def _companions(gram: Tensor) -> Tensor:
    """(K, K) bool: for every edge, what goes with it: z in [0, 1] with z_e = 1 that minimises z' G z, all edges as one
    batch of projected gradient descents with momentum."""
    n = len(gram)
    scale = gram.diagonal().clamp_min(1e-30).sqrt()
    gram = gram / scale.max().square()
    bound = float(gram.abs().sum(1).max()) + 1e-12  # of its eigenvalues; safe where they cannot be computed
    eye = torch.eye(n, dtype=torch.bool)
    z = eye.to(gram.dtype)
    ahead, pace = z, 1.0
    for _ in range(QP_STEPS):
        # A slight pull to 0: of sets that do equally well the smallest is wanted.
        new = (ahead - (ahead @ gram + 1e-6 * gram.diagonal().mean()) / bound).clamp(0.0, 1.0)
        new = torch.where(eye, torch.ones_like(new), new)
        next_pace = (1 + (1 + 4 * pace * pace) ** 0.5) / 2
        ahead = new + (pace - 1) / next_pace * (new - z)
        z, pace = new, next_pace
    return z > 0.5
