"""Results -> the page: what each section shows, and what it says where there is nothing to show."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from stages.contracts.measurement_rows import NullRow
from stages.contracts.reward_rows import LeaderboardRow, TaskRow
from stages.report import circuits, latents, listing, wording
from stages.report.comparing import arms, cost_curve, forest, pareto, pareto_front, task_caption
from stages.report.drawing import Drawn
from stages.report.lineage import tree_section
from stages.report.matrix import SPLITS, kind_matrix, kind_of, matrix
from stages.report.provenance import provenance, sources
from stages.report.research import labels_section, path_section
from stages.report.researchers import compare_section, live_section
from stages.report.results import Results
from stages.report.scenarios import scenario_section
from stages.report.sections import (
    ORACLE,
    campaign_section,
    dictionary_section,
    drawings,
    fresh_section,
    proxy_section,
    ranked,
    sensitivity_section,
    test_section,
)
from stages.report.tables import Table

__all__ = ["render"]

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("page.js", "saving.js", "filtering.js", "latent.js", "latents.js")


def render(results: Results, n_gallery: int = 12, max_failures: int = 100) -> str:
    """The whole page, one self-contained HTML file.

    Args:
        results: what there is.
        n_gallery: latents shown per dictionary.
        max_failures: failures listed one by one.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    board = ranked(results.leaderboard)
    per_task = [*results.per_task, *results.test_per_task]
    failed = listing.failures(per_task, results.campaign, results.controls)
    text: str = environment.get_template("index.html").render(
        style=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS)),
        results=results,
        sources=sources(),
        provenance=provenance(),
        matrix=matrix([row for row in per_task if row.method != ORACLE], results.kinds),
        lacks={note.name: note for note in results.missing},
        summary=wording.summary(board, results.statements) if board else None,
        statements=listing.statement_table(results.statements) if results.statements else None,
        by_kind=kind_matrix(results.statements),
        flop_weight=results.sensitivity.default.flop_weight if results.sensitivity else None,
        facts=_facts(results, board),
        board=_board(board, "Methods on these validation tasks", results.nulls),
        train=_board(ranked(results.train), "Methods on these train tasks", results.nulls),
        tasks=_tasks(per_task, [row.method for row in board], results.kinds),
        task_table=listing.task_table(per_task, results.kinds) if per_task else None,
        pareto=_pareto(board, results.per_task),
        costs=_costs(per_task, [row.method for row in board], results.kinds),
        campaign=campaign_section(results.campaign, results.best_built_in) if results.campaign else None,
        tree=tree_section(results.journal),
        compare=compare_section(results.comparison) if results.comparison else None,
        live=live_section(results.live),
        labels=labels_section(results.labels),
        scenarios=scenario_section(results.scenarios),
        path=path_section(results.path, results.campaign) if results.campaign else None,
        test=test_section(results),
        sensitivity=sensitivity_section(results.sensitivity) if results.sensitivity else None,
        controls=listing.controls_table(results.controls) if results.controls else None,
        n_passed=sum(row.passed for row in results.controls),
        dictionaries=dictionary_section(results.dictionaries),
        explorer=latents.explorer(results.galleries, n_gallery),
        fresh=fresh_section(results.fresh),
        proxies=proxy_section(results.proxies),
        circuits=circuits.circuit_table(results.circuits) if results.circuits else None,
        drawings=drawings(results.drawings),
        fates=circuits.FATES,
        failures=failed[:max_failures],
        n_failures=len(failed),
        declined=[(row.method, row.n_declined, row.n_tasks) for row in board if row.n_declined],
    )
    return re.sub(r"\n\s*\n+", "\n", text).strip() + "\n"


class Fact(NamedTuple):
    """One of the few numbers worth a glance."""

    name: str
    value: str
    note: str


