"""Tables a reader can sort: each cell has the text shown and the value it is sorted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stages.report.results import Row

__all__ = ["Cell", "Column", "Table", "table"]


@dataclass(frozen=True)
class Cell:
    text: str
    key: float | str = ""
    """Sorted by; empty: the text."""
    kind: str = ""
    """Class of the style sheet."""


@dataclass(frozen=True)
class Column:
    name: str
    cell: Callable[[Row], "Cell | str"]
    numeric: bool = False
    hint: str = ""
    """What the column is, on hover."""


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def table(caption: str, columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    return Table(caption, columns, [[_cell(column.cell(row)) for column in columns] for row in rows])


def _cell(value: Any) -> Cell:
    return value if isinstance(value, Cell) else Cell(str(value))
