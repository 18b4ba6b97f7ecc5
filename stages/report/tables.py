"""Tables a reader can sort: each cell has the text shown and the value it is sorted by."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Cell", "Column", "Table", "table"]


RowT = TypeVar("RowT")
RowT_contra = TypeVar("RowT_contra", contravariant=True)


@dataclass(frozen=True)
class Cell:
    text: str
    key: float | str = ""
    """Sorted by; empty: the text."""
    kind: str = ""
    """Class of the style sheet."""


@dataclass(frozen=True)
class Column(Generic[RowT_contra]):
    name: str
    cell: Callable[[RowT_contra], "Cell | str"]
    numeric: bool = False
    hint: str = ""
    """What the column is, on hover."""


@dataclass(frozen=True)
class Heading:
    """A column without its rows."""

    name: str
    numeric: bool
    hint: str


@dataclass(frozen=True)
class Table:
    caption: str
    columns: Sequence[Heading]
    rows: Sequence[Sequence[Cell]]


def table(caption: str, columns: Sequence[Column[RowT]], rows: Sequence[RowT]) -> Table:
    heads = [Heading(column.name, column.numeric, column.hint) for column in columns]
    return Table(caption, heads, [[_cell(column.cell(row)) for column in columns] for row in rows])


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)
