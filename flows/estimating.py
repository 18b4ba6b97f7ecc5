"""How long a run about some targets will take, and how much memory, before it starts."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from flows.durations import load_durations
from flows.graph import read_state
from flows.tables import print_table
from stages.errors import UserError
from stages.tools.estimates import Estimate, estimate

__all__ = ["show_estimate"]

UNKNOWN_S = 20.0
"""Of a node that never ran here, about a target that is trained here: a mean over the default profile."""


def show_estimate(root: Path, targets: Sequence[str], outputs: Sequence[Path], console: Console, jobs: int) -> None:
    """Print what is still to do and what it takes; nothing where nothing is.

    Raises:
        UserError: the processes at work together would not fit into memory.
    """
    graph, stale = read_state(root)
    graph = graph.only(outputs)
    todo = graph.downstream(stale & set(graph.nodes))
    if not todo:
        return
    table = Table("target", "part", "n", "CPU", "", title="estimate")
    total, largest = 0.0, 0
    for target in targets:
        rows, held = _tried(target)
        largest = max(largest, held)
        for row in rows:
            total += row.cpu_s
            table.add_row(target, row.part, f"{row.n:,}", _time(row.cpu_s), row.detail)
    known = load_durations(root).nodes
    others = {node for node in todo if node.partition("@")[2] not in targets}
    rest = sum(known[node].computation_s or known[node].wall_s if node in known else UNKNOWN_S for node in others)
    table.add_row("others", "nodes", f"{len(others)}", _time(rest), "as last time here, or 20 s each")
    print_table(console, table)
    console.print(
        f"{len(todo)} node{'s' * (len(todo) != 1)} to do: about {_time((total + rest) / jobs)} with {jobs} at work at"
        f" once, and {jobs * largest / 2**30:.1f} GiB of memory; interrupt it whenever you like, it goes on from there",
        highlight=False,
    )
    free = psutil.virtual_memory().available
    if (jobs - 1) * largest > free:
        raise UserError(
            f"{jobs} processes of {largest / 2**30:.1f} GiB do not fit into the {free / 2**30:.1f} GiB that are free:"
            " use --jobs 1, or close other programs"
        )


def _tried(target: str) -> tuple[list[Estimate], int]:
    """In a process of its own: its memory is what is measured, and this one, which stays, does not keep the model."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        try:
            return pool.submit(estimate, target, partial(print, flush=True)).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"the process that tried {target} was killed, most likely for want of memory: close other programs, or"
                " take a smaller model"
            ) from error


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
