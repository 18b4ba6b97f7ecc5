"""Capability removal: does cutting a behaviour's circuit take that behaviour and leave the others, and does any cut do?

For each behaviour and seed the target is edited in every way, at equal size (circuits) or equal removal (training), and
each edit is judged on the same held-out inputs. Without the random circuit and another behaviour's circuit beside it,
a drop says nothing about the circuit; without the neighbours, nothing about the behaviour.

    circuit        best-scored edges cut, sources replaced by their mean over other inputs
    circuit-zero   the same edges, replaced by nothing
    contrast       edges scored by what they do for this behaviour less what they do for the others
    eap            edges ranked by stages.circuits on the target's declared graph, where it has one edge per weight
    upstream       the circuit found when edges into the outputs are left alone, at the size it needs itself
    random-upstream  as many edges at random, none into the outputs
    other-circuit  the circuit of another behaviour, as many edges
    random         as many edges at random
    ascent, relabel, task-vector, rank-one   see removing.py
    scratch        new weights: only for how fast the behaviour is learned

Shape legend: B = inputs, E = edges.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from stages.circuits.algorithms.methods import run_method
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import answer as answer_lost
from stages.circuits.engine.zoo import graph_of_target
from stages.contracts.target import Target
from stages.editing.behaviours import Behaviour, behaviour_of
from stages.editing.cutting import SITES, Site, cut, cut_scores, mean_inputs, site_sizes, top
from stages.editing.measuring import (
    Effect,
    Metric,
    Redundancy,
    clustered_interval,
    effect,
    redundancy,
    relearn_steps,
)
from stages.editing.removing import BATCH, GONE, HOWS, accuracy, remove
from stages.errors import UserError
from stages.targets.zoo import ZOO

__all__ = ["Settings", "remove_capability"]

RELEARNED_WAYS = ("circuit", "relabel", "scratch", "task-vector", "upstream")
"""The others are judged too, but training them back is what takes the time."""
MetricName = Literal["accuracy_target", "accuracy_neighbours", "selectivity"]


class EditRow(Effect):
    """One edit."""

    target: str
    behaviour: str
    method: str
    seed: int
    draw: int
    """Of random circuits."""
    n_edges: int | None
    """Edges cut; None where the edit is training."""
    relearn_steps: int | None
    """None where the behaviour was not back within the limit, or the way is not trained back."""


class Untouched(TypedDict):
    """The target before any edit."""

    accuracy_target: Metric
    accuracy_neighbours: Metric
    n_target: int
    n_neighbours: int


class Left(Redundancy):
    """What is left of a behaviour elsewhere."""

    behaviour: str
    seed: int
    regrown_overlap: float
    """What the circuit shares of its union with the one found after it was cut and the behaviour relearned."""
    circuit_by_site: dict[str, int]
    """Edges of the circuit in each map."""


class SummaryRow(Effect):
    """One way of editing: means over behaviours, seeds and draws."""

    method: str
    n: int
    relearn_steps: Metric | None
    not_relearned: int | None


class DifferenceRow(TypedDict):
    """Selectivity of the circuit less that of another way, paired."""

    circuit_less: str
    n: int
    selectivity: Metric


class Removal(TypedDict):
    """What ``remove_capability`` found."""

    target: str
    digest: str
    n_edges_of_target: int
    seeds: int
    before: dict[str, Untouched]
    rows: list[EditRow]
    summary: list[SummaryRow]
    differences: list[DifferenceRow]
    redundancy: list[Left]


@dataclass(frozen=True)
class Settings:
    seeds: int = 3
    """Of the inputs circuits are found with, random circuits and batches."""
    n_inputs: int = 64
    """Inputs of the behaviour a circuit is found with, and as many others."""
    n_random: int = 5
    """Random circuits per seed."""
    shares: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32)
    """Sizes tried: the smallest with which the behaviour is gone on the inputs it is found with."""


def _sample(corpus: Any, n: int, generator: torch.Generator) -> Tensor:
    found: Tensor = corpus.inputs[torch.randperm(len(corpus.labels), generator=generator)[:n]]
    return found


class _Subject:
    """One behaviour and one seed: inputs, means and rankings, drawn once and used by every way."""

    def __init__(self, target: Target, sites: Sequence[Site], behaviour: Behaviour, seed: int, n: int) -> None:
        self.model, self.sites, self.behaviour = target.model, sites, behaviour
        self.target = target
        generator = torch.Generator().manual_seed(seed)
        self.shown = _sample(behaviour.shown, n, generator)
        index = torch.randperm(len(behaviour.others.labels), generator=generator)[:n]
        self.others, self.their_labels = behaviour.others.inputs[index], behaviour.others.labels[index]
        self.labels = torch.full((len(self.shown),), behaviour.answer)
        self.means = mean_inputs(target.model, sites, self.others)
        self.scores = self.scores_in(target.model)

    def scores_in(self, model: nn.Module) -> Tensor:
        """(E,) what cutting each edge of a model costs the behaviour; sources replaced by their mean in that model."""
        means = mean_inputs(model, self.sites, self.others)
        return cut_scores(model, self.sites, self.shown, self.labels, means)

    def contrast(self) -> Tensor:
        """Scores less what the edge does for the others' own answers."""
        return self.scores - cut_scores(self.model, self.sites, self.others, self.their_labels, self.means).abs()

    def eap(self, generator: torch.Generator) -> Tensor | None:
        """Scores of stages.circuits; None where the target's graph has no edge per weight."""
        engine = MaskedForward(
            self.model,
            graph_of_target(self.target.name),
            self.shown,
            ablation="interchange",
            counterfactual=self.others[: len(self.shown)],
        )
        if [(b.n_readers, b.n_sources) for b in engine.layout.blocks] != site_sizes(self.model, self.sites):
            return None
        return run_method("eap", engine, answer_lost, generator)[0].scores

    def upstream(self) -> Tensor:
        """(E,) bool: edges that do not end in an output; all, where no site writes the outputs."""
        last = site_sizes(self.model, self.sites)[-1]
        allowed = torch.ones(len(self.scores), dtype=torch.bool)
        if last[0] == self.target.spec.n_outputs:
            allowed[-last[0] * last[1] :] = False
        return allowed

    def size(self, shares: Sequence[float], allowed: Tensor | None = None) -> int:
        """Fewest edges, of the sizes tried, without which the behaviour is gone on the inputs it is found with."""
        bound = GONE * accuracy(self.model, self.shown, self.labels)
        sizes = [max(1, round(share * len(self.scores))) for share in shares]
        for n in sizes:
            edited = cut(self.model, self.sites, top(self.scores, n, allowed), self.means)
            if accuracy(edited, self.shown, self.labels) <= bound:
                return n
        return sizes[-1]


