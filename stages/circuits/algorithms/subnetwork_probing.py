"""Subnetwork probing: a mask per edge (or node), learned by gradient descent, several seeds as one batch.

Hard concrete gates (Louizos et al. 2018; Cao et al. 2021 for subnetwork probing):
u ~ U(0, 1), s = sigmoid((logit u + theta) / beta), z = clamp(s (zeta - gamma) + gamma, 0, 1).

What is done differently, and why:
- little noise: with all of it, several needed gates are shut at once in most draws, the output is lost whichever of
them
  opens, and the gradient credits none; circuits of more than a few edges collapse to nothing;
- the penalty is the expected number of open gates over all edges alike, not a mean of means per reader, which charges
an
  edge into a late reader less;
- gates start open and the penalty warms up, so that no edge is lost before the loss can speak for it;
- the weight of the penalty follows the constraint instead of being tuned: it rises while the circuit is faithful and
falls
  while it is not, or it drives the size where one is asked for; the temperature falls, so that gates end open or
  closed;
- the ranking is then read with forwards alone: the shortest faithful prefix (``Found.unpolished``), and cuts from its
weak
  end until no edge, no set that a gradient proposes and no pair can be cut (``joint``).

Shape legend: S = seeds (masks), E = edges, B = batch.
"""

import time
from dataclasses import dataclass
from math import log
from typing import Literal

import torch
from torch import Tensor

from stages.base.progress import report
from stages.circuits.algorithms.acdc import eliminate, losses
from stages.circuits.algorithms.findable import check_findable, outlier
from stages.circuits.algorithms.found import Bill, Found
from stages.circuits.algorithms.joint import joint_cuts
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective
from stages.errors import UserError

__all__ = ["Probe", "faithful_prefix", "probe"]

GAMMA, ZETA = -0.1, 1.1


@dataclass(frozen=True)
class Probe:
    """Settings. Nothing here knows a circuit's size unless ``size`` says it."""

    steps: int = 200
    lr: float = 0.1
    """Of Adam, on the gates' logits."""
    open: float = 0.95
    """Gates' value at the start."""
    noise: float = 0.3
    """Standard deviation of the logits at the start; each seed draws its own."""
    jitter: float = 0.1
    """Share of the logistic noise of the hard concrete gate that is kept; 1: all of it."""
    temperature: tuple[float, float] = (0.66, 0.4)
    """At the start and at the end."""
    warm_up: float = 0.2
    """Share of the steps over which the penalty rises from nothing."""
    penalty: float = 0.1
    """Weight of the mean open gate, in units of the loss with every edge cut, at the end of the warm-up."""
    adapt: float = 0.03
    """How fast the penalty's logarithm follows the constraint, per step; 0: a constant penalty."""
    band: float = 0.01
    """While learning, a loss up to this share of the loss with every edge cut counts as faithful."""
    tolerance: float = 1e-3
    """A circuit is faithful if its loss is at most this share of the loss with every edge cut."""
    size: int | None = None
    """Edges wanted; None: as few as are faithful."""
    polish: bool = True
    """Read the ranking with forwards until the circuit is faithful and irreducible up to pairs."""
    over: Literal["edges", "nodes"] = "edges"


