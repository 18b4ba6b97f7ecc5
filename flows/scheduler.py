"""One run of the graph: `lensmith run`, and a night, which adds its row in MLflow and nothing else.

Nothing heavy is imported where nothing is stale: DVC tells so in a second, and neither Prefect nor
the stages' libraries are needed.
"""

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

from rich.console import Console

from flows.durations import Durations, load_durations, save_durations
from flows.environment import child_environment, prefect_environment, prepare_dvc
from flows.execution import Execution, LineSink
from flows.graph import read_state
from flows.nightly_run import NightlyRun
from flows.nodes import log_file, reproduce_node
from flows.outcome import Outcome, StageFailed
from flows.processes import ChildProcesses
from flows.progress import progress_view
from flows.warm import WarmParents, warm_parents
from stages import tracking
from stages.errors import UserError

__all__ = ["RunOptions", "RunResult", "raise_failures", "run_graph", "stoppable"]

WORTH_WARMING = 3
"""From so many nodes on, importing the stages' libraries once is cheaper than in each of them."""


Runner = Literal["threads", "dask"]


@dataclass(frozen=True)
class RunOptions:
    jobs: int = 2
    """Nodes at work at once."""
    runner: Runner = "threads"
    scheduler: str = ""
    """Address of a Dask scheduler; empty: a cluster on this machine."""
    outputs: tuple[Path, ...] = ()
    """Make these and what they need, and nothing else; empty: everything."""
    nightly: bool = False
    """Whether the run is a night: one with a row in MLflow, even where nothing is stale."""


@dataclass(frozen=True)
class RunResult:
    outcomes: list[Outcome]
    """One per node, in graph order."""
    durations: Durations
    wall_s: float
    nothing_to_do: bool

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.state == "failed"]


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does. Only the main thread of a process can see to
    that.
    """

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        previous = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    except ValueError:  # a served night may run in a thread; its server ends it
        yield
        return
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def run_graph(root: Path, console: Console, options: RunOptions) -> RunResult:
    """Reproduce what is stale. The caller holds the run lock.

    Raises:
        UserError: DVC cannot read the graph, or the Dask cluster cannot be used. KeyboardInterrupt:
        interrupted; the processes at work have been ended, finished nodes are kept.
    """
    started = time.monotonic()
    # What DVC and MLflow read stays to the end, and looking for garbage in it takes 0.4 s of 3.
    gc.set_threshold(200_000, 50, 50)
    prepare_dvc(root)
    children = ChildProcesses(root)
    ended = children.end_leftovers()
    if ended:
        console.print(f"ended {ended} processes that an earlier, killed run had left behind")
    graph, stale = read_state(root)
    if options.outputs:
        graph = graph.only(options.outputs)
        stale &= set(graph.nodes)
    with stoppable(), NightlyRun(root, enabled=options.nightly) as night:
        if not stale:
            outcomes = [Outcome(node, "cached") for node in graph.nodes]
            night.note(outcomes)
            wall_s = time.monotonic() - started
            return RunResult(outcomes, load_durations(root), wall_s, nothing_to_do=True)
        todo = graph.downstream(stale)
        # MLflow's runs of one run of the graph have its name as a tag.
        environment = child_environment(root) | {tracking.RUN: f"{time.strftime('%Y-%m-%d %H:%M:%S')} {os.getpid()}"}
        environment |= night.environment
        with ExitStack() as stack:
            warming = warm_parents(root, environment, stages=len(todo) >= WORTH_WARMING)
            warm = stack.enter_context(warming)
            reproduce, stop = stack.enter_context(_reproducer(root, environment, children, warm, options))
            view = stack.enter_context(progress_view(console, len(graph.nodes)))

            def shown(node: str, on_line: LineSink) -> Outcome:
                def line(text: str) -> None:
                    view.line(node, text)
                    on_line(text)

                return reproduce(node, line)

            execution = Execution(
                graph,
                todo,
                shown,
                jobs=options.jobs,
                stop=stop,
                on_start=view.start,
                on_end=view.end,
            )
            stack.enter_context(_prefect(root))
            from flows.pipeline import execute

            try:
                execute(execution)
            finally:
                night.note(execution.outcomes)
    wall_s = time.monotonic() - started
    outcomes = execution.outcomes
    durations = save_durations(root, outcomes, wall_s, options.jobs)
    return RunResult(outcomes, durations, wall_s, nothing_to_do=False)


@contextmanager
def _prefect(root: Path) -> Iterator[None]:
    """Prefect, with the server at ``PREFECT_API_URL`` if there is one, else without."""
    if prefect_environment(root, serve=False):
        yield
        return
    from flows.prefect_api import without_server

    with without_server():
        yield


Reproducer = tuple[Callable[[str, LineSink], Outcome], Callable[[], None]]
"""Reproduces a node, handing on its lines; ends the nodes at work."""


@contextmanager
def _reproducer(
    root: Path,
    environment: Mapping[str, str],
    children: ChildProcesses,
    warm: WarmParents | None,
    options: RunOptions,
) -> Iterator[Reproducer]:
    if options.runner == "dask":
        from flows.dask_runner import DaskRunner, dask_client

        with dask_client(options.scheduler, options.jobs) as client:
            runner = DaskRunner(client, root, environment, warm)
            yield runner.reproduce, runner.stop
        return

    def reproduce(node: str, on_line: LineSink) -> Outcome:
        return reproduce_node(node, root, environment, children, warm=warm, on_line=on_line)

    try:
        yield reproduce, children.stop
    finally:
        children.stop()


def raise_failures(root: Path, outcomes: list[Outcome]) -> None:
    """Turn failed nodes into one error.

    Raises:
        UserError: all failed by the user's mistake.
        StageFailed: at least one failed by ours.
    """
    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    if not failed:
        return
    blocked = sum(outcome.state == "blocked" for outcome in outcomes)
    causes = f"{failed[0].node} failed: {failed[0].cause}"
    causes += "".join(f"; {outcome.node} failed: {outcome.cause}" for outcome in failed[1:3])
    if len(failed) > 3:
        causes += f"; and {len(failed) - 3} more failed"
    text = (
        f"{causes}; {blocked} nodes that depend on a failed one were not tried. Its output is in"
        f" {log_file(root, failed[0].node)}; fix the error and re-run `lensmith run`; finished"
        " stages are kept"
    )
    if all(outcome.users_fault for outcome in failed):
        raise UserError(text)
    raise StageFailed(text)