def _facts(results: Results, board: Sequence[LeaderboardRow]) -> list[Fact]:
    facts = []
    if board:
        n = sum(row.verdict == "better" for row in board)
        facts.append(Fact("methods that help", f"{n} of {len(board)}", "better, on these validation tasks"))
        best = board[0]
        low, high = best.performance_gain_low, best.performance_gain_high
        note = f"{wording.interval(low, high)} at {wording.ratio(best.flop_ratio)} of the FLOPs"
        facts.append(Fact(f"score gained, {best.method}", wording.signed(best.performance_gain), note))
        worst = wording.task(best.worst_task)
        facts.append(Fact(f"worst task, {best.method}", wording.signed(best.worst_task_reward), worst))
    campaign = results.campaign
    if campaign and campaign.incumbent:
        built_in = results.best_built_in
        against = f"; best built-in {wording.signed(built_in.reward_mean)}" if built_in else ""
        value = wording.signed(campaign.incumbent.validation_reward)
        facts.append(Fact("found by the campaign", value, f"rounded by the gate{against}"))
    if results.controls:
        n = sum(row.passed for row in results.controls)
        facts.append(Fact("controls passed", f"{n} of {len(results.controls)}", "must come out right"))
    return facts


class Board(NamedTuple):
    """A leaderboard."""

    plot: Drawn
    table: Table
    n: str
    floor: str


def _board(rows: Sequence[LeaderboardRow], caption: str, nulls: Sequence[NullRow]) -> Board | None:
    if not rows:
        return None
    floor = wording.number(max(row.noise_floor for row in rows))
    return Board(
        Drawn.of(forest(rows)), listing.leaderboard_table(rows, caption, nulls=nulls), wording.sample(rows[0]), floor
    )


class TaskPanel(NamedTuple):
    """A plot of one task."""

    split: str
    family: str
    target: str
    kind: str
    plot: Drawn
    caption: str = ""


def _tasks(per_task: Sequence[TaskRow], order: Sequence[str], kinds: Mapping[str, str]) -> list[TaskPanel]:
    """One panel per task, validation first; methods in the order of the leaderboard."""
    place = {method: i for i, method in enumerate(order)}
    # The oracle is far above all others: it would leave them no room.
    shown = [row for row in per_task if row.method != ORACLE]
    return [
        TaskPanel(
            split,
            family.replace("_", " "),
            target,
            kind_of(family, kinds),
            Drawn.of(arms(sorted(rows, key=lambda row: (place.get(row.method, 99), row.method)))),
            task_caption(rows[0]),
        )
        for (split, family, target), rows in _by_task(shown)
    ]


class Ranked(NamedTuple):
    """A method in the legend of the plot of gain against cost."""

    place: int
    method: str
    gain: str
    interval: str
    ratio: str
    on_front: bool


class ParetoPlot(NamedTuple):
    plot: Drawn
    legend: list[Ranked]
    n: str


def _pareto(board: Sequence[LeaderboardRow], per_task: Sequence[TaskRow]) -> ParetoPlot | None:
    if not board:
        return None
    ratios: dict[str, list[float]] = {}
    for row in per_task:
        if row.split == board[0].split:
            ratios.setdefault(row.method, []).append(row.flop_ratio)
    ranges = {method: (min(values), max(values)) for method, values in ratios.items()}
    front = pareto_front([(1.0, 0.0), *((one.flop_ratio, one.performance_gain) for one in board)])
    legend = [
        Ranked(
            i + 1,
            one.method,
            wording.signed(one.performance_gain),
            wording.interval(one.performance_gain_low, one.performance_gain_high),
            wording.ratio(one.flop_ratio),
            i + 1 in front,
        )
        for i, one in enumerate(board)
    ]
    return ParetoPlot(Drawn.of(pareto(board, ranges)), legend, wording.sample(board[0]))


def _costs(per_task: Sequence[TaskRow], order: Sequence[str], kinds: Mapping[str, str]) -> list[TaskPanel]:
    """Score against FLOPs of each task, validation first."""
    places = {method: i + 1 for i, method in enumerate(order)}
    rows = [row for row in per_task if row.by_budget and row.method != ORACLE]
    return [
        TaskPanel(split, family.replace("_", " "), target, kind_of(family, kinds), Drawn.of(cost_curve(of, places)))
        for (split, family, target), of in _by_task(rows)
    ]


def _by_task(rows: Sequence[TaskRow]) -> list[tuple[tuple[str, str, str], list[TaskRow]]]:
    """Rows of each (split, family, target), validation first."""
    groups: dict[tuple[str, str, str], list[TaskRow]] = {}
    for row in rows:
        groups.setdefault((row.split, row.family, row.target), []).append(row)
    return sorted(groups.items(), key=lambda item: (SPLITS.get(item[0][0], 9), item[0]))