def probe(
    engine: MaskedForward, objective: Objective, generator: torch.Generator, settings: Probe = Probe()
) -> list[Found]:
    """Learn one circuit per group of the engine's data (one seed each).

    Args:
        engine: with ``groups`` = number of seeds.
        objective: the loss.
        generator: draws starts and gates.
        settings: see ``Probe``.

    Returns:
        One result per seed; seconds, forwards and backwards are per seed.

    Raises:
        UserError: with every edge cut the loss is no higher than with none: there is nothing to find.
    """
    check_findable(engine, objective)
    started, before = time.perf_counter(), engine.cost.copy()
    n, layout = engine.groups, engine.layout
    gates = len(layout.sources) if settings.over == "nodes" else engine.n_edges
    clean = (
        engine.clean_outputs.view(n, engine.batch, *engine.clean_outputs.shape[1:]) if n > 1 else engine.clean_outputs
    )

    def loss_of(masks: Tensor) -> Tensor:
        return objective(engine(masks), clean).mean(-1)

    with torch.no_grad():
        empty = loss_of(torch.zeros(n, engine.n_edges))
    allowed = settings.tolerance * empty
    start = log((settings.open - GAMMA) / (ZETA - settings.open))
    theta = start + settings.noise * torch.randn(n, gates, generator=generator)
    theta.requires_grad_(True)
    optimiser = torch.optim.Adam([theta], lr=settings.lr)
    weight = torch.full((n,), log(settings.penalty))
    warm = max(1, int(settings.warm_up * settings.steps))
    for step in range(settings.steps):
        report(f"learning masks of {n} seeds", step, settings.steps)
        share = step / max(1, settings.steps - 1)
        hot, cold = settings.temperature
        beta = hot * (cold / hot) ** share
        u = torch.rand(n, gates, generator=generator).clamp(1e-6, 1 - 1e-6)
        soft = torch.sigmoid((settings.jitter * (u.log() - (1 - u).log()) + theta) / beta)
        z = (soft * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)
        loss = loss_of(layout.node_mask(z) if settings.over == "nodes" else z)
        opened = torch.sigmoid(theta - beta * log(-GAMMA / ZETA))
        if settings.size is None:
            size = opened.mean(-1)
        else:
            size = (opened.sum(-1) - settings.size).relu() / gates
        rise = min(1.0, (step + 1) / warm)
        total = (loss / empty + rise * weight.exp() * size).sum()
        theta.grad = engine.gradients(total, [theta], n=n)[0]
        optimiser.step()
        if step >= warm and settings.adapt:
            weight = weight + settings.adapt * torch.where(loss.detach() <= settings.band * empty, 1.0, -1.0)
    learned = theta.detach()
    if not bool(torch.isfinite(learned).all()):
        raise UserError(
            "the loss has no finite gradient where edges are partly cut (a root or logarithm at 0, overflow)"
            f": {outlier(engine) or 'add a small number there, or use --method acdc, which needs none'}"
        )
    scores = layout.node_scores(torch.sigmoid(learned)) if settings.over == "nodes" else learned
    spent, seconds = engine.cost - before, time.perf_counter() - started
    share_bill = (seconds / n, spent.forwards // n, spent.backwards // n)
    return [
        _read(engine.group(i) if n > 1 else engine, objective, scores[i], float(allowed[i]), settings, share_bill)
        for i in range(n)
    ]


def _read(
    engine: MaskedForward,
    objective: Objective,
    scores: Tensor,
    allowed: float,
    settings: Probe,
    spent: tuple[float, int, int],
) -> Found:
    """From a ranking to a circuit, with forwards."""
    started, before = time.perf_counter(), engine.cost.copy()
    order = scores.argsort(descending=True, stable=True).tolist()
    if settings.size is not None:
        mask = torch.zeros(engine.n_edges)
        mask[order[: settings.size]] = 1.0
        unpolished = mask
    else:
        mask = unpolished = faithful_prefix(engine, objective, scores, allowed)
        if settings.polish and settings.over == "edges":
            mask = eliminate(engine, objective, mask, order[::-1], allowed)
            mask = joint_cuts(engine, objective, mask, order[::-1], lambda _, after: after <= allowed)
            # What polishing kept stands before what it cut; within each, the learned order stays.
            scores = scores + mask * (scores.max() - scores.min() + 1.0)
    cost = engine.cost - before
    bill = Bill(spent[0] + time.perf_counter() - started, spent[1] + cost.forwards, spent[2] + cost.backwards)
    return Found(scores, mask, bill, unpolished)


def faithful_prefix(engine: MaskedForward, objective: Objective, scores: Tensor, allowed: float) -> Tensor:
    """(E,) mask of the best edges, as many as make the loss at most ``allowed``, by bisection; ties stay together."""
    levels = torch.unique(scores).flip(0)
    low, high = 0, len(levels)  # with all of them the loss is that of the full module, 0
    while low < high:
        middle = (low + high) // 2
        mask = (scores >= levels[middle - 1]).float() if middle else torch.zeros_like(scores)
        if float(losses(engine, objective, mask)) <= allowed:
            high = middle
        else:
            low = middle + 1
    return (scores >= levels[high - 1]).float() if high else torch.zeros_like(scores)
