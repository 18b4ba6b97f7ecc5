"""Tables on a terminal: as wide as their numbers need, and below one another where the window is narrower than that.

A number that is cut or broken over lines is a wrong number, so columns never get narrower than their longest number;
only running text is wrapped.
"""

import os
import re
from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

__all__ = ["print_table"]

WIDEST = 160
"""Columns that a table may have where there is no window: in a file, a log, a pipe."""
READABLE = 24
"""A word of text (a path, a name) may be broken where it is longer than this; a number never is."""
_NUMBER = re.compile(r"\d")


def print_table(console: Console, table: Table) -> None:
    """Print a table so that no number is cut: side by side where it fits, else each row as lines of name and value."""
    cells = [[_text(console, cell) for cell in column.cells] for column in table.columns]
    heads = [_text(console, column.header) for column in table.columns]
    feet = [_text(console, column.footer if table.show_footer else "") for column in table.columns]
    every = [[head, *of, foot] for head, of, foot in zip(heads, cells, feet, strict=True)]
    most = [max(map(_width, of)) for of in every]
    least = [min(_least(column, of), widest) for column, of, widest in zip(table.columns, every, most, strict=True)]
    border = _border(console, table)
    width = console.width
    if not console.is_terminal and "COLUMNS" not in os.environ:
        width = max(width, min(sum(most) + border, WIDEST))
    if sum(least) + border > width:
        _stack(
            console, str(table.title or ""), heads, [*zip(*cells, strict=True), *([tuple(feet)] if any(feet) else [])]
        )
        return
    for column, size in zip(table.columns, _shared(least, most, width - border), strict=True):
        column.width, column.min_width, column.max_width = size, None, None
    before, console.width = console.width, width
    console.print(table)
    console.width = before


def _text(console: Console, cell: object) -> Text:
    if isinstance(cell, Text):
        return cell
    return console.render_str(cell, highlight=False) if isinstance(cell, str) else Text(str(cell))


def _width(text: Text) -> int:
    return max((cell_len(line) for line in text.plain.splitlines()), default=0)


def _least(column: Column, texts: list[Text]) -> int:
    """The fewest characters in which a column can be read."""
    if column.no_wrap:
        return max(map(_width, texts))
    words = [word for text in texts for word in text.plain.split()]
    return max((cell_len(word) if _NUMBER.search(word) else min(cell_len(word), READABLE) for word in words), default=1)


def _border(console: Console, table: Table) -> int:
    """What lies between and beside the columns."""
    for column in table.columns:
        column.width = 1
    rendered = table.__rich_measure__(console, console.options.update_width(10_000)).maximum
    for column in table.columns:
        column.width = None
    return rendered - len(table.columns)


def _shared(least: list[int], most: list[int], room: int) -> list[int]:
    """Widths that sum to no more than the room; what is left goes to those that lack most, one by one."""
    widths = list(least)
    for _ in range(max(0, min(room, sum(most)) - sum(least))):
        i = max(range(len(widths)), key=lambda i: most[i] - widths[i])
        widths[i] += 1
    return widths


def _stack(console: Console, title: str, heads: list[Text], rows: Sequence[Sequence[Text]]) -> None:
    if title:
        console.print(title, style="bold", highlight=False, markup=False)
    for row in rows:
        console.print(row[0] if row[0] else "-", style="bold", highlight=False)
        for head, value in zip(heads[1:], row[1:], strict=True):
            if value.plain.strip():
                name = f"{head.plain}: " if head.plain else ""
                console.print(Text.assemble(f"  {name}", value), highlight=False, overflow="fold")
