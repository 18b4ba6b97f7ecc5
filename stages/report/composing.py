"""Results -> the page: what each section shows, and what it says where there is nothing to show."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import jinja2
from markupsafe import Markup

from stages.contracts.circuit_rows import CircuitDrawing
from stages.contracts.dictionary_rows import DictionaryRow, ProxyRow
from stages.contracts.journal import CampaignSummary, Incumbent
from stages.contracts.reward_rows import FreshRow, LeaderboardRow, SensitivityTable, TaskRow, TestRow
from stages.report import circuits, exploring, latents, listing, proxies, sweeps, wording
from stages.report.comparing import arms, cost_curve, forest, pareto, pareto_front, task_caption
from stages.report.drawing import Plot
from stages.report.results import Results
from stages.report.tables import Cell, Column, Table

__all__ = ["render"]

PAGE = Path(__file__).parent / "page"
ORACLE = "oracle"
"""The control that is given the truth; it is in the tables, and would dwarf the others in a plot."""
BoardT = TypeVar("BoardT", bound=LeaderboardRow)
SPLITS = {"validation": 0, "test": 1, "train": 2}


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
    board = _ranked(results.leaderboard)
    per_task = [*results.per_task, *results.test_per_task]
    failed = listing.failures(per_task, results.campaign, results.controls)
    text: str = environment.get_template("index.html").render(
        style=Markup((PAGE / "page.css").read_text(encoding="utf-8")),
        script=Markup("".join((PAGE / name).read_text(encoding="utf-8") for name in ("page.js", "latents.js"))),
        results=results,
        lacks={note.name: note for note in results.missing},
        summary=wording.summary(board) if board else None,
        flop_weight=results.sensitivity.default.flop_weight if results.sensitivity else None,
        facts=_facts(results, board),
        board=_board(board, "Methods on validation families"),
        train=_board(_ranked(results.train), "Methods on train families"),
        tasks=_tasks(per_task, [row.method for row in board]),
        task_table=listing.task_table(per_task) if per_task else None,
        pareto=_pareto(board, results.per_task),
        costs=_costs(per_task, [row.method for row in board]),
        campaign=_campaign(results.campaign, results.best_built_in) if results.campaign else None,
        test=_test(results),
        sensitivity=_sensitivity(results.sensitivity) if results.sensitivity else None,
        controls=listing.controls_table(results.controls) if results.controls else None,
        n_passed=sum(row.passed for row in results.controls),
        dictionaries=_dictionaries(results.dictionaries),
        explorer=latents.explorer(results.galleries, n_gallery),
        fresh=_fresh(results.fresh),
        proxies=_proxies(results.proxies),
        circuits=circuits.circuit_table(results.circuits) if results.circuits else None,
        drawings=_drawings(results.drawings),
        fates=circuits.FATES,
        failures=failed[:max_failures],
        n_failures=len(failed),
        declined=[(row.method, row.n_declined, row.n_tasks) for row in board if row.n_declined],
    )
    return re.sub(r"\n\s*\n+", "\n", text).strip() + "\n"


def _ranked(rows: Sequence[BoardT]) -> list[BoardT]:
    return sorted(rows, key=lambda row: (-row.reward_mean, row.method))


class Drawn(NamedTuple):
    """A plot as the template shows it."""

    svg: Markup
    n_marks: int


def _drawn(plot: Plot) -> Drawn:
    return Drawn(Markup(plot.svg()), plot.n_marks)


class Fact(NamedTuple):
    """One of the few numbers worth a glance."""

    name: str
    value: str
    note: str


def _facts(results: Results, board: Sequence[LeaderboardRow]) -> list[Fact]:
    facts = []
    if board:
        n = sum(row.verdict == "better" for row in board)
        facts.append(Fact("methods that help", f"{n} of {len(board)}", "better, on validation families"))
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
        ends = next(
            (
                wording.interval(one.validation_low, one.validation_high)
                for one in campaign.iterations
                if one.iteration == campaign.incumbent.iteration
            ),
            "",
        )
        value = wording.signed(campaign.incumbent.validation_reward)
        facts.append(Fact("found by the campaign", value, f"{ends}{against}"))
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


def _board(rows: Sequence[LeaderboardRow], caption: str) -> Board | None:
    if not rows:
        return None
    floor = wording.number(max(row.noise_floor for row in rows))
    return Board(_drawn(forest(rows)), listing.leaderboard_table(rows, caption), wording.sample(rows[0]), floor)


class TaskPanel(NamedTuple):
    """A plot of one task."""

    split: str
    family: str
    target: str
    plot: Drawn
    caption: str = ""


def _tasks(per_task: Sequence[TaskRow], order: Sequence[str]) -> list[TaskPanel]:
    """One panel per task, validation first; methods in the order of the leaderboard."""
    place = {method: i for i, method in enumerate(order)}
    # The oracle is far above all others: it would leave them no room.
    shown = [row for row in per_task if row.method != ORACLE]
    return [
        TaskPanel(
            split,
            family.replace("_", " "),
            target,
            _drawn(arms(sorted(rows, key=lambda row: (place.get(row.method, 99), row.method)))),
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
    return ParetoPlot(_drawn(pareto(board, ranges)), legend, wording.sample(board[0]))


def _costs(per_task: Sequence[TaskRow], order: Sequence[str]) -> list[TaskPanel]:
    """Score against FLOPs of each task, validation first."""
    places = {method: i + 1 for i, method in enumerate(order)}
    rows = [row for row in per_task if row.by_budget and row.method != ORACLE]
    return [
        TaskPanel(split, family.replace("_", " "), target, _drawn(cost_curve(of, places)))
        for (split, family, target), of in _by_task(rows)
    ]


def _by_task(rows: Sequence[TaskRow]) -> list[tuple[tuple[str, str, str], list[TaskRow]]]:
    """Rows of each (split, family, target), validation first."""
    groups: dict[tuple[str, str, str], list[TaskRow]] = {}
    for row in rows:
        groups.setdefault((row.split, row.family, row.target), []).append(row)
    return sorted(groups.items(), key=lambda item: (SPLITS.get(item[0][0], 9), item[0]))


class CampaignSection(NamedTuple):
    plot: Drawn
    table: Table
    n: int
    n_ok: int
    n_accepted: int
    researcher: str
    seed: int
    name: str
    incumbent: Incumbent | None
    incumbent_reward: str
    incumbent_spec: str
    built_in: LeaderboardRow | None
    built_in_reward: str


def _campaign(campaign: CampaignSummary, built_in: LeaderboardRow | None) -> CampaignSection | None:
    iterations, incumbent = campaign.iterations, campaign.incumbent
    if not iterations:
        return None
    return CampaignSection(
        _drawn(exploring.campaign_curve(campaign, built_in)),
        listing.campaign_table(iterations),
        len(iterations),
        sum(one.status == "ok" for one in iterations),
        sum(one.accepted for one in iterations),
        campaign.researcher,
        campaign.seed,
        campaign.campaign,
        incumbent,
        wording.signed(incumbent.validation_reward) if incumbent else "",
        wording.spec_text(incumbent.spec) if incumbent else "",
        built_in,
        wording.signed(built_in.reward_mean if built_in else None),
    )


class TestSection(NamedTuple):
    plot: Drawn
    summary: tuple[str, str]
    table: Table
    last: int
    """How many times the split was opened."""
    found: str | None
    oracle: str


def _test(results: Results) -> TestSection | None:
    if not results.test:
        return None
    last = max(row.opening for row in results.test)
    opened = [row for row in results.test if row.opening == last]
    rows = _ranked([row for row in opened if row.method != ORACLE])
    oracle = next((row for row in opened if row.method == ORACLE), None)
    if not rows:
        return None
    every = sorted(results.test, key=lambda row: (-row.opening, -row.reward_mean, row.method))
    opening = Column[TestRow](
        TestRow.label("opening"), lambda row: Cell(str(row.opening), row.opening), True, TestRow.hint("opening")
    )
    place = next((i for i, row in enumerate(rows) if row.found), None)
    found = None
    if place is not None:
        row = rows[place]
        found = f"The campaign's best, {row.method}, is number {place + 1} of {len(rows)}:"
        found = f"{found} {wording.change(row.estimate('reward'))}, {row.verdict}."
    return TestSection(
        _drawn(forest(rows)),
        wording.summary(rows),
        listing.leaderboard_table(every, "Methods on the sealed test families", [opening]),
        last,
        found,
        wording.change(oracle.estimate("reward")) if oracle else "",
    )


class HeatCell(NamedTuple):
    rank: int
    heat: int
    """Percent of the full colour: 100 for the first place."""
    reward: str
    default: bool


class HeatRow(NamedTuple):
    method: str
    cells: list[HeatCell]


class HeatColumn(NamedTuple):
    weight: str
    default: bool


class SensitivitySection(NamedTuple):
    forms: list[tuple[str, int]]
    columns: list[HeatColumn]
    rows: list[HeatRow]
    taus: list[str]
    lowest: str
    default: str
    n_marks: int


def _sensitivity(values: SensitivityTable) -> SensitivitySection | None:
    """Rank of each method (rows) under each form and weight (columns), with how far the order moved."""
    if not values.rows:
        return None
    default = (values.default.form, values.default.flop_weight)
    taus = {(row.form, row.flop_weight): row.kendall_tau for row in values.kendall_tau}
    forms = [default[0], *sorted({form for form, _ in taus} - {default[0]})]
    columns = sorted(taus, key=lambda key: (forms.index(key[0]), key[1]))
    cells = {(row.method, row.form, row.flop_weight): row for row in values.rows}
    methods = sorted({row.method for row in values.rows}, key=lambda m: (cells[(m, *default)].rank, m))
    n = max(len(methods), 2)
    rows = []
    for method in methods:
        mine = [(key, cells[(method, *key)]) for key in columns]
        heats = [
            HeatCell(one.rank, round(100 * (n - one.rank) / (n - 1)), wording.signed(one.reward_mean), key == default)
            for key, one in mine
        ]
        rows.append(HeatRow(method, heats))
    return SensitivitySection(
        [(form, sum(key[0] == form for key in columns)) for form in forms],
        [HeatColumn(f"{key[1]:g}", key == default) for key in columns],
        rows,
        [wording.number(taus[key], 2) for key in columns],
        wording.number(min(taus.values()), 2),
        f"{default[0]}, \u03bb = {default[1]:g}",
        len(methods) * len(columns),
    )


class Panel(NamedTuple):
    metric: str
    title: str
    plot: Drawn | None


class Place(NamedTuple):
    """The dictionaries of one hook point."""

    target: str
    hook_point: str
    small: bool
    """Ablation costs too little there for the loss recovered to say anything."""
    panels: list[Panel]


class DictionarySection(NamedTuple):
    places: list[Place]
    kept: Table
    every: Table | None
    n_seeds: int
    legend: list[tuple[str, Markup]]


def _dictionaries(rows: Sequence[DictionaryRow]) -> DictionarySection | None:
    """Per hook point one panel per metric; a metric that no row has is said to be missing."""
    if not rows:
        return None
    groups: dict[tuple[str, str], list[DictionaryRow]] = {}
    for row in rows:
        groups.setdefault((row.target, row.hook_point), []).append(row)
    kept = [row for of in groups.values() for row in of if row.seed == min(one.seed for one in of)]
    style = sweeps.styles(row.architecture for row in rows)
    places = []
    for (target, hook), of in sorted(groups.items()):
        drawn = [(metric, title, sweeps.sweep(of, metric, title, style)) for metric, title in sweeps.PANELS]
        panels = [Panel(metric, title, _drawn(plot) if plot else None) for metric, title, plot in drawn]
        places.append(Place(target, hook, any(row.loss_recovered_small_denominator for row in of), panels))
    return DictionarySection(
        places,
        listing.dictionary_table(kept),
        listing.dictionary_table(rows) if len(rows) > len(kept) else None,
        len({row.seed for row in rows}),
        [(name, Markup(sweeps.key(one))) for name, one in style.items()],
    )


class FreshSection(NamedTuple):
    table: Table
    every: Table
    n: int
    n_worse: int


def _fresh(rows: Sequence[FreshRow]) -> FreshSection | None:
    if not rows:
        return None
    over_all = [row for row in rows if row.task == "all"]
    each = [row for row in rows if row.task != "all"]
    return FreshSection(
        listing.fresh_table(over_all, "Old instances against fresh ones, over all tasks"),
        listing.fresh_table(each, "Old instances against fresh ones, task by task"),
        sum(row.gap is not None for row in over_all),
        sum(row.gap_low is not None and row.gap_low > 0 for row in over_all),
    )


class ProxySection(NamedTuple):
    panels: list[tuple[str, Drawn]]
    table: Table
    n_clear: int
    n: int


def _proxies(rows: Sequence[ProxyRow]) -> ProxySection | None:
    if not rows:
        return None
    ordered = proxies.ranked(rows)
    targets = sorted({row.target for row in ordered})
    return ProxySection(
        [(name, _drawn(proxies.proxy_forest([row for row in ordered if row.target == name]))) for name in targets],
        proxies.proxy_table(ordered),
        sum(row.spearman.excludes_zero for row in ordered),
        len(ordered),
    )


class Drawing(NamedTuple):
    title: str
    svg: Markup
    note: str
    counts: dict[str, int]


def _drawings(drawings: Sequence[CircuitDrawing]) -> list[Drawing]:
    return [
        Drawing(one.title, Markup(circuits.draw_circuit(one)), one.note, circuits.fates(one.edges)) for one in drawings
    ]
