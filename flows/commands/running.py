"""`lensmith run` and `lensmith status`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from flows.outcome import Outcome

__all__ = ["COMMANDS"]


def run(
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Nodes at work at once.")] = 2,
) -> None:
    """Run the whole graph: whatever is stale, and nothing else; then print the leaderboard.

    Example: lensmith run --jobs 2
    """
    from rich.console import Console

    from flows.lock import run_lock
    from flows.running import run_graph
    from flows.tables import print_times
    from stages.base import paths

    console, root = Console(), paths.root()
    with run_lock(root, "lensmith run"):
        result = run_graph(root, console, jobs=jobs)
    if result.failed:
        print_times(console, result.outcomes, result.times)
        _explain_failure(result.outcomes)
    _show_results(console)
    print_times(console, result.outcomes, result.times)
    executed = sum(outcome.state == "executed" for outcome in result.outcomes)
    if result.nothing_to_do:
        console.print(f"everything is up to date: nothing executed, {result.wall_s:.1f} s", highlight=False)
    else:
        cached = len(result.outcomes) - executed
        console.print(f"{executed} nodes executed, {cached} cached, {result.wall_s:.0f} s in all", highlight=False)
    _show_places(console)


def _explain_failure(outcomes: "list[Outcome]") -> None:
    from stages.base import paths
    from stages.errors import UserError

    failed = [outcome for outcome in outcomes if outcome.state == "failed"]
    blocked = sum(outcome.state == "blocked" for outcome in outcomes)
    first = failed[0]
    log = paths.root() / ".lensmith" / "logs" / f"{first.node}.log"
    others = f" (and {len(failed) - 1} more failed)" if len(failed) > 1 else ""
    text = (
        f"{first.node} failed{others}: {first.cause}; {blocked} nodes that depend on it were not tried, all others are"
        f" kept. Its output is in {log}; mend the cause and run `lensmith run` again: it continues from there"
    )
    if all(outcome.users_fault for outcome in failed):
        raise UserError(text)
    raise RuntimeError(text)


def _show_results(console: "Console") -> None:
    from flows.tables import leaderboard_rows, print_leaderboard
    from stages.base import paths

    if paths.metrics_file("leaderboard").is_file():
        print_leaderboard(console, leaderboard_rows("validation"), "leaderboard, validation families")


def _show_places(console: "Console") -> None:
    from stages import tracking
    from stages.base import paths

    lines = []
    if paths.report_file().is_file():
        lines.append(f"report:  {paths.report_file()}")
    if tracking.enabled():
        lines.append(f"MLflow:  {tracking.uri()}")
        lines.append(f"         look at it: mlflow ui --backend-store-uri {tracking.uri()}")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Say what is stale and why, whether a run is at work, and how long the last one took.

    Example: lensmith status --json
    """
    from rich.console import Console

    from flows.environment import prepare_dvc
    from flows.graph import read_graph, stale_nodes
    from flows.lock import holder
    from flows.tables import print_json, print_times
    from flows.times import load_times
    from flows.walk import at_work
    from stages.base import paths

    console, root = Console(), paths.root()
    prepare_dvc(root)
    graph, times, who = read_graph(root), load_times(root), holder(root)
    busy = at_work(root) if who else []
    # What is stale cannot be asked while a stage writes its outputs.
    stale = set() if busy else stale_nodes(root)
    todo = graph.downstream(stale)
    if as_json:
        print_json(
            {
                "at_work": who,
                "nodes_at_work": busy,
                "n_nodes": len(graph.nodes),
                "stale": None if busy else sorted(stale),
                "to_check": None if busy else sorted(todo),
                "times": times.nodes,
                "last_run": times.last_run,
            }
        )
        return
    console.print(f"at work:  {who or 'nobody'} {' and '.join(busy)}", highlight=False)
    if busy:
        console.print("stale:    cannot be told while a node is at work", highlight=False)
    elif stale:
        console.print(
            f"stale:    {len(stale)} of {len(graph.nodes)} nodes: {', '.join(sorted(stale))}", highlight=False
        )
        console.print(
            f"next:     `lensmith run` executes them and looks at {len(todo) - len(stale)} more", highlight=False
        )
    else:
        console.print(f"stale:    none of {len(graph.nodes)} nodes; everything is up to date", highlight=False)
    if times.last_run:
        last = times.last_run
        console.print(
            f"last run: {last['finished_at']}, {last['wall_s']:.0f} s, {last['executed']} executed, {last['cached']}"
            f" cached, {last['failed']} failed",
            highlight=False,
        )
        print_times(console, [], times)


COMMANDS = (run, status)
