"""What the later sections show: campaign, sealed test, sensitivity, dictionaries, proxies, circuits."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from markupsafe import Markup

from stages.contracts.circuit_rows import CircuitDrawing
from stages.contracts.dictionary_rows import DictionaryRow, ProxyRow
from stages.contracts.journal import CampaignSummary, Incumbent
from stages.contracts.measurement_rows import FreshRow, SensitivityTable
from stages.contracts.reward_rows import LeaderboardRow, TestRow
from stages.report import circuits, exploring, listing, proxies, sweeps, wording
from stages.report.comparing import forest
from stages.report.drawing import Drawn
from stages.report.results import Results
from stages.report.tables import Cell, Column, Table

__all__ = [
    "ORACLE",
    "campaign_section",
    "dictionary_section",
    "drawings",
    "fresh_section",
    "proxy_section",
    "ranked",
    "sensitivity_section",
    "test_section",
]

ORACLE = "oracle"
"""The control that is given the truth; it is in the tables, and would dwarf the others in a plot."""
BoardT = TypeVar("BoardT", bound=LeaderboardRow)


def ranked(rows: Sequence[BoardT]) -> list[BoardT]:
    return sorted(rows, key=lambda row: (-row.reward_mean, row.method))


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


def campaign_section(campaign: CampaignSummary, built_in: LeaderboardRow | None) -> CampaignSection | None:
    iterations, incumbent = campaign.iterations, campaign.incumbent
    if not iterations:
        return None
    return CampaignSection(
        Drawn.of(exploring.campaign_curve(campaign, built_in)),
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


def test_section(results: Results) -> TestSection | None:
    if not results.test:
        return None
    last = max(row.opening for row in results.test)
    opened = [row for row in results.test if row.opening == last]
    rows = ranked([row for row in opened if row.method != ORACLE])
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
        Drawn.of(forest(rows)),
        wording.summary(rows, [row for row in results.statements if "test" in row.split]),
        listing.leaderboard_table(every, "Methods on the sealed test tasks", [opening]),
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


def sensitivity_section(values: SensitivityTable) -> SensitivitySection | None:
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


def dictionary_section(rows: Sequence[DictionaryRow]) -> DictionarySection | None:
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
        panels = [Panel(metric, title, Drawn.of(plot) if plot else None) for metric, title, plot in drawn]
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


def fresh_section(rows: Sequence[FreshRow]) -> FreshSection | None:
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


class ProxyPanel(NamedTuple):
    """The metrics of one target's dictionaries."""

    name: str
    shown: Drawn
    rest: Drawn | None
    """Those of which nothing can be told."""
    n_rest: int


class ProxySection(NamedTuple):
    said: list[str]
    panels: list[ProxyPanel]
    table: Table
    n_clear: int
    n: int


def proxy_section(rows: Sequence[ProxyRow]) -> ProxySection | None:
    if not rows:
        return None
    ordered = proxies.ranked(rows)
    targets = sorted({row.target for row in ordered})
    metrics = [row for row in ordered if row.role in ("primary", "secondary")]
    return ProxySection(
        proxies.said(ordered),
        [_proxy_panel(name, [row for row in ordered if row.target == name]) for name in targets],
        proxies.proxy_table(ordered),
        sum(row.spearman.excludes_zero for row in metrics),
        len(metrics),
    )


def _proxy_panel(name: str, rows: Sequence[ProxyRow]) -> ProxyPanel:
    shown = proxies.telling(rows)
    rest = [row for row in rows if row not in shown and row.spearman.value is not None]
    return ProxyPanel(
        name,
        Drawn.of(proxies.proxy_forest(shown)),
        Drawn.of(proxies.proxy_forest(rest)) if rest else None,
        len(rest),
    )


class Drawing(NamedTuple):
    title: str
    svg: Markup
    note: str
    counts: dict[str, int]


def drawings(drawn: Sequence[CircuitDrawing]) -> list[Drawing]:
    return [
        Drawing(one.title, Markup(circuits.draw_circuit(one)), one.note, circuits.fates(one.edges)) for one in drawn
    ]
