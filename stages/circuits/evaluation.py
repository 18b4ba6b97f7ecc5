"""How good a circuit or a ranking is, against a known circuit and without one.

Shape legend: E = edges, S = masks, B = batch, C = outputs.
"""

from collections.abc import Sequence
from itertools import combinations
from math import comb

import torch
from scipy.stats import rankdata
from torch import Tensor

from stages.circuits.algorithms.acdc import losses
from stages.circuits.engine.graph import Layout
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective, kl
from stages.errors import UserError

__all__ = [
    "GRID",
    "against_truth",
    "agreement",
    "auc",
    "divergence",
    "faithfulness_curve",
    "interchange_accuracy",
    "node_scores",
    "random_mask",
    "seed_agreement",
]  # fmt: skip

GRID = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the edges at which MIB measures faithfulness (Mueller et al. 2025)."""


def auc(scores: Tensor, truth: Tensor) -> float:
    """Area under the ROC curve, ties averaged: 0.5 for a constant score.

    Args:
        scores: (E,).
        truth: (E,) 0 or 1.

    Raises:
        UserError: truth holds all edges or none, so there is nothing to rank.
    """
    positive = truth > 0.5
    n, m = int(positive.sum()), int((~positive).sum())
    if n == 0 or m == 0:
        raise UserError(f"the known circuit holds {n} of {n + m} edges: a ranking cannot be judged against all or none")
    ranks = torch.from_numpy(rankdata(scores.double().numpy()))
    return (float(ranks[positive].sum()) - n * (n + 1) / 2) / (n * m)


def against_truth(scores: Tensor, truth: Tensor, mask: Tensor | None = None) -> dict[str, float | bool | None]:
    """Precision and recall at the true size, whether the circuit is exactly the known one, and the edge AUC.

    Args:
        scores: (E,).
        truth: (E,) 0 or 1.
        mask: (E,) the circuit found; None: the best-scored edges, as many as the truth has (which is then told).

    Returns:
        precision_at_size (= recall_at_size; ties at the border count in expectation), exact_recovery (False where a tie
        leaves it open), edge_auc (None where truth is all or nothing), size.
    """
    wanted = truth > 0.5
    size = int(wanted.sum())
    border = scores.sort(descending=True).values[max(size - 1, 0)] if size else scores.max() + 1
    above, at = scores > border, scores == border
    share = (size - int(above.sum())) / max(int(at.sum()), 1)
    hits = int((above & wanted).sum()) + share * int((at & wanted).sum())
    if mask is None:
        chosen = scores >= border if size else torch.zeros_like(wanted)
    else:
        chosen = mask > 0.5
    return {
        "edge_auc": auc(scores, truth) if 0 < size < len(truth) else None,
        "exact_recovery": bool((chosen == wanted).all()),
        "precision_at_size": hits / size if size else None,
        "precision": int((chosen & wanted).sum()) / int(chosen.sum()) if bool(chosen.any()) else None,
        "recall": int((chosen & wanted).sum()) / size if size else None,
        "size": int(chosen.sum()),
    }


def node_scores(layout: Layout, scores: Tensor) -> Tensor:
    """(n_sources,) the best score among the edges that leave each source; -inf for a source no one reads."""
    start, _ = layout.ends()
    best = torch.full((len(layout.sources),), float("-inf"))
    return best.scatter_reduce(0, start, scores.float(), "amax")


def faithfulness_curve(
    engine: MaskedForward, objective: Objective, scores: Tensor, grid: Sequence[float] = GRID
) -> dict[str, float | list[float]]:
    """CPR and CMD (MIB): f(k) = (m(circuit of share k) - m(empty)) / (m(full) - m(empty)), with m = -mean loss.

    Returns:
        shares, faithfulness (f at each), cpr (area under f, higher = better, unbounded), cmd (area under |1 - f|,
        lower = better). Ties in scores are broken by position, later edges last.

    Raises:
        UserError: the empty circuit's loss is that of the full module.
    """
    order = scores.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    counts = torch.tensor([round(share * len(order)) for share in grid])
    masks = (rank < counts.unsqueeze(1)).float()
    ends = torch.stack([torch.zeros(engine.n_edges), engine.ones()])
    found = losses(engine, objective, torch.cat([ends, masks]))
    empty, full = float(found[0]), float(found[1])
    if empty == full:
        raise UserError("the empty circuit is as good as the full module here: faithfulness is not defined")
    f = ((empty - found[2:]) / (empty - full)).double()
    k = torch.tensor(list(grid), dtype=torch.float64)
    return {
        "shares": list(grid),
        "faithfulness": f.tolist(),
        "cpr": float(torch.trapezoid(f, k)),
        "cmd": float(torch.trapezoid((1 - f).abs(), k)),
    }


def divergence(engine: MaskedForward, mask: Tensor) -> float:
    """Mean KL(full || circuit) in nats over the last axis of the outputs."""
    return float(losses(engine, kl, mask))


def agreement(engine: MaskedForward, mask: Tensor) -> float:
    """Share of answers (argmax of the last axis) that are those of the full module."""
    same = engine.evaluate(mask)[0].argmax(-1) == engine.clean_outputs.argmax(-1)
    return float(same.double().mean())


def interchange_accuracy(engine: MaskedForward, swapped: Sequence[str], expected: Tensor) -> float:
    """IIA: share of outputs that equal the high-level model's after the same swap (Geiger et al. 2021).

    Args:
        engine: with ablation ``interchange``.
        swapped: sources that take the counterfactual's value (all edges that leave them are cut).
        expected: (B, ...) answers of the high-level model with the aligned variable swapped.

    Raises:
        UserError: another ablation, or a source that does not exist.
    """
    if engine.ablation != "interchange":
        raise UserError(f"interchange accuracy needs ablation 'interchange', this is {engine.ablation!r}")
    unknown = sorted(set(swapped) - set(engine.layout.sources))
    if unknown:
        raise UserError(f"no source is called {', '.join(unknown)}: there are {', '.join(engine.layout.sources[:20])}")
    mask = torch.tensor([0.0 if edge.source in set(swapped) else 1.0 for edge in engine.layout.edges])
    return float((engine.evaluate(mask)[0].argmax(-1) == expected).double().mean())


def seed_agreement(masks: Sequence[Tensor]) -> float | None:
    """Mean intersection over union of the edge sets of all pairs; two empty sets agree fully. None for fewer than
    two."""
    if len(masks) < 2:
        return None
    total = 0.0
    for one, other in combinations([mask > 0.5 for mask in masks], 2):
        union = int((one | other).sum())
        total += int((one & other).sum()) / union if union else 1.0
    return total / comb(len(masks), 2)


def random_mask(n_edges: int, size: int, generator: torch.Generator) -> Tensor:
    """(E,) mask of ``size`` edges drawn uniformly: the size-matched control."""
    mask = torch.zeros(n_edges)
    mask[torch.randperm(n_edges, generator=generator)[:size]] = 1.0
    return mask
