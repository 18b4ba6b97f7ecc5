"""When a circuit is "correct" for a reason nobody meant: because an input never varies.

Under mean, resample or interchange ablation an edge matters only if what it carries differs between inputs. At one
fixed length a program that needs the length needs no edge for it: two edges of `reverse` are then "the circuit".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from stages.circuits.algorithms.acdc import losses
from stages.circuits.algorithms.findable import nothing_changes
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective

__all__ = ["Validity", "check_circuit"]


@dataclass(frozen=True)
class Validity:
    trivial: bool
    """The empty circuit is faithful: any circuit is 'correct'."""
    constant: tuple[str, ...]
    """Sources whose cut changes nothing since their replacement equals them on every input."""
    only_by_constancy: bool
    """It is faithful under its own ablation, not when cut sources are removed (zero), and giving back what never varies
    makes it so."""
    said: tuple[str, ...]
    """The findings in words; empty: nothing was found."""


def check_circuit(
    engine: MaskedForward, objective: Objective, mask: Tensor, tolerance: float, bare: MaskedForward | None = None
) -> Validity:
    """Say what a circuit's faithfulness rests on.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        mask: (E,) the circuit.
        tolerance: share of the empty circuit's loss up to which a circuit is faithful.
        bare: the same module and data under zero ablation, to see whether constancy alone makes the circuit correct.
    """
    said: list[str] = []
    spread = float((engine.clean_outputs - engine.clean_outputs.mean(0)).abs().max())
    scale = float(engine.clean_outputs.abs().max()) + 1e-12
    empty, found = losses(engine, objective, torch.stack([torch.zeros(engine.n_edges), mask])).tolist()
    trivial = nothing_changes(engine)
    if spread <= 1e-6 * scale:
        said.append("the outputs are the same for every input, so no circuit can be told from another: vary the inputs")
    elif trivial:
        said.append("the empty circuit is already correct: with every edge cut nothing changes under this ablation")
    constant = engine.constant_sources()
    if constant and engine.ablation != "zero":
        said.append(
            f"{', '.join(constant)}: the same on every input, so under {engine.ablation!r} no edge from there can"
            f" matter;"
            " the circuit says nothing about what they do"
        )
    only = False
    if bare is not None and not trivial:
        layout, still = engine.layout, set(constant)
        # What never varies given back: edges that leave it, and edges into components whose output never varies.
        restored = torch.tensor(
            [
                edge.source in still
                or (bool(layout.writers[edge.reader]) and still.issuperset(layout.writers[edge.reader]))
                for edge in layout.edges
            ]
        )
        masks = torch.stack([torch.zeros(bare.n_edges), mask, torch.maximum(mask, restored.float())])
        bare_empty, bare_found, bare_restored = losses(bare, objective, masks).tolist()
        fails = found <= tolerance * empty and bare_found > tolerance * bare_empty
        only = fails and bare_restored <= tolerance * bare_empty
        if only:
            said.append(
                "it is 'correct' only because these never vary: with the cut edges removed (zero) its loss is"
                f" {bare_found / max(bare_empty, 1e-30):.2g} of the empty circuit's, and giving back the edges from"
                f" and into"
                " what never varies mends it"
            )
        elif fails:
            said.append("it holds for this ablation only: with the cut edges removed (zero) it is not faithful")
    return Validity(trivial, constant, only, tuple(said))
