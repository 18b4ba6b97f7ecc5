"""Whether there is anything to find, asked before every method in the same way; and what never varies where there is
not.

Losses are not compared with squared outputs: a divergence has another unit, and one outlier makes any threshold of that
kind too large. They are compared with the loss of the full module, which is rounding alone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.circuits.algorithms.acdc import losses
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective
from stages.errors import UserError

__all__ = ["check_findable", "largest", "nothing_changes", "outlier", "same_outputs", "unvarying"]

ROUNDING = 3e-6
"""A shift of an example's outputs up to this share of their size (root mean square) is what rounding alone makes."""
OUTLIER = 1e6
"""Outputs this many times as large as the median input's leave nothing of the others in float32."""
ABOVE = 10.0
"""A loss up to this many times that of the full module is no loss."""


def same_outputs(outputs: Tensor, clean: Tensor) -> bool:
    """Whether (B, ...) outputs are the clean ones but for rounding, on every input: each is compared with its own size,
    or with the usual size where it is smaller, so that an outlier hides nothing."""
    size = clean.double().flatten(1).square().mean(1).sqrt()
    shift = (outputs.double() - clean.double()).flatten(1).square().mean(1).sqrt()
    return bool((shift <= ROUNDING * torch.maximum(size, size.median())).all())


def nothing_changes(engine: MaskedForward) -> bool:
    """Whether the outputs with every edge cut are the clean ones but for rounding, whatever the objective."""
    return same_outputs(engine.evaluate(torch.zeros(1, engine.n_edges))[0], engine.clean_outputs)


def unvarying(engine: MaskedForward) -> dict[str, bool]:
    """Sources whose cut changes nothing on any input under the engine's ablation -> whether they are inputs of the
    graph. A node all of whose units are such stands for them."""
    names = set(engine.unchanged_sources())
    computed = {source for fed in engine.layout.writers.values() for source in fed}
    found: dict[str, bool] = {}
    for node in engine.graph.nodes:
        if node.writes is None:
            continue
        units = [name for name in engine.layout.sources if name == node.name or name.startswith(f"{node.name}.")]
        mine = [name for name in units if name in names]
        if mine and len(mine) == len(units):
            found[f"{node.name} (all {len(units)} units)" if len(units) > 1 else units[0]] = units[0] not in computed
        else:
            found |= {name: name not in computed for name in mine}
    return found


def check_findable(engine: MaskedForward, objective: Objective, *, ranks: bool = False) -> None:
    """Say why there is nothing to find, if there is not.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        ranks: for a method that only ranks, which needs slopes and no loss that rises.

    Raises:
        UserError: with every edge cut the outputs, or the loss, are what they are with none; a loss is not finite.
    """
    for index in range(engine.groups):
        one = engine.group(index) if engine.groups > 1 else engine
        empty, full = losses(one, objective, torch.stack([torch.zeros(one.n_edges), one.ones()])).tolist()
        if nothing_changes(one):
            raise UserError(
                f"with every edge cut the outputs stay what they are under {one.ablation!r}, so there is nothing to"
                f" find: {_why(one)}"
            )
        if not (abs(empty) < float("inf") and abs(full) < float("inf")):
            raise UserError(
                f"the loss is not finite (with every edge cut {empty:g}, with none {full:g}): {largest(one)}; leave"
                " such inputs out, or use a metric that does not overflow on them (kl)"
            )
        if empty <= ABOVE * max(full, 0.0) and not (ranks and abs(empty) > ABOVE * abs(full)):
            raise UserError(
                f"with every edge cut the loss is no higher than with none ({empty:.3g} and {full:.3g}), though the"
                " outputs change: the metric does not see what they do; use another (--metric mse sees every change)"
            )


def largest(engine: MaskedForward) -> str:
    """The input whose outputs are the largest, next to the usual size."""
    size = engine.clean_outputs.double().flatten(1).abs().amax(1)
    top, usual = float(size.max()), float(size.median())
    return f"input {int(size.argmax())} has outputs of {top:.2g}, the median input {usual:.2g}"


def outlier(engine: MaskedForward) -> str:
    """What to do about an input whose outputs are so large that gradients of the others are lost; "" for none."""
    size = engine.clean_outputs.double().flatten(1).abs().amax(1)
    if float(size.max()) <= OUTLIER * float(size.median()):
        return ""
    return (
        f"an input with outputs of {float(size.max()):.2g} leaves nothing of the others, whose median is"
        f" {float(size.median()):.2g}; leave it out"
    )


def _why(engine: MaskedForward) -> str:
    same = unvarying(engine)
    if not same:
        return (
            "every source varies, but the outputs follow none of them: look at the weights of the last layers, or ask"
            " for outputs that do (the metric's, a part of the logits)"
        )
    what = {"zero": "0 on every input", "interchange": "the same in clean and counterfactual inputs"}.get(
        engine.ablation, "the same on every input"
    )
    inputs, layers = ([name for name, kind in same.items() if kind is wanted] for wanted in (True, False))
    remedies = []
    if inputs and engine.ablation == "interchange":
        remedies.append("give counterfactual inputs that differ from the clean ones")
    elif inputs:
        remedies.append("vary the inputs")
    if layers and not inputs:
        remedies.append(
            "that layer is dead (weights of 0, a ReLU that never opens, saturation): mend its weights, or give inputs"
            " that wake it"
        )
    if engine.ablation != "zero" and any(name not in _silent(engine, same) for name in same):
        remedies.append("use --ablation zero, which also removes what never varies")
    return f"{_listed([*inputs, *layers])}: {what}; {', or '.join(remedies)}"


def _silent(engine: MaskedForward, same: dict[str, bool]) -> set[str]:
    """Of the names of ``unvarying``, those that write 0."""
    silent = set(engine.silent_sources())
    return {name for name in same if name in silent or _units_of(engine, name) <= silent}


def _units_of(engine: MaskedForward, name: str) -> set[str]:
    node = name.partition(" (")[0]
    return {source for source in engine.layout.sources if source == node or source.startswith(f"{node}.")}


def _listed(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
