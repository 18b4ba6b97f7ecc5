"""What the page says about research: the path of incumbents, and methods by the number of labels."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from stages.contracts.journal import CampaignSummary
from stages.contracts.record import Estimate
from stages.contracts.research_rows import LabelsRow, PathRow
from stages.report.drawing import Drawn, Plot
from stages.report.scales import Scale, linear
from stages.report.sweeps import Style, key, styles
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import DASH, change, interval, number, score, signed

__all__ = [
    "LabelsSection",
    "PathSection",
    "Traced",
    "doublings",
    "judgement",
    "labels_section",
    "path_section",
    "traces",
]

LAST = float("-inf")


def doublings(last: float, first: float = 1.0) -> Scale:
    """An axis of log2 from ``first`` to ``last``, with ticks at powers of two."""
    ticks = [2.0**i for i in range(40) if first <= 2.0**i <= last]
    return Scale(first / 1.12, max(last, first * 2) * 1.12, tuple(ticks[:: max(1, -(-len(ticks) // 9))]), log=True)


Traced = tuple[str, float, Estimate, str]
"""A mark: whose it is, where it stands, its value with its interval, and what is said of it."""


def traces(plot: Plot, style: dict[str, Style], marks: Sequence[Traced]) -> None:
    """A line of marks for each name, side by side on a log axis, so that intervals do not cover each other."""
    for i, name in enumerate(reversed(style)):
        shift = 1 + 0.03 * (i - (len(style) - 1) / 2)
        points = [(at * shift, value, said) for of, at, value, said in marks if of == name]
        for (x1, one, _), (x2, other, _) in pairwise(points):
            plot.line(x1, one.value or 0.0, x2, other.value or 0.0, f"trace {style[name].kind}")
        for at, value, said in points:
            plot.mark(
                at, value.value or 0.0, f"dictionary {style[name].kind}", said,
                y_interval=(value.low, value.high), shape=style[name].shape, radius=4.5,
            )  # fmt: skip


class PathSection(NamedTuple):
    plot: Drawn
    table: Table
    noise: str
    sentence: str


def judgement(row: PathRow) -> str:
    """Does selection among equals explain the distance between validation and test?

    The interval is the test's alone, so it says nothing of validation families that differ from the test's.
    """
    if row.excess is None:
        return f"{row.status} on the test split"
    low, high = row.excess
    return "more than selection" if low > 0 else "less than selection" if high < 0 else "cannot be told from selection"


def path_section(rows: Sequence[PathRow], campaign: CampaignSummary) -> PathSection | None:
    """The Goodhart curve of a campaign; None where it has no incumbent."""
    if not rows or not campaign.iterations:
        return None
    last = rows[-1]
    said = f"{last.name} was chosen with {signed(last.validation)} and earns {DASH} on the sealed test"
    if last.test is not None:
        asked = f"{last.asked} proposal{'s' if last.asked > 1 else ''}"
        said = (
            f"{last.name} was chosen with {signed(last.validation)} on validation and earns"
            f" {change(last.estimate('test'))} on the sealed test. The best of {asked} would lose"
            f" {number(last.shrinkage)} by selection alone: {judgement(last)}."
        )
    return PathSection(Drawn.of(path_plot(rows, campaign)), path_table(rows), number(last.noise), said)


def path_plot(rows: Sequence[PathRow], campaign: CampaignSummary) -> Plot:
    """Best so far on train and validation, and the test reward of every incumbent, against log2 of the evaluations."""
    n = len(campaign.iterations)
    train: list[float] = []
    for one in campaign.iterations:
        train.append(max([0.0 if one.train_reward is None else one.train_reward, *train[-1:]]))
    validation = [one.best_so_far for one in campaign.iterations]
    ends = [end for row in rows for end in (row.test, row.test_low, row.test_high, row.validation - row.shrinkage)]
    ends += [end for row in rows for end in (row.validation, row.train)]
    y = linear([*train, *validation, *(end for end in ends if end is not None)], include=(0.0,))
    plot = Plot(doublings(n), 320, "Best so far on train and validation, and test reward of every incumbent", y)
    plot.axis_y()
    plot.axis_x("proposals judged (log2 scale)", grid=False)
    plot.horizontal(0.0, "zero")
    _steps(plot, [(i + 1.0, value) for i, value in enumerate(train)], "trace s0")
    _steps(plot, [(i + 1.0, value) for i, value in enumerate(validation)], "best")
    tests = [(float(row.evaluations), row.test) for row in rows if row.test is not None]
    _steps(plot, [*tests, (float(n), tests[-1][1])] if tests else [], "trace s4")
    shrunk = [(float(row.evaluations), row.validation - row.shrinkage) for row in rows]
    _steps(plot, [*shrunk, (float(n), shrunk[-1][1])], "reference")
    for row in rows:
        at = float(row.evaluations)
        plot.mark(
            at, row.train, "s0", f"{row.name}: train {change(row.estimate('train'))}",
            y_interval=(row.train_low, row.train_high), shape="triangle", radius=4.5,
        )  # fmt: skip
        plot.mark(at, row.validation, "accepted", f"{row.name}: validation {signed(row.validation)}, as released")
        if row.test is not None:
            plot.mark(
                at, row.test, "s4", f"{row.name}: sealed test {change(row.estimate('test'))}, {judgement(row)}",
                y_interval=(row.test_low, row.test_high), shape="diamond",
            )  # fmt: skip
    return plot


def _steps(plot: Plot, points: Sequence[tuple[float, float]], kind: str) -> None:
    for (x1, y1), (x2, y2) in pairwise(points):
        plot.line(x1, y1, x2, y1, kind)
        plot.line(x2, y1, x2, y2, kind)


def path_table(rows: Sequence[PathRow]) -> Table:
    model = PathRow

    def beyond(row: PathRow) -> Cell:
        return Cell(DASH, LAST) if row.excess is None else Cell(interval(*row.excess), row.excess[0])

    columns: list[Column[PathRow]] = [
        Column("incumbent", lambda row: Cell(row.name, row.name, "name")),
        Column("proposals", lambda row: Cell(str(row.evaluations), row.evaluations), True, model.hint("evaluations")),
        Column("train [95%]", lambda row: Cell(change(row.estimate("train")), row.train), True, model.hint("train")),
        Column("validation", lambda row: Cell(signed(row.validation), row.validation), True, model.hint("validation")),
        Column("shrinkage", lambda row: Cell(number(row.shrinkage), row.shrinkage), True, model.hint("shrinkage")),
        Column(
            "sealed test [95%]",
            lambda row: Cell(DASH, LAST) if row.test is None else Cell(change(row.estimate("test")), row.test),
            True,
            model.hint("test"),
        ),
        Column("beyond selection", beyond, True, "Gap between validation and test less the shrinkage, 95% interval."),
        Column("so", lambda row: Cell(judgement(row), "", "quiet")),
    ]
    return table("Every incumbent of the campaign on the sealed test", columns, rows)


class LabelsSection(NamedTuple):
    plots: list[tuple[str, str, Drawn]]
    """(name, title, plot)."""
    legend: list[tuple[str, Markup]]
    table: Table
    split: str


def labels_section(rows: Sequence[LabelsRow]) -> LabelsSection | None:
    """Reward and scores by the number of labels."""
    if not rows:
        return None
    style = styles({row.method for row in rows})
    plots = [
        ("labels-reward", "Reward", Drawn.of(labels_plot(rows, style, "reward"))),
        (
            "labels-score",
            "Score with the method; dashed: the agent alone",
            Drawn.of(labels_plot(rows, style, "assisted")),
        ),
    ]
    legend = [(name, Markup(key(one))) for name, one in style.items()]
    return LabelsSection(plots, legend, labels_table(rows), rows[0].split)


def labels_plot(rows: Sequence[LabelsRow], style: dict[str, Style], field: str) -> Plot:
    """One number of every method against the number of labels."""
    numbers = sorted({row.labels for row in rows})
    shown = [row.estimate(name) for row in rows for name in (field, *(["baseline"] if field == "assisted" else []))]
    y = linear([end for one in shown for end in (one.low, one.high)], include=(0.0,) if field == "reward" else ())
    x = doublings(numbers[-1], numbers[0])
    x = Scale(x.low, x.high, tuple(float(n) for n in numbers[:: max(1, -(-len(numbers) // 9))]), log=True)
    plot = Plot(x, 230, f"{'Reward' if field == 'reward' else 'Score'} by the number of labels", y)
    plot.axis_y()
    plot.axis_x("labelled instances (log2 scale)", grid=False)
    if field == "reward":
        plot.horizontal(0.0, "zero")
    else:
        alone = sorted({(float(row.labels), row.baseline) for row in rows})
        for (x1, y1), (x2, y2) in pairwise(alone):
            plot.line(x1, y1, x2, y2, "reference")
    marks = []
    for row in sorted(rows, key=lambda row: row.labels):
        value = row.estimate(field)
        marks.append((row.method, row.labels, value, f"{row.method}, {row.labels} labels: {change(value)}"))
    traces(plot, style, marks)
    return plot


def labels_table(rows: Sequence[LabelsRow]) -> Table:
    model = LabelsRow
    ordered = sorted(rows, key=lambda row: (row.method, row.labels))

    def estimated(field: str, name: str, sign: bool) -> Column[LabelsRow]:
        def cell(row: LabelsRow) -> Cell:
            found = row.estimate(field)
            return Cell(change(found) if sign else score(found), found.value or 0.0)

        return Column(f"{name} [95%]", cell, True, model.hint(field))

    columns: list[Column[LabelsRow]] = [
        Column("method", lambda row: Cell(row.method, row.method, "name")),
        Column("labels", lambda row: Cell(str(row.labels), row.labels), True, model.hint("labels")),
        estimated("reward", "reward", True),
        estimated("baseline", "agent alone", False),
        estimated("assisted", "with the method", False),
        Column("n", lambda row: Cell(f"{row.n_tasks} tasks", row.n_tasks, "", f"{row.n_seeds} seeds"), True),
    ]
    return table("Methods by the number of labels", columns, ordered)
