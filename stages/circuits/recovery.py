"""Every method on every card, several seeds: how often the known circuit is found exactly, and at what cost."""

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stages.base.code_lengths import choice_bits
from stages.circuits.algorithms.found import Found
from stages.circuits.algorithms.methods import METHODS, Settings, run_method
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import mse
from stages.circuits.evaluation import (
    against_truth,
    auc,
    divergence,
    faithfulness_curve,
    node_scores,
    seed_agreement,
)
from stages.circuits.known.known_circuits import (
    TOLERANCE,
    Card,
    Truth,
    cards,
    truth_of,
)
from stages.circuits.validity import check_circuit
from stages.contracts.circuit_rows import KnownCircuit, TimedCircuitRow
from stages.contracts.record import Record
from stages.errors import UserError

__all__ = ["GOALS", "bench_rows", "card_rows", "run_card", "verdicts"]

TOLD_SIZE = ("eap", "eap-ig", "eap-ig-activations", "nap", "hisp", "random")
"""Methods that only rank: their exact recovery is of the best edges, as many as the truth has, which they are told."""


class Goal(NamedTuple):
    """What a method should reach on every card it is about."""

    method: str
    key: Literal["exact_recovery", "seconds_per_seed"]
    bound: float
    """At least (exact_recovery) or at most (seconds_per_seed)."""
    words: str
    subject: str = ""
    """Only about cards of this subject; empty: about all."""


GOALS = (
    Goal("edge-sp", "exact_recovery", 0.9, "edge-sp finds the circuit exactly in at least 9 of 10 seeds"),
    Goal("edge-sp", "seconds_per_seed", 6.0, "edge-sp takes at most 6 s a seed"),
    Goal("acdc", "seconds_per_seed", 0.2, "ACDC takes at most 0.2 s a threshold on reverse", "reverse"),
    Goal("eap-ig", "seconds_per_seed", 0.1, "EAP-IG takes at most 0.1 s"),
)


class GoalMet(Record):
    """A goal next to what was measured."""

    goal: str
    """In words."""
    worst: float
    """The worst value over the cards it is about."""
    card: str
    """Where that was."""
    met: bool
    """Whether even that reaches the goal."""


def run_card(
    card: Card, truth: Truth, methods: Sequence[str], seeds: int, settings: Settings | None = None
) -> list[TimedCircuitRow]:
    """One row per method. Every seed has its own sample of inputs, partners of ``resample``, starts and gates."""
    settings = settings or Settings(tolerance=TOLERANCE)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    data = torch.cat([card.inputs(generator) for _ in range(seeds)])
    engine = card.engine(data, generator, groups=seeds)
    rows = []
    for method in methods:
        row = TimedCircuitRow(
            card=card.name,
            subject=card.subject,
            ablation=card.ablation,
            length=card.length,
            method=method,
            seeds=seeds,
            n_edges=engine.n_edges,
            truth_edges=len(truth.edges),
            truth_agrees=truth.agree,
            told_size=method in TOLD_SIZE,
        )
        try:
            found = run_method(method, engine, mse, torch.Generator().manual_seed(2), settings)
        except UserError as error:
            rows.append(row.model_copy(update={"failed": str(error)}))
            continue
        rows.append(row.model_copy(update=_judged(engine, truth, found)))
    return rows


