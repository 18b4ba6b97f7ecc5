"""Other circuits that do as well: where either of two suffices, a search returns one, and the other is no error.

An edge of the circuit is *replaceable* if the full module without it is still faithful. With the edge forbidden,
elimination from the full module down ends in a circuit that does without it: an alternative. Circuits that other seeds
found count too.

Shape legend: E = edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stages.base.progress import report
from stages.circuits.algorithms.acdc import eliminate, losses
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective

__all__ = ["MOST", "Alternative", "alternatives"]

MOST = 4
"""Alternatives that are looked for; each costs as much as a run of ACDC."""


@dataclass(frozen=True)
class Alternative:
    mask: Tensor
    """(E,)."""
    found_by: str
    """ "seed 3", or the edge that was forbidden."""


def alternatives(
    engine: MaskedForward,
    objective: Objective,
    mask: Tensor,
    order: Sequence[int],
    allowed: float,
    of_seeds: Mapping[int, Tensor],
) -> list[Alternative]:
    """Circuits that are faithful too and do without at least one edge of ``mask``; none: every edge is needed.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        mask: (E,) the circuit.
        order: edges in the order of cutting, those to lose first in front.
        allowed: largest loss of a faithful circuit.
        of_seeds: faithful circuits by seed.
    """
    found: list[Alternative] = []
    for seed, other in of_seeds.items():
        known = [mask, *(one.mask for one in found)]
        if bool((mask > other).any()) and not any(bool((other >= one).all()) for one in known):
            found.append(Alternative(other, f"seed {seed}"))
    del found[MOST:]
    kept = (mask > 0.5).nonzero().flatten().tolist()
    if not kept:
        return found
    without = engine.ones().repeat(len(kept), 1)
    without[torch.arange(len(kept)), kept] = 0.0
    fine = (losses(engine, objective, without) <= allowed).tolist()
    for step, place in enumerate([place for place, replaceable in zip(kept, fine, strict=True) if replaceable]):
        if len(found) >= MOST:
            break
        if any(one.mask[place] < 0.5 for one in found):
            continue  # one that does without this edge is known
        report("looking for alternatives", step, len(kept))
        start = engine.ones()
        start[place] = 0.0
        # The circuit's own edges are cut last, so that an alternative differs where it must.
        last = [other for other in order if mask[other] > 0.5]
        other = eliminate(engine, objective, start, [*(o for o in order if mask[o] < 0.5), *last], allowed)
        if not any(torch.equal(other, one.mask) for one in found):
            found.append(Alternative(other, f"without {engine.layout.edges[place]}"))
    return found
