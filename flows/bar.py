"""Progress of one command: a bar on a terminal, a plain line now and then elsewhere; always on stderr."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stages.base.progress import Listener, listening

__all__ = ["QUIET_S", "showing_progress"]

QUIET_S = 5.0
"""Off a terminal one line in this time, and no more; the first report is shown at once."""


@contextmanager
def showing_progress() -> Iterator[None]:
    """Show what the work inside reports (``stages.base.progress``)."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        with listening(_lines(lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True))):
            yield
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=None)

        def listen(what: str, done: int, total: int) -> None:
            bars.update(bar, description=what, completed=done, total=total)

        with listening(listen):
            yield


def _lines(say: Callable[[str], None]) -> Listener:
    started, last = time.monotonic(), float("-inf")

    def listen(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= QUIET_S:
            last = now
            say(f"{what}: {done} of {total}, {now - started:.0f} s")

    return listen
