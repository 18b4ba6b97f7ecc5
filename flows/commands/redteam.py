"""`lensmith redteam`."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["COMMANDS"]


def redteam(
    context: typer.Context,
    quick: Annotated[bool, typer.Option("--quick", help="A cross-section that takes less than a minute.")] = False,
    file: Annotated[
        Path | None,
        typer.Option("--file", metavar="METHOD.py", help="One method file of your own instead."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/security.md.")] = False,
) -> None:
    """Run every known exploit as a malicious method, and honest strong methods beside them; fail if
    one gets through.

    Example: lensmith redteam --quick
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from flows.lock import run_lock
    from flows.options import refuse
    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.base import paths
    from stages.errors import UserError

    if file is not None and not file.is_file():
        raise UserError(f"{file} is not a file: give the path of a Python file with one subclass of Method")
    if file is not None:
        refuse(context, "quick", "it is a cross-section of the known exploits, and --file judges one file instead")
    if as_json:
        refuse(context, "markdown", "--json prints JSON and nothing else")
    console = Console(stderr=as_json or markdown)
    with run_lock(paths.root(), "lensmith redteam", shared=True):
        from stages.redteam.red_team import (
            COLUMNS,
            as_cells,
            as_markdown,
            failures,
            red_team,
        )

        with telling(console, "red team") as tell:
            found = red_team(quick=quick, file=file, progress=tell)
    rows = found.rows
    if as_json:
        print_json(found)
    elif markdown:
        print(as_markdown(rows), end="")
    else:
        table = Table(*COLUMNS, title="red team")
        for row in rows:
            table.add_row(*map(escape, as_cells(row)))
        print_table(console, table)
    through = [row["name"] for row in failures(rows)] + found.faults
    if through:
        raise RuntimeError(f"{len(through)} got through: {'; '.join(through)}"[:2000])
    console.print(f"{len(rows)} rows, nothing got through", highlight=False)
    if found.generated:
        ends = ", ".join(f"{count} {end}" for end, count in found.by_end.items())
        console.print(
            f"{found.generated} composed exploits: {ends}; {found.above_nothing} above nothing."
            f" {found.honest} honest methods: {found.punished} punished.",
            highlight=False,
        )


COMMANDS = (redteam,)
