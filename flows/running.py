"""One run of the graph, as `lensmith run` shows it: what is at work, how long, how far."""

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from flows.environment import child_environment, prepare_dvc
from flows.graph import read_graph, stale_nodes
from flows.outcome import Outcome
from flows.times import Times, load_times, save_times
from flows.walk import Children, repro, walk

__all__ = ["Result", "run_graph", "stoppable"]

NOISE = ("Running stage ", "> ", "Updating lock file", "Generating lock file", "To track the changes", "To enable auto",
         "Use `dvc push`", "git add ", "dvc config ", "computation_s=")  # fmt: skip


@dataclass(frozen=True)
class Result:
    outcomes: list[Outcome]
    """One per node, in graph order."""
    times: Times
    wall_s: float
    nothing_to_do: bool

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_graph(root: Path, console: Console, *, jobs: int = 2) -> Result:
    """Reproduce what is stale. The caller holds the run lock.

    Raises:
        UserError: DVC cannot read the graph.
        KeyboardInterrupt: interrupted; children have been ended, finished nodes are kept.
    """
    started = time.monotonic()
    prepare_dvc(root)
    children = Children(root)
    leftovers = children.end_leftovers()
    if leftovers:
        console.print(f"ended {leftovers} processes that an earlier, killed run had left behind")
    stale = stale_nodes(root)
    if not stale:
        return Result([], load_times(root), time.monotonic() - started, nothing_to_do=True)
    graph = read_graph(root)
    todo = graph.downstream(stale)
    with _shown(console, len(graph.nodes)) as shown, stoppable():
        outcomes = walk(
            graph,
            todo,
            lambda node: repro(node, root, child_environment(root), children, shown.line),
            jobs=jobs,
            stop=children.stop,
            on_start=shown.start,
            on_end=shown.end,
        )
    wall = time.monotonic() - started
    return Result(outcomes, save_times(root, outcomes, wall, jobs), wall, nothing_to_do=False)


class _Shown:
    """Progress: bars on a terminal, plain lines elsewhere (logs, continuous integration)."""

    def __init__(self, console: Console, progress: Progress | None, total: int) -> None:
        self._console, self._progress, self._total = console, progress, total
        self._done, self._started = 0, time.monotonic()
        self._tasks: dict[str, object] = {}
        self._said: dict[str, float] = {}
        self._overall = progress.add_task("all nodes", total=total, said="") if progress else None

    def start(self, node: str) -> None:
        if self._progress is not None:
            self._tasks[node] = self._progress.add_task(node, total=None, said="")
        else:
            self._print(f"{node}: started")

    def line(self, node: str, line: str) -> None:
        said = line.strip()
        if not said or said.startswith(NOISE) or line.startswith("\t"):
            return
        if said.startswith("warning: "):
            self._print(f"{node}: {said}")
        elif self._progress is not None:
            task = self._tasks.get(node)
            if task is not None:
                self._progress.update(task, said=said[:80])  # type: ignore[arg-type]
        elif time.monotonic() - self._said.get(node, 0) > 10:
            self._said[node] = time.monotonic()
            self._print(f"{node}: {said[:160]}")

    def end(self, outcome: Outcome) -> None:
        self._done += 1
        task = self._tasks.pop(outcome.node, None)
        if self._progress is not None:
            if task is not None:
                self._progress.remove_task(task)  # type: ignore[arg-type]
            self._progress.update(self._overall, completed=self._done)  # type: ignore[arg-type]
        if outcome.state == "executed":
            self._print(f"{outcome.node}: {outcome.wall_s:.1f} s")
        elif outcome.state == "failed":
            self._print(f"{outcome.node}: failed after {outcome.wall_s:.1f} s: {outcome.cause}", style="red")
        elif outcome.state == "blocked":
            self._print(f"{outcome.node}: not tried, {outcome.cause}", style="yellow")

    def _print(self, text: str, style: str = "") -> None:
        clock = time.monotonic() - self._started
        self._console.print(
            f"[{self._done:>3}/{self._total} {int(clock // 60):>2}:{int(clock % 60):02}] {text}",
            style=style, markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


@contextmanager
def _shown(console: Console, total: int) -> Iterator[_Shown]:
    if not console.is_terminal:
        yield _Shown(console, None, total)
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(),
               TimeElapsedColumn(), TextColumn("{task.fields[said]}", style="dim", markup=False))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Shown(console, progress, total)
    sys.stdout.flush()
