"""What the page says about the kind of method that was found: one table of size, cost and reach."""

from collections.abc import Sequence
from typing import NamedTuple

from stages.contracts.research_rows import ScenarioRow
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import DASH, change, flops, signed

__all__ = ["ScenarioSection", "scenario_section"]

LAST = float("-inf")
REACH = ("gain", "over_black_box", "train", "validation", "new_kinds", "sealed", "sister", "own", "carried")


class ScenarioSection(NamedTuple):
    table: Table
    targets: str
    oracle: str
    counts: str


def scenario_section(rows: Sequence[ScenarioRow]) -> ScenarioSection | None:
    """None where the command has not been run."""
    if not rows:
        return None
    most = max(rows, key=lambda row: row.n_train + row.n_validation)
    counts = (
        f"{most.n_train} train and {most.n_validation} validation tasks ({most.n_new_kinds} of a kind of question that"
        f" no train task asks), {max(row.n_sealed for row in rows)} test tasks,"
        f" {max(row.n_sister for row in rows)} about sisters"
    )
    return ScenarioSection(scenario_table(rows), ", ".join(rows[0].targets), signed(rows[0].oracle_gain), counts)


def scenario_table(rows: Sequence[ScenarioRow]) -> Table:
    model = ScenarioRow

    def number(field: str, shown: str, name: str) -> Column[ScenarioRow]:
        def cell(row: ScenarioRow) -> Cell:
            value = getattr(row, field)
            if value is None:
                return Cell(DASH, LAST)
            return Cell(
                f"{value:,}" if shown == "bytes" else f"{value:.3g}" if shown == "share" else flops(value), value
            )

        return Column(name, cell, True, model.hint(field))

    def estimated(field: str) -> Column[ScenarioRow]:
        def cell(row: ScenarioRow) -> Cell:
            found = row.estimate(field)
            return Cell(DASH, LAST) if found.value is None else Cell(change(found), found.value)

        return Column(model.label(field), cell, True, model.hint(field))

    columns: list[Column[ScenarioRow]] = [
        Column("method", lambda row: Cell(row.method, row.method, "name")),
        Column("from", lambda row: Cell(row.origin, row.origin), False, model.hint("origin")),
        Column("outcome", lambda row: Cell(row.outcome, row.outcome, "quiet"), False, model.hint("outcome")),
        number("bytes", "bytes", "I(M), bytes"),
        number("interpret_flops", "flops", "interpret"),
        number("answer_flops", "flops", "an answer"),
        number("answer_share", "share", "of the tight budget"),
        *(estimated(field) for field in REACH),
    ]
    return table("Size, cost and reach of what each method found", columns, rows)
