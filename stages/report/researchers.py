"""What the page says about researchers compared: replayed on the table of fragments, and in campaigns for real."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup

from stages.contracts.compare_rows import CompareRow, Comparison, LiveRow, ProfileRow, TabledRow
from stages.report.drawing import Drawn, Plot
from stages.report.research import doublings, traces
from stages.report.scales import Scale, linear
from stages.report.sweeps import Style, key, styles
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import DASH, change, interval, number, signed, spread

__all__ = ["CompareSection", "LiveSection", "compare_section", "live_section"]


class CompareSection(NamedTuple):
    panels: list[tuple[str, str, Drawn, str]]
    """(name, title, plot, caption)."""
    table: Table
    legend: list[tuple[str, Markup]]
    seeds: int
    budget: int
    optimum: str
    fits: list[str]
    tasks: Table | None


def compare_section(found: Comparison) -> CompareSection | None:
    if not found.rows:
        return None
    style = styles(row.researcher for row in found.rows)
    null = [end for one in found.null for end in (one.low, one.high)]
    panels = [
        (
            "compare-train",
            "Best train reward",
            _against(found, style, "train", (found.optimum_train, *null)),
            "Bars: the best of as many random programs, 95% of draws, exactly; dashed: their mean. Green: the optimum.",
        ),
        (
            "compare-validation",
            "Validation reward of what was found",
            _against(found, style, "validation", (found.optimum_validation,)),
            "Of the program with the best value, not rounded. Green: the optimum.",
        ),
        (
            "compare-better",
            "P(> best of n random)",
            _against(found, style, "better", (0.0, 1.0)),
            "Dashed: .5, no better than as many random programs.",
        ),
    ]
    drawn = [(name, title, Drawn.of(plot), caption) for name, title, plot, caption in panels]
    if found.profiles:
        said = f"Share of runs (a campaign on a validation task) that earn more, after {found.budget} proposals."
        drawn.append(("profile", "Performance profile", Drawn.of(profile_plot(found.profiles, style)), said))
    if any(row.points for row in found.scaling):
        said = "Line: optimum less a power of the compute, fitted to the distance from the optimum."
        drawn.append(("compare-compute", "Reward against compute", Drawn.of(compute_plot(found, style)), said))
    fits = [
        f"{row.researcher}: {number(row.exponent, 2)} {spread(row.exponent_low, row.exponent_high, 2)}"
        for row in found.scaling
        if row.exponent is not None
    ]
    optimum = f"train {signed(found.optimum_train)}, validation {signed(found.optimum_validation)}"
    legend = [(name, Markup(key(one))) for name, one in style.items()]
    return CompareSection(
        drawn, compare_table(found.rows), legend, found.seeds, found.budget, optimum, fits, tabled_table(found.tasks)
    )


def _against(found: Comparison, style: dict[str, Style], field: str, include: Sequence[float]) -> Plot:
    """One number of every researcher against the number of proposals."""
    ends = [end for row in found.rows for end in (row.estimate(field).low, row.estimate(field).high)]
    ns = sorted({row.n for row in found.rows})
    y = linear([end for end in ends if end is not None], include=include, n_ticks=4)
    titles = {"train": "Best train reward", "validation": "Validation reward", "better": "P(> best of n random)"}
    plot = Plot(doublings(ns[-1], ns[0]), 230, f"{titles[field]} of each researcher against proposals", y)
    plot.axis_y()
    plot.axis_x("proposals (log2 scale)", grid=False)
    if field == "better":
        plot.horizontal(0.5, "reference")
    else:
        plot.horizontal(found.optimum_train if field == "train" else found.optimum_validation, "front")
    if field == "train":
        for null in found.null:
            plot.line(null.n, null.low, null.n, null.high, "nullband")
        for a, b in pairwise(found.null):
            plot.line(a.n, a.mean, b.n, b.mean, "reference")
    marks = []
    for row in found.rows:
        value = row.estimate(field)
        said = f"{row.researcher}, {row.n} proposals: {signed(value.value)} {interval(value.low, value.high)}"
        marks.append((row.researcher, row.n, value, f"{said}, {row.seeds} campaigns"))
    traces(plot, style, marks)
    return plot


def profile_plot(rows: Sequence[ProfileRow], style: dict[str, Style]) -> Plot:
    """Share of runs above each reward, with a band over seeds."""
    x = linear([row.tau for row in rows], pad=0.02)
    y = Scale(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
    plot = Plot(x, 230, "Share of runs that earn more than each reward", y)
    plot.axis_y()
    plot.axis_x("validation reward", grid=False)
    for name in reversed(style):
        mine = [row for row in rows if row.researcher == name]
        for row in mine:
            plot.line(row.tau, row.low, row.tau, row.high, f"profileband {style[name].kind}")
        for one, other in pairwise(mine):
            plot.line(one.tau, one.share, other.tau, other.share, f"trace {style[name].kind}")
        for row in mine[:: max(1, len(mine) // 8)]:
            said = f"{name}: {row.share:.0%} of runs above {signed(row.tau)} {spread(row.low, row.high, 2)}"
            plot.mark(row.tau, row.share, f"dictionary {style[name].kind}", said, shape=style[name].shape, radius=3.5)
    return plot


def compute_plot(found: Comparison, style: dict[str, Style]) -> Plot:
    """Best train reward against CPU seconds of judging, and the fitted curves."""
    every = [point for row in found.scaling for point in row.points if point.cpu_s > 0]
    first, last = min(point.cpu_s for point in every), max(point.cpu_s for point in every)
    ends = [end for point in every for end in (point.train_low, point.train_high)]
    y = linear(ends, include=(found.optimum_train,), n_ticks=4)
    plot = Plot(doublings(last, first), 230, "Best train reward against CPU seconds of judging", y)
    plot.axis_y()
    plot.axis_x("CPU seconds of judging (log2 scale)", grid=False)
    plot.horizontal(found.optimum_train, "front")
    for row in reversed(found.scaling):
        one = style[row.researcher]
        curve = [(point.cpu_s, point.fitted) for point in row.points if point.fitted is not None]
        for (x1, y1), (x2, y2) in pairwise(curve):
            if min(y1, y2) >= y.low:
                plot.line(x1, y1, x2, y2, f"trace {one.kind}")
        for point in row.points:
            if point.cpu_s > 0:
                said = f"{row.researcher}, {point.n} proposals, {point.cpu_s:,.0f} CPU s: {signed(point.train)}"
                plot.mark(
                    point.cpu_s, point.train, f"dictionary {one.kind}",
                    f"{said} {interval(point.train_low, point.train_high)}",
                    y_interval=(point.train_low, point.train_high), shape=one.shape, radius=3.5,
                )  # fmt: skip
    return plot


def compare_table(rows: Sequence[CompareRow]) -> Table:
    model = CompareRow

    def estimated(field: str, name: str, places: int = 3, sign: bool = True) -> Column[CompareRow]:
        def cell(row: CompareRow) -> Cell:
            found = row.estimate(field)
            ends: Callable[..., str] = interval if sign else spread
            text = signed(found.value, places) if sign else number(found.value, places)
            return Cell(f"{text} {ends(found.low, found.high, places)}", found.value or 0.0)

        return Column(f"{name} [95%]", cell, True, model.hint(field))

    columns: list[Column[CompareRow]] = [
        Column("researcher", lambda row: Cell(row.researcher, row.researcher, "name")),
        Column("n", lambda row: Cell(str(row.n), row.n), True, model.hint("n")),
        estimated("train", "best train"),
        Column("of optimum", lambda row: Cell(f"{row.of_optimum:.0%}", row.of_optimum), True, model.hint("of_optimum")),
        estimated("better", "P(> best of n random)", 2, sign=False),
        estimated("validation", "validation"),
        estimated("validation_better", "P(validation > random)", 2, sign=False),
        Column("gap", lambda row: Cell(signed(row.gap), row.gap), True, model.hint("gap")),
    ]
    return table("Researchers on the table of fragments", columns, rows)


def tabled_table(rows: Sequence[TabledRow]) -> Table | None:
    """What every fragment of the grammar earns, a row a task; None in a file of before there was one."""
    if not rows:
        return None
    model = TabledRow

    def count(field: str) -> Column[TabledRow]:
        def cell(row: TabledRow) -> Cell:
            found: int = getattr(row, field)
            return Cell(f"{found:,}", found)

        return Column(field, cell, True, model.hint(field))

    columns: list[Column[TabledRow]] = [
        Column("task", lambda row: Cell(row.task, row.task, "name")),
        Column("split", lambda row: Cell(row.split, row.split)),
        Column("kind", lambda row: Cell(row.kind, row.kind)),
        count("fragments"),
        count("answered"),
        count("beyond"),
        Column("median", lambda row: Cell(signed(row.median), row.median), True, model.hint("median")),
        Column(
            "best [95%]",
            lambda row: Cell(f"{signed(row.best)} {interval(row.best_low, row.best_high)}", row.best),
            True,
            model.hint("best"),
        ),
        Column("best fragment", lambda row: Cell(row.fragment or DASH, row.fragment), False, model.hint("fragment")),
    ]
    return table("What the fragments of the grammar earn on each task", columns, rows)


class LiveSection(NamedTuple):
    plots: list[tuple[str, str, Drawn]]
    """(name, title, plot)."""
    legend: list[tuple[str, Markup]]
    table: Table
    seeds: int


def live_section(rows: Sequence[LiveRow]) -> LiveSection | None:
    """Campaigns that were run."""
    if not rows:
        return None
    style = styles(row.researcher for row in rows)
    titles = {"train": "Best train reward", "validation": "Validation reward of the incumbent"}
    plots = [
        (f"live-{field}", title, Drawn.of(live_plot(rows, style, field, title))) for field, title in titles.items()
    ]
    legend = [(name, Markup(key(one))) for name, one in style.items()]
    return LiveSection(plots, legend, live_table(rows), rows[0].seeds)


def live_plot(rows: Sequence[LiveRow], style: dict[str, Style], field: str, title: str) -> Plot:
    """One number of every researcher against the number of proposals."""
    ends = [end for row in rows for end in (row.estimate(field).low, row.estimate(field).high)]
    y = linear([end for end in ends if end is not None], include=(0.0,), n_ticks=4)
    ns = sorted({row.n for row in rows})
    plot = Plot(doublings(ns[-1], ns[0]), 230, f"{title} of each researcher against proposals", y)
    plot.axis_y()
    plot.axis_x("proposals (log2 scale)", grid=False)
    plot.horizontal(0.0, "zero")
    marks = []
    for row in rows:
        value = row.estimate(field)
        said = f"{row.researcher}, {row.n} proposals: {change(value)}, {row.seeds} campaigns"
        marks.append((row.researcher, row.n, value, said))
    traces(plot, style, marks)
    return plot


def live_table(rows: Sequence[LiveRow]) -> Table:
    model = LiveRow

    def estimated(field: str, name: str) -> Column[LiveRow]:
        def cell(row: LiveRow) -> Cell:
            found = row.estimate(field)
            return Cell(DASH if found.value is None else change(found), found.value or 0.0)

        return Column(f"{name} [95%]", cell, True, model.hint(field))

    columns: list[Column[LiveRow]] = [
        Column("researcher", lambda row: Cell(row.researcher, row.researcher, "name")),
        Column("n", lambda row: Cell(str(row.n), row.n), True, model.hint("n")),
        estimated("train", "best train"),
        estimated("over_random", "over random"),
        estimated("validation", "validation"),
        Column("scored", lambda row: Cell(f"{row.scored:.0%}", row.scored), True, model.hint("scored")),
    ]
    return table("Researchers in campaigns", columns, rows)
