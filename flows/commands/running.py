"""`lensmith run` and `lensmith status`."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from flows.scheduler import RunOptions, RunResult

__all__ = [
    "COMMANDS",
    "Jobs",
    "Profile",
    "Runner",
    "Scheduler",
    "Targets",
    "night_profile",
    "run_options",
    "show_result",
    "use_profile",
]

Jobs = Annotated[int, typer.Option("--jobs", "-j", min=1, max=64, help="Nodes at work at once.")]
Runner = Annotated[str, typer.Option("--runner", help="Where nodes run: threads (here) or dask.")]
Scheduler = Annotated[
    str,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="With --runner dask: a running scheduler. Default: workers on this machine.",
    ),
]


Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="Sizes to run with: a file of params/profiles, default or full. It stays active.",
    ),
]


def use_profile(root: "Path", name: str, console: "Console") -> None:
    """Make a profile the active one: params/profile.yaml becomes a link to its file.

    Raises:
        UserError: there is no such profile.
    """
    from stages.base.params import profile_name
    from stages.errors import UserError

    folder = root / "params" / "profiles"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name and name not in known:
        raise UserError(f"--profile {name} is unknown: use {' or '.join(known)}")
    if name and name != profile_name():
        link = root / "params" / ".profile.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(f"profiles/{name}.yaml")
        link.replace(root / "params" / "profile.yaml")
    if known:
        console.print(f"profile: {profile_name()}", highlight=False)


def night_profile(root: "Path") -> str:
    """What a night runs: everything, where there are profiles."""
    return "full" if (root / "params" / "profiles" / "full.yaml").is_file() else ""


def run_options(jobs: int, runner: str, scheduler: str, *, nightly: bool) -> "RunOptions":
    """Check what was given on the command line.

    Raises:
        UserError: the runner is unknown, or a scheduler is given that nothing would use.
    """
    from flows.scheduler import Runner as Kind
    from flows.scheduler import RunOptions
    from stages.errors import UserError

    if runner not in {"threads", "dask"}:
        raise UserError(f"--runner {runner} is unknown: use threads or dask")
    if scheduler and runner != "dask":
        raise UserError(f"--scheduler {scheduler} is used by Dask alone: add --runner dask")
    kind: Kind = "dask" if runner == "dask" else "threads"
    return RunOptions(jobs=jobs, runner=kind, scheduler=scheduler, nightly=nightly)


Targets = Annotated[
    str,
    typer.Option(
        "--targets",
        metavar="A,B",
        help="Only what leads to rewards on these targets; one of params/optional is added to params first.",
    ),
]


def run(
    jobs: Jobs = 2,
    runner: Runner = "threads",
    scheduler: Scheduler = "",
    profile: Profile = "",
    targets: Targets = "",
) -> None:
    """Run the whole graph: whatever is stale, and nothing else; then print the leaderboard.

    With --targets, first an estimate of the time and memory that those targets take. Interrupted and begun again, it
    goes on.

    Example: lensmith run --jobs 2
    """
    from rich.console import Console

    from flows.lock import run_lock
    from flows.scheduler import run_graph
    from stages.base import paths

    console, root = Console(), paths.root()
    options = run_options(jobs, runner, scheduler, nightly=False)
    about = targets.replace(",", " ").split()
    with run_lock(root, "lensmith run"):
        use_profile(root, profile, console)
        if about:
            options = only_about(root, about, console, options)
        result = run_graph(root, console, options)
    show_result(console, result)


def only_about(root: "Path", targets: "Sequence[str]", console: "Console", options: "RunOptions") -> "RunOptions":
    """The run that leads to rewards on these targets, after an estimate of what it takes.

    Raises:
        UserError: there is no such target, it cannot be made, or memory does not suffice.
    """
    from dataclasses import replace

    from flows.estimating import show_estimate
    from flows.scheduler import raise_failures, run_graph
    from stages.base import paths
    from stages.scoring.needs import outputs_about
    from stages.tools.optional_targets import known_targets

    for line in known_targets(root, targets):
        console.print(line, highlight=False, soft_wrap=True)
    made = run_graph(root, console, replace(options, outputs=(*map(paths.target_dir, targets), paths.secret_file())))
    raise_failures(root, made.outcomes)
    outputs = outputs_about(targets)
    show_estimate(root, targets, outputs, console, options.jobs)
    return replace(options, outputs=outputs)


def show_result(console: "Console", result: "RunResult") -> None:
    """Leaderboard, times and places of a run that has ended.

    Raises:
        UserError: nodes failed, all by the user's mistake.
        StageFailed: nodes failed, at least one by ours.
    """
    from flows.scheduler import raise_failures
    from flows.terminal import print_durations
    from stages.base import paths

    if result.failed:
        print_durations(console, result.outcomes, result.durations)
        raise_failures(paths.root(), result.outcomes)
    _show_results(console)
    print_durations(console, result.outcomes, result.durations)
    executed = sum(outcome.state == "executed" for outcome in result.outcomes)
    if result.nothing_to_do:
        text = f"everything is up to date: nothing executed, {result.wall_s:.1f} s"
    else:
        cached = len(result.outcomes) - executed
        text = f"{executed} nodes executed, {cached} cached, {result.wall_s:.0f} s in all"
    console.print(text, highlight=False)
    _show_places(console)


def _show_results(console: "Console") -> None:
    from flows.terminal import leaderboard_rows, print_leaderboard, print_statements, statement_rows
    from stages.base import paths

    if paths.metrics_file("leaderboard").is_file():
        said = statement_rows("validation")
        print_leaderboard(console, leaderboard_rows("validation"), "leaderboard, validation families", said=said)
        print_statements(console, said, "validation")


def _show_places(console: "Console") -> None:
    import sqlite3
    from contextlib import suppress

    from stages import tracking
    from stages.base import paths

    lines = []
    if paths.report_file().is_file():
        lines.append(f"report:  {paths.report_file()}")
    if tracking.enabled():
        with suppress(sqlite3.Error, OSError):  # a copy of the folder gets its own addresses before it is looked at
            tracking.settle()
        lines.append(f"MLflow:  {tracking.uri()}")
        lines.append("         look at it: lensmith mlflow")
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Say what is stale and why, whether a run is at work, and how long the last one took.

    Example: lensmith status --json
    """
    from dataclasses import asdict

    from rich.console import Console

    from flows.durations import load_durations
    from flows.environment import prepare_dvc
    from flows.graph import read_graph, read_state
    from flows.lock import holder
    from flows.processes import nodes_at_work
    from flows.terminal import print_durations, print_json
    from stages.base import paths

    console, root = Console(), paths.root()
    prepare_dvc(root)
    durations, who = load_durations(root), holder(root)
    busy = nodes_at_work(root) if who else []
    # What is stale cannot be asked while a stage writes its outputs.
    graph, stale = (read_graph(root), set()) if busy else read_state(root)
    todo = graph.downstream(stale)
    if as_json:
        print_json(
            {
                "at_work": who,
                "nodes_at_work": busy,
                "n_nodes": len(graph.nodes),
                "stale": None if busy else sorted(stale),
                "to_check": None if busy else sorted(todo),
                "times": {node: asdict(entry) for node, entry in durations.nodes.items()},
                "last_run": durations.last_run and asdict(durations.last_run),
            }
        )
        return
    console.print(f"at work:  {who or 'nobody'} {' and '.join(busy)}", highlight=False)
    if busy:
        console.print("stale:    cannot be told while a node is at work", highlight=False)
    elif stale:
        console.print(
            f"stale:    {len(stale)} of {len(graph.nodes)} nodes: {', '.join(sorted(stale))}",
            highlight=False,
        )
        console.print(
            f"next:     `lensmith run` executes them and looks at {len(todo) - len(stale)} more",
            highlight=False,
        )
    else:
        console.print(f"stale:    none of {len(graph.nodes)} nodes; everything is up to date", highlight=False)
    last = durations.last_run
    if last is not None:
        console.print(
            f"last run: {last.finished_at}, {last.wall_s:.0f} s, {last.executed} executed,"
            f" {last.cached} cached, {last.failed} failed",
            highlight=False,
        )
        print_durations(console, [], durations)


COMMANDS = (run, status)
