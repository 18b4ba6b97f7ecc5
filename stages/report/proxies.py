"""Which metric of a dictionary predicts what the method built on it is worth: a forest of rank correlations."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stages.contracts.dictionary_rows import ProxyRow, Role
from stages.contracts.record import Estimate
from stages.report.drawing import Plot, Shape
from stages.report.scales import Scale
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import DASH, change, number, shorten

__all__ = ["KINDS", "proxy_forest", "proxy_table", "ranked", "said", "telling"]


class Kind(NamedTuple):
    """A correlation that is drawn."""

    field: str
    words: str
    shape: Shape
    y: int
    """Pixels below the middle of the row."""

    def of(self, row: ProxyRow) -> Estimate:
        value: Estimate = getattr(row, self.field)
        return value


KINDS = (
    Kind("spearman", ProxyRow.label("spearman"), "circle", -7),
    Kind("partial_l0", ProxyRow.label("partial_l0"), "diamond", 4),
    Kind("partial_compute", ProxyRow.label("partial_compute"), "square", 13),
)
"""The last two are partial correlations."""
ROLES: Mapping[Role, str] = {
    "primary": "Named beforehand and tested alone",
    "positive control": "Must correlate",
    "negative control": "Must not correlate",
}
ROW = 46
AT_ONCE = 4
"""Metrics of a target that are drawn at least; the others are folded away."""


def ranked(rows: Sequence[ProxyRow]) -> list[ProxyRow]:
    """Strongest first, whatever the sign; metrics without a value last."""

    def strength(row: ProxyRow) -> float:
        return -1.0 if row.spearman.value is None else abs(row.spearman.value)

    return sorted(rows, key=lambda row: (-strength(row), row.metric))


def telling(rows: Sequence[ProxyRow]) -> list[ProxyRow]:
    """Those that are drawn at once: what can be told from 0, and the strongest of the others up to a handful."""
    clear = [row for row in rows if row.spearman.excludes_zero]
    others = [row for row in rows if not row.spearman.excludes_zero and row.spearman.value is not None]
    shown = {id(row) for row in [*clear, *others[: max(0, AT_ONCE - len(clear))]]}
    return [row for row in rows if id(row) in shown]


def said(rows: Sequence[ProxyRow]) -> list[str]:
    """What the metric that was named beforehand shows, and whether the controls show what they must; none where the
    rows say nothing of either."""
    pooled = [row for row in rows if row.target == "all"] or list(rows)
    return [_sentence(row) for role in ROLES for row in pooled if row.role == role]


def _sentence(row: ProxyRow) -> str:
    found = row.spearman if row.over_targets is None else row.over_targets
    words = f"{ROLES[row.role]} ({row.metric.replace('_', ' ')}): {change(found, 2)}"
    if row.over_targets is not None:
        words += f", mean over {row.n_targets} targets"
    if row.p is not None:
        words += f", p = {row.p:.3f}"
    if row.ceiling is not None:
        words += f"; at most {row.ceiling:.2f} could be seen at these reliabilities"
    return words + "."


def proxy_forest(rows: Sequence[ProxyRow]) -> Plot:
    """Correlation of each metric with reward, and the same at equal L0 and at equal compute; ticks are nulls.

    Args:
        rows: of one target, in the order they are drawn in.
    """
    x = Scale(-1.05, 1.05, (-1.0, -0.5, 0.0, 0.5, 1.0))
    plot = Plot(x, ROW * len(rows) + 6, "Rank correlation of each metric with reward, with 95% intervals")
    plot.axis_x("Spearman's rank correlation with reward")
    plot.vertical(0.0, "zero")
    for i, row in enumerate(rows):
        y = ROW * i + 23
        plot.text("-12", y, shorten(row.metric.replace("_", " "), 24), "rowlabel", "end")
        plot.text("100%", y, change(row.spearman, 2), "verdict", "start")
        for kind in reversed(KINDS):
            found = kind.of(row)
            if found.value is None:
                continue
            at = y + kind.y
            if found.null is not None:
                # The null is a size: a correlation may lie beyond it on either side.
                plot.tick(abs(found.null), at, 4, "null")
                plot.tick(-abs(found.null), at, 4, "null")
            plot.mark(
                found.value, at, f"proxy {kind.field}{' clear' if found.excludes_zero else ''}",
                f"{row.metric}, {kind.words}: {change(found)}, null {number(found.null)}, n = {row.n} dictionaries",
                x_interval=(found.low, found.high), radius=5.5 if kind.field == "spearman" else 3.5, shape=kind.shape,
            )  # fmt: skip
    return plot


def proxy_table(rows: Sequence[ProxyRow]) -> Table:
    def of(kind: Kind) -> Column[ProxyRow]:
        def cell(row: ProxyRow) -> Cell:
            found = kind.of(row)
            if found.value is None:
                return Cell(DASH, float("-inf"))
            null = f" null {number(found.null, 2)}" if found.null is not None else ""
            return Cell(f"{change(found, 2)}{null}", found.value)

        return Column(f"{kind.words} [95%]", cell, True, ProxyRow.hint(kind.field))

    def optional(field: str, words: str) -> Column[ProxyRow]:
        def cell(row: ProxyRow) -> Cell:
            found: Estimate | None = getattr(row, field)
            if found is None or found.value is None:
                return Cell(DASH, float("-inf"))
            return Cell(change(found, 2), found.value)

        return Column(words, cell, True, ProxyRow.hint(field))

    def plain(field: str) -> Column[ProxyRow]:
        def cell(row: ProxyRow) -> Cell:
            value: float | None = getattr(row, field)
            return Cell(DASH, float("-inf")) if value is None else Cell(number(value, 2), value)

        return Column(ProxyRow.label(field), cell, True, ProxyRow.hint(field))

    columns = [
        Column[ProxyRow]("metric", lambda row: Cell(row.metric, row.metric, "name"), hint=ProxyRow.hint("metric")),
        *map(of, KINDS),
        Column[ProxyRow]("role", lambda row: row.role, hint=ProxyRow.hint("role")),
        optional("over_targets", "over targets [95%]"),
        optional("icc_reward", "ICC, reward [95%]"),
        optional("icc_metric", "ICC, metric [95%]"),
        plain("ceiling"),
        plain("p"),
        Column[ProxyRow]("target", lambda row: row.target, hint=ProxyRow.hint("target")),
        Column[ProxyRow]("n", lambda row: Cell(str(row.n), row.n), True, ProxyRow.hint("n")),
    ]
    return table("Which metric predicts reward", columns, rows)
