"""Attribution patching: one gradient says what cutting each edge would do, to first order.

An edge's score is |sum over the data of (ablated - clean source) . dL/d(what the reader reads)|, with the gradient
taken

    eap              at the clean run (``base="clean"``) or at the ablated one (``base="ablated"``); Syed et al. 2023,
                     Nanda 2023
    eap-ig           averaged over inputs between ablated and clean ("inputs"; Hanna et al. 2024), or over each
    source's own
                     output between the two ("activations"; MIB, Mueller et al. 2025)

The slope of a distance to the clean outputs is zero at the clean run, so eap there is blind; it is an error, not a
ranking of zeros.

Shape legend: E = edges, K = steps of the path.
"""

from typing import Literal

import torch
from torch import Tensor

from stages.base.progress import report
from stages.circuits.algorithms.acdc import losses
from stages.circuits.algorithms.findable import nothing_changes, outlier
from stages.circuits.algorithms.found import Found, billed
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective
from stages.errors import UserError

__all__ = ["eap", "eap_ig", "hisp", "node_patching"]


BLIND = 1e-5
"""Scores below this share of the loss with every edge cut are rounding."""


def _not_blind(engine: MaskedForward, objective: Objective, scores: Tensor, remedy: str) -> Tensor:
    if not torch.isfinite(scores).all():
        raise UserError(
            "the gradient is not finite:"
            f" {outlier(engine) or 'the objective or the module divides by zero or overflows'}"
        )
    largest = float(scores.abs().max())
    # A slope that is zero comes out as rounding where the loss has logarithms; only then is a second forward worth it.
    blind = largest == 0.0
    if 0.0 < largest < BLIND:
        empty = float(losses(engine, objective, torch.zeros(engine.n_edges)))
        blind = largest < BLIND * abs(empty) or nothing_changes(engine)
    if blind:
        raise UserError(
            "the metric is constant (its gradient is zero everywhere), so no edge can be told from another:"
            f" {outlier(engine) or remedy}"
        )
    return scores


def _mask_slopes(engine: MaskedForward, objective: Objective, masks: Tensor) -> Tensor:
    """(S, E) d(mean loss) / d(mask) at (S, E) masks."""
    masks = masks.clone().requires_grad_(True)
    with torch.enable_grad():
        loss = objective(engine(masks), engine.clean_outputs).mean(-1).sum()
        if not loss.requires_grad:
            return torch.zeros_like(masks)
        (slope,) = engine.gradients(loss, [masks], n=len(masks))
    return torch.zeros_like(masks) if slope is None else slope


def eap(engine: MaskedForward, objective: Objective, *, base: Literal["clean", "ablated"] = "clean") -> Found:
    """Edge attribution patching: one forward, one backward.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        base: the run at which the gradient is taken. "ablated" sees a distance to the clean outputs, "clean" does not.

    Raises:
        UserError: the gradient is zero everywhere.
    """
    with billed(engine) as bill:
        at = engine.ones() if base == "clean" else torch.zeros(engine.n_edges)
        scores = _mask_slopes(engine, objective, at.unsqueeze(0))[0].abs()
    return Found(
        _not_blind(
            engine, objective, scores, "use base='ablated', eap-ig, or an objective with a slope at the clean run"
        ),
        None,
        bill,
    )


def eap_ig(
    engine: MaskedForward,
    objective: Objective,
    *,
    over: Literal["inputs", "activations"] = "inputs",
    steps: int = 5,
) -> Found:
    """Edge attribution patching with integrated gradients.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        over: what moves from ablated to clean: the graph's inputs (K passes), or each source in turn (K passes per
        source). steps: K; points k / K for k = 0 .. K - 1: with the ablated end, without the clean one.

    Raises:
        UserError: the gradient is zero everywhere, or steps < 1.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}: at least 1 point of the path is needed")
    with billed(engine) as bill:
        start, _ = engine.layout.ends()
        levels = torch.arange(steps) / steps
        if over == "inputs":
            names = engine.layout.sources
            computed = {name for writers in engine.layout.writers.values() for name in writers}
            inputs = torch.tensor([name not in computed for name in names])
            masks = torch.where(inputs[start], levels.unsqueeze(1), torch.ones(1))
            probes = engine.probes(steps)
            with torch.enable_grad():
                loss = objective(engine(masks, probes), engine.clean_outputs).mean(-1).sum()
                slopes = engine.gradients(loss, list(probes.values()), n=steps)
            mean = {
                hook: torch.zeros_like(probe[:1]) if slope is None else slope.mean(0, keepdim=True)
                for (hook, probe), slope in zip(probes.items(), slopes, strict=True)
            }
            scores = engine.attribute(mean).abs()
        else:
            scores = torch.zeros(engine.n_edges)
            for source in range(len(engine.layout.sources)):
                report("moving sources", source, len(engine.layout.sources))
                mine = start == source
                masks = torch.where(mine, levels.unsqueeze(1), torch.ones(1))
                scores += torch.where(mine, _mask_slopes(engine, objective, masks).mean(0), torch.zeros(1)).abs()
    return Found(
        _not_blind(engine, objective, scores, "use an objective that differs between ablated and clean"), None, bill
    )


def _node_slopes(engine: MaskedForward, objective: Objective, base: str) -> Tensor:
    """(n_sources,) d(mean loss) / d(node mask)."""
    n = len(engine.layout.sources)
    nodes = torch.full((1, n), 1.0 if base == "clean" else 0.0)
    start, _ = engine.layout.ends()
    edges = _mask_slopes(engine, objective, nodes[:, start])[0]
    return torch.zeros(n).index_add(0, start, edges)


def node_patching(engine: MaskedForward, objective: Objective, *, base: Literal["clean", "ablated"] = "clean") -> Found:
    """Attribution patching of nodes: an edge is as good as the worse of its two ends. One forward, one backward.

    Raises:
        UserError: the gradient is zero everywhere.
    """
    with billed(engine) as bill:
        nodes = _node_slopes(engine, objective, base).abs()
        scores = engine.layout.node_scores(nodes)
    return Found(_not_blind(engine, objective, scores, "use base='ablated', or another objective"), None, bill)


def hisp(engine: MaskedForward, objective: Objective, *, base: Literal["clean", "ablated"] = "clean") -> Found:
    """Head importance (Michel et al. 2019; HISP of the ACDC paper): |activation . gradient| of a node, normalised by
    kind.

    Kinds are heads against heads, MLPs against MLPs, as there: scores are divided by the norm of their declared group.

    Raises:
        UserError: the gradient is zero everywhere.
    """
    with billed(engine) as bill:
        nodes = _node_slopes(engine, objective, base).abs()
        kinds = [name.rstrip("0123456789.") for name in engine.layout.sources]
        for kind in set(kinds):
            mine = torch.tensor([k == kind for k in kinds])
            nodes = torch.where(mine, nodes / (nodes[mine].norm() + 1e-12), nodes)
        scores = engine.layout.node_scores(nodes)
    return Found(_not_blind(engine, objective, scores, "use base='ablated', or another objective"), None, bill)
