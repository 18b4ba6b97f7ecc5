"""Tables a reader can sort: each cell has the text shown and the value it is sorted by."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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
    note: str = ""
    """Stands below the text, smaller."""

    @property
    def parts(self) -> tuple[str, str]:
        """The number, and its interval and null, which stand below it: side by side they would need three times the
        width.
        """
        if self.note:
            return self.text, self.note
        number, found, rest = self.text.partition(" [")
        return (number, f"[{rest}") if found and self.kind != "name" else (self.text, "")


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
    tags: Sequence[Mapping[str, str]] = ()
    """What each row can be filtered by; empty: by nothing."""

    def tagged(self) -> Iterator[tuple[Sequence[Cell], Mapping[str, str]]]:
        """Rows, each with its tags."""
        return zip(self.rows, self.tags or [{}] * len(self.rows), strict=True)


def table(
    caption: str,
    columns: Sequence[Column[RowT]],
    rows: Sequence[RowT],
    tags: Callable[[RowT], Mapping[str, str]] | None = None,
) -> Table:
    heads = [Heading(column.name, column.numeric, column.hint) for column in columns]
    cells = [[_cell(column.cell(row)) for column in columns] for row in rows]
    return Table(caption, heads, cells, [tags(row) for row in rows] if tags else ())


def _cell(value: Cell | str) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)