def _judged(engine: MaskedForward, truth: Truth, found: list[Found]) -> dict[str, float | None]:
    judged = [against_truth(one.scores, truth.mask, one.mask) for one in found]
    raw = [against_truth(one.scores, truth.mask, one.unpolished) for one in found if one.unpolished is not None]
    curves = [
        faithfulness_curve(engine.group(i) if engine.groups > 1 else engine, mse, one.scores)
        for i, one in enumerate(found)
    ]
    kept = [_kept(one, int((truth.mask > 0.5).sum())) for one in found]
    parts = [engine.group(i) if engine.groups > 1 else engine for i in range(len(kept))]
    left = [max(0.0, divergence(part, mask)) / log(2) for part, mask in zip(parts, kept, strict=True)]
    wanted = (node_scores(engine.layout, truth.mask) > 0.5).float()
    nodes = [auc(node_scores(engine.layout, one.scores).nan_to_num(neginf=-1e30), wanted) for one in found]

    def mean(key: str, rows: Sequence[Mapping[str, float | list[float] | None]] = judged) -> float | None:
        numbers = [row[key] for row in rows]
        values = [float(one) for one in numbers if isinstance(one, int | float) and isfinite(one)]
        return sum(values) / len(values) if values else None

    return {
        "exact_recovery": mean("exact_recovery"),
        "exact_before_polish": mean("exact_recovery", raw) if raw else None,
        "edge_auc": mean("edge_auc"),
        "node_auc": sum(nodes) / len(nodes),
        "precision_at_size": mean("precision_at_size"),
        "precision": mean("precision"),
        "recall": mean("recall"),
        "size": mean("size"),
        "cpr": mean("cpr", curves),
        "cmd": mean("cmd", curves),
        "choice_bits": sum(choice_bits(engine.n_edges, int(one.sum())) for one in kept) / len(kept),
        "unexplained_bits": sum(left) / len(left) if engine.clean_outputs.shape[-1] > 1 else None,
        "iou_of_seeds": seed_agreement([one.mask for one in found if one.mask is not None]),
        "forwards": sum(one.bill.forwards for one in found) / len(found),
        "backwards": sum(one.bill.backwards for one in found) / len(found),
        "seconds_per_seed": sum(one.bill.seconds for one in found) / len(found),
    }


def _kept(found: Found, size: int) -> Tensor:
    """(E,) the circuit found, or the best edges where the method only ranks; of ties the first."""
    if found.mask is not None:
        return found.mask
    best = found.scores.argsort(descending=True, stable=True)[:size]
    return torch.zeros(len(found.scores)).index_fill(0, best, 1.0)


def bench_rows(
    names: Sequence[str] = (),
    methods: Sequence[str] = ("edge-sp", "acdc", "eap", "eap-ig"),
    seeds: int = 10,
    orders: int = 3,
    progress: Callable[[str], None] = lambda said: None,
) -> list[TimedCircuitRow]:
    """Rows of all cards (by default) whose truth is one: both derivations and every order of cutting agree.

    Raises:
        UserError: an unknown card or method, or cards of compiled programs without tracr.
    """
    unknown = sorted(set(methods) - set(METHODS))
    if unknown or seeds < 1:
        raise UserError(f"methods {unknown or methods}, seeds {seeds}: use {', '.join(METHODS)} and at least one seed")
    rows: list[TimedCircuitRow] = []
    for card in cards(tuple(names)):
        progress(card.name)
        truth = truth_of(card, orders)
        if truth.agree:
            rows += run_card(card, truth, methods, seeds)
    return rows


def card_rows(
    names: Sequence[str] = (), orders: int = 3, progress: Callable[[str], None] = lambda said: None
) -> list[KnownCircuit]:
    """What is known about each card: its circuit, how it was derived, and what to be wary of."""
    rows = []
    for card in cards(tuple(names)):
        progress(card.name)
        truth = truth_of(card, orders)
        generator = torch.Generator().manual_seed(0)
        data = card.everything()
        engine = card.engine(data, generator)
        bare = None if card.ablation == "zero" else Card(card.subject, "zero", card.length).engine(data, generator)
        rows.append(
            KnownCircuit(
                card=card.name,
                n_edges=len(truth.mask),
                truth_edges=len(truth.edges) if truth.agree else None,
                agree=truth.agree,
                unique=truth.ablated.unique,
                irreducible=truth.ablated.irreducible,
                orders=truth.ablated.orders + 1,
                subsets_tried=truth.ablated.subsets,
                edges=truth.edges if truth.agree else (),
                validity=tuple(check_circuit(engine, mse, truth.mask, TOLERANCE, bare).said),
            )
        )
    return rows


def verdicts(rows: Sequence[TimedCircuitRow]) -> list[GoalMet]:
    """Each goal next to what was measured, over the cards it is about."""
    found = []
    for goal in GOALS:
        about = [
            (value, row.card)
            for row in rows
            if row.method == goal.method and goal.subject in ("", row.subject)
            if (value := getattr(row, goal.key)) is not None
        ]
        if not about:
            continue
        least = goal.key == "exact_recovery"
        worst, card = min(about, key=lambda one: one[0]) if least else max(about, key=lambda one: one[0])
        met = worst >= goal.bound if least else worst <= goal.bound
        found.append(GoalMet(goal=goal.words, worst=worst, card=card, met=met))
    return found