def remove_capability(
    target: Target,
    answers: Sequence[int] | None = None,
    *,
    settings: Settings | None = None,
    sites: Sequence[Site] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Removal:
    """Take behaviours away in every way, and measure what each way did.

    Args:
        target: stays as it is.
        answers: outputs whose giving is taken away, one after the other; None: the first three.
        settings: see ``Settings``.
        sites: linear maps whose entries are the edges; None: the house's own for this target.
        progress: told a line per behaviour and seed.

    Returns:
        JSON: ``rows`` (target, behaviour, method, seed, draw, n_edges, accuracy_target, accuracy_neighbours,
        selectivity, each {value, low, high} over held-out inputs, relearn_steps: a number, or null where the behaviour
        was not back within the limit or the way is not trained back), ``before``, ``summary`` (means over behaviours
        and seeds), ``differences`` (selectivity of the circuit less that of each other way, paired) and ``redundancy``
        (see there; also circuit_by_site: edges of the circuit in each map; regrown_overlap: what the circuit shares of
        its union with the one found after it was cut and the behaviour relearned).

    Raises:
        UserError: no sites are declared for the target, it has no such output, or a setting is below 1.
    """
    settings = settings or Settings()
    chosen = SITES.get(target.name) if sites is None else tuple(sites)
    if chosen is None:
        raise UserError(
            f"no edges are declared for target {target.name!r}: add its linear maps to SITES in"
            f" stages/editing/cutting.py; there are {', '.join(SITES)}"
        )
    if min(settings.seeds, settings.n_random, settings.n_inputs) < 1:
        raise UserError(f"{settings}: seeds, n_random and n_inputs must be at least 1")
    wanted = list(range(min(3, target.spec.n_outputs))) if answers is None else list(answers)
    behaviours = [behaviour_of(target, answer) for answer in wanted]
    rows: list[EditRow] = []
    before: dict[str, Untouched] = {}
    second: list[Left] = []
    for behaviour in behaviours:
        untouched = effect(target.model, target.model, behaviour)
        held = int((behaviour.held_out.labels == behaviour.answer).sum())
        before[behaviour.name] = {
            "accuracy_target": untouched["accuracy_target"],
            "accuracy_neighbours": untouched["accuracy_neighbours"],
            "n_target": held,
            "n_neighbours": len(behaviour.held_out.labels) - held,
        }
        for seed in range(settings.seeds):
            judged, left = _judged(_Subject(target, chosen, behaviour, seed, settings.n_inputs), seed, settings)
            rows += judged
            second.append(left)
            progress(f"{target.name}, {behaviour.name}, seed {seed}")
    return {
        "target": target.name,
        "digest": target.digest,
        "n_edges_of_target": sum(v * u for v, u in site_sizes(target.model, chosen)),
        "seeds": settings.seeds,
        "before": before,
        "rows": rows,
        "summary": _summary(rows),
        "differences": _differences(rows),
        "redundancy": second,
    }


def _judged(subject: _Subject, seed: int, settings: Settings) -> tuple[list[EditRow], Left]:
    """Rows of one behaviour and seed, and what is left of it elsewhere."""
    target, behaviour = subject.target, subject.behaviour
    generator = torch.Generator().manual_seed(1000 + seed)
    n = subject.size(settings.shares)
    rows: list[EditRow] = []

    def judge(method: str, edited: nn.Module, n_edges: int | None, draw: int = 0) -> nn.Module:
        steps, back = None, edited
        if method in RELEARNED_WAYS:
            back, steps = relearn_steps(edited, target.model, behaviour, BATCH, torch.Generator().manual_seed(seed))
        rows.append(
            {
                "target": target.name, "behaviour": behaviour.name, "method": method, "seed": seed, "draw": draw,
                "n_edges": n_edges, "relearn_steps": steps, **effect(target.model, edited, behaviour),
            }
        )  # fmt: skip
        return back

    def without(scores: Tensor, means: Mapping[str, Tensor] | None = subject.means) -> nn.Module:
        return cut(target.model, subject.sites, top(scores, n), means)

    back = judge("circuit", without(subject.scores), n)
    judge("circuit-zero", without(subject.scores, None), n)
    judge("contrast", without(subject.contrast()), n)
    ranked = subject.eap(generator) if target.name in SITES and SITES[target.name] == tuple(subject.sites) else None
    if ranked is not None:
        judge("eap", without(ranked), n)
    allowed = subject.upstream()
    if not bool(allowed.all()):
        inner = subject.size(settings.shares, allowed)
        judge("upstream", cut(target.model, subject.sites, top(subject.scores, inner, allowed), subject.means), inner)
        for draw in range(settings.n_random):
            drawn = top(torch.rand(len(allowed), generator=generator), inner, allowed)
            judge("random-upstream", cut(target.model, subject.sites, drawn, subject.means), inner, draw)
    others = [answer for answer in range(target.spec.n_outputs) if answer != behaviour.answer]
    other = others[int(torch.randint(len(others), (1,), generator=generator))]
    theirs = _Subject(target, subject.sites, behaviour_of(target, other), seed, settings.n_inputs)
    judge("other-circuit", without(theirs.scores), n)
    for draw in range(settings.n_random):
        judge("random", without(torch.rand(len(subject.scores), generator=generator)), n, draw)
    for how in HOWS:
        judge(how, remove(target.model, behaviour, how, generator, subject.sites[-1].module), None)
    if target.name in ZOO:
        judge("scratch", ZOO.find(target.name)().build(generator).eval(), None)
    circuit, regrown = top(subject.scores, n), top(subject.scores_in(back), n)
    found = redundancy(target.model, subject.sites, behaviour, subject.means, subject.shown, generator)
    overlap = round(float((circuit & regrown).sum() / (circuit | regrown).sum()), 4)
    parts = torch.split(circuit, [v * u for v, u in site_sizes(target.model, subject.sites)])
    by_site = {s.module: int(p.sum()) for s, p in zip(subject.sites, parts, strict=True)}
    about: Left = {
        "behaviour": behaviour.name, "seed": seed, "regrown_overlap": overlap, "circuit_by_site": by_site, **found,
    }  # fmt: skip
    return rows, about


def _summary(rows: Sequence[EditRow]) -> list[SummaryRow]:
    """A row per way: means over behaviours, seeds and draws; intervals by resampling behaviours, then seeds."""
    table: list[SummaryRow] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        back = [row for row in mine if row["relearn_steps"] is not None]
        groups = [
            [float(row["relearn_steps"] or 0) for row in back if row["behaviour"] == name]
            for name in dict.fromkeys(row["behaviour"] for row in back)
        ]
        table.append(
            {
                "method": method,
                "n": len({(row["behaviour"], row["seed"]) for row in mine}),
                "accuracy_target": clustered_interval(_grouped(mine, "accuracy_target")),
                "accuracy_neighbours": clustered_interval(_grouped(mine, "accuracy_neighbours")),
                "selectivity": clustered_interval(_grouped(mine, "selectivity")),
                "relearn_steps": clustered_interval(groups) if groups else None,
                "not_relearned": len(mine) - len(back) if method in RELEARNED_WAYS else None,
            }
        )
    return table


def _differences(rows: Sequence[EditRow]) -> list[DifferenceRow]:
    mine = _grouped([row for row in rows if row["method"] == "circuit"], "selectivity")
    table: list[DifferenceRow] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        if method in ("circuit", "scratch"):
            continue
        theirs = _grouped([row for row in rows if row["method"] == method], "selectivity")
        gaps = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(mine, theirs, strict=True)]
        table.append({"circuit_less": method, "n": sum(map(len, gaps)), "selectivity": clustered_interval(gaps)})
    return table


def _grouped(rows: Sequence[EditRow], metric: MetricName) -> list[list[float]]:
    """For each behaviour the metric at each seed, draws averaged."""
    found: dict[str, dict[int, list[float]]] = {}
    for row in rows:
        found.setdefault(row["behaviour"], {}).setdefault(row["seed"], []).append(row[metric]["value"])
    return [[sum(draws) / len(draws) for draws in seeds.values()] for seeds in found.values()]
