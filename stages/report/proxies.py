"""Which metric of a dictionary predicts what the method built on it is worth: a forest of rank correlations."""

from collections.abc import Sequence

from stages.report.drawing import Plot, Shape
from stages.report.results import Row
from stages.report.scales import Scale
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import DASH, interval, number, shorten, signed

__all__ = ["KINDS", "proxy_forest", "proxy_table", "ranked"]

KINDS: tuple[tuple[str, str, Shape], ...] = (
    ("spearman", "rank correlation", "circle"),
    ("partial_l0", "at equal L0", "diamond"),
    ("partial_compute", "at equal compute", "square"),
)
"""Key, what it is, and its marker. The last two are partial correlations."""
ROW = 46


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Strongest first, whatever the sign; metrics without a value last."""

    def strength(row: Row) -> float:
        value = (row.get("spearman") or {}).get("value")
        return -1.0 if value is None else abs(value)

    return sorted(rows, key=lambda row: (-strength(row), str(row["metric"])))


def proxy_forest(rows: Sequence[Row]) -> Plot:
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
        plot.text("-12", y, shorten(str(row["metric"]).replace("_", " "), 24), "rowlabel", "end")
        first = row.get("spearman") or {}
        plot.text("100%", y, f"{signed(first.get('value'), 2)} {interval(first.get('low'), first.get('high'), 2)}",
                  "verdict", "start")  # fmt: skip
        for kind, said, shape in reversed(KINDS):
            value = row.get(kind) or {}
            if value.get("value") is None:
                continue
            low, high, null = value.get("low"), value.get("high"), value.get("null")
            clear = low is not None and high is not None and low * high > 0
            at = y + {"spearman": -7, "partial_l0": 4, "partial_compute": 13}[kind]
            if null is not None:
                plot.tick(null, at, 4, "null")
            plot.mark(
                value["value"], at, f"proxy {kind}{' clear' if clear else ''}",
                f"{row['metric']}, {said}: {signed(value['value'])} {interval(low, high)},"
                f" null {number(null)}, n = {row['n']} dictionaries",
                x_interval=(low, high), radius=5.5 if kind == "spearman" else 3.5, shape=shape,
            )  # fmt: skip
    return plot


def proxy_table(rows: Sequence[Row]) -> Table:
    def of(kind: str, name: str) -> Column:
        def cell(row: Row) -> Cell:
            value = row.get(kind) or {}
            if value.get("value") is None:
                return Cell(DASH, float("-inf"))
            null = f" null {number(value['null'], 2)}" if value.get("null") is not None else ""
            text = f"{signed(value['value'], 2)} {interval(value.get('low'), value.get('high'), 2)}{null}"
            return Cell(text, value["value"])

        return Column(f"{name} [95%]", cell, True)

    columns = [
        Column("metric", lambda row: Cell(str(row["metric"]), str(row["metric"]), "name")),
        Column("target", lambda row: str(row.get("target", ""))),
        *(of(kind, said) for kind, said, _ in KINDS),
        Column("n", lambda row: Cell(str(row["n"]), row["n"]), True, "dictionaries"),
    ]
    return table("Which metric predicts reward", columns, rows)
