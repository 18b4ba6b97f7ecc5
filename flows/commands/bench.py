"""`lensmith bench`: every claim of speed is a measurement that can be repeated.

``pipeline`` works in a copy of the working copy that has neither results nor cache, so nothing of
the original changes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import circuits, dictionaries, validity
from flows.commands.running import Jobs

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["BENCHMARKS", "COMMANDS", "arm_file", "copy_without_results", "pipeline"]

LEFT_OUT = (
    ".git",
    ".venv",
    ".lensmith",
    ".prefect",
    "mlruns",
    "__pycache__",
    "*.pyc",
    ".*_cache",
    ".hypothesis",
    "*.egg-info",
)


def copy_without_results(root: Path, copy: Path) -> None:
    """Sources, params and dvc.lock; no results, no cache."""
    import shutil

    from stages.base import paths

    # Results lie under data/ and in the folders of the metric files and of the page.
    results = {paths.metrics_file("x").parent.name, paths.report_file().parent.name, "data"}
    top = set(LEFT_OUT) | results

    def ignore(folder: str, names: list[str]) -> set[str]:
        here = Path(folder)
        if here == root:
            patterns = top
        elif here == root / ".dvc":
            patterns = {"cache", "tmp", "config.local"}
        else:
            patterns = {"__pycache__", "*.pyc"}
        return set(shutil.ignore_patterns(*patterns)(folder, names))

    shutil.copytree(root, copy, ignore=ignore, symlinks=True)


def arm_file(lock: Path, root: Path) -> str | None:
    """A source file that only nodes of one and the same arm depend on, in more than one stage: one
    method's file.
    """
    from flows.lock_file import read

    if not lock.is_file():
        return None
    arms: dict[str, set[str]] = {}
    users: dict[str, int] = {}
    stages = read(lock.read_text(encoding="utf-8")).get("stages") or {}
    for node, entry in stages.items():
        for dep in entry.get("deps") or []:
            if str(dep["path"]).endswith(".py") and (root / dep["path"]).is_file():
                arms.setdefault(dep["path"], set()).add(node.partition("@")[2])
                users[dep["path"]] = users.get(dep["path"], 0) + 1
    of_one_arm = [path for path in arms if len(arms[path]) == 1 and "" not in arms[path]]
    return min((path for path in of_one_arm if users[path] > 1), default=None)


@dataclass(frozen=True)
class StageTime:
    """One node of the cold run."""

    node: str
    wall_s: float
    computation_s: float | None


@dataclass(frozen=True)
class PipelineRun:
    """One run of the pipeline in the copy."""

    name: str
    wall_s: float
    cpu_s: float
    """User and system time of the run and of every process it started."""
    stages: tuple[StageTime, ...]
    """The nodes that were executed."""
    n_nodes: int

    @property
    def node_s(self) -> float:
        """Wall time of the nodes, summed."""
        return sum(stage.wall_s for stage in self.stages)

    @property
    def share_outside_computation(self) -> float | None:
        """Of the nodes' time, what went into starting, importing, hashing; None if a node did not
        say.
        """
        computed = [stage.computation_s for stage in self.stages]
        if not self.node_s or None in computed:
            return None
        return round(1 - sum(seconds or 0.0 for seconds in computed) / self.node_s, 4)


def pipeline(*, jobs: int, as_json: bool) -> None:
    """Cold, warm and one-method-changed wall time, and the share of node time outside
    computation.
    """
    import tempfile
    from dataclasses import asdict

    from rich.console import Console

    from flows.terminal import print_json
    from stages.base import paths

    root = paths.root()
    console = Console(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="lensmith-bench-") as temporary:
        copy = Path(temporary) / "copy"
        copy_without_results(root, copy)
        cold, again = _timed("cold", copy, jobs, console), _timed("again", copy, jobs, console)
        runs = [cold, again]
        changed = arm_file(copy / "dvc.lock", copy)
        if changed is not None:
            with (copy / changed).open("a", encoding="utf-8") as file:
                file.write("\n# touched by the benchmark\n")
            runs.append(_timed("one method changed", copy, jobs, console))
    if as_json:
        one_changed = runs[2] if changed is not None else None
        print_json(
            {
                "cold_s": cold.wall_s,
                "again_s": again.wall_s,
                "one_method_changed_s": one_changed and one_changed.wall_s,
                "changed": changed,
                "share_outside_computation": cold.share_outside_computation,
                "stages": [asdict(stage) for stage in cold.stages],
                "cpu_s": {run.name.replace(" ", "_"): run.cpu_s for run in runs},
                "executed": {run.name.replace(" ", "_"): len(run.stages) for run in runs},
                "jobs": jobs,
            }
        )
    else:
        _print_pipeline(console, runs, jobs, changed)


def _print_pipeline(console: "Console", runs: list[PipelineRun], jobs: int, changed: str | None) -> None:
    from rich.table import Table

    from flows.tables import print_table

    titles = ("run", "wall", "CPU", "executed", "cached", "node time", "outside computation")
    table = Table(*titles, title="pipeline")
    for run in runs:
        share = run.share_outside_computation
        table.add_row(
            run.name,
            f"{run.wall_s:.1f} s",
            f"{run.cpu_s:.1f} s",
            str(len(run.stages)),
            str(run.n_nodes - len(run.stages)),
            f"{run.node_s:.1f} s",
            "-" if share is None else f"{share:.0%}",
        )
    print_table(console, table)
    console.print(
        f"{jobs} nodes at a time. Outside computation (start-up, imports, hashing): share of node time.",
        highlight=False,
    )
    if changed is not None:
        text = f"one method changed: a comment was added to {changed}"
        console.print(text, highlight=False)


def _timed(name: str, copy: Path, jobs: int, console: "Console") -> PipelineRun:
    import os
    import resource
    import subprocess
    import sys
    import time

    from flows.durations import load_durations
    from flows.environment import child_environment
    from flows.progress import telling

    def cpu_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before = load_durations(copy).nodes
    environment = child_environment(copy)
    search_path = [str(copy), *filter(None, [environment.get("PYTHONPATH")])]
    environment |= {"LENSMITH_ROOT": str(copy), "PYTHONPATH": os.pathsep.join(search_path)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment["PREFECT_HOME"] = str(copy / ".prefect")
    command = [sys.executable, "-m", "flows.command", "run", "--jobs", str(jobs)]
    started, cpu_before = time.monotonic(), cpu_s()
    with telling(console, f"{name} run in {copy}"):
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    wall_s = time.monotonic() - started
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1]
        raise RuntimeError(f"the {name} run failed: {last}")
    nodes = load_durations(copy).nodes
    executed = [node for node in nodes if node not in before or before[node] != nodes[node]]
    return PipelineRun(
        name=name,
        wall_s=round(wall_s, 2),
        cpu_s=round(cpu_s() - cpu_before, 2),
        stages=tuple(StageTime(node, nodes[node].wall_s, nodes[node].computation_s) for node in sorted(executed)),
        n_nodes=len(nodes),
    )


def metering(*, jobs: int, as_json: bool) -> None:
    """What recording, pricing and the sandbox cost."""
    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.metering import bench_metering

    console = Console(stderr=as_json)
    with telling(console, "metering") as tell:
        result = bench_metering(tell)
    if as_json:
        print_json(result)
        return
    table = Table("batch", "bare", "metered", title="forward passes")
    for row in result.overhead:
        table.add_row(
            str(row.batch),
            f"{row.bare_ms:.2f} ms",
            f"{row.metered:.3f}x [{row.metered_low:.3f}, {row.metered_high:.3f}]",
        )
    print_table(console, table)
    titles = ("task", "method", "operations", "recorded in", "priced in", "direct", "run / direct", "in the sandbox")
    answers = Table(*titles, title="recorded answers")
    for one in result.answers:
        sandboxed = "-" if one.sandboxed_ratio is None else f"{one.sandboxed_ratio:.2f}x"
        answers.add_row(
            one.task, one.method, str(one.operations), f"{one.record_s:.3f} s", f"{one.check_s:.3f} s",
            f"{1e3 * one.direct_s:.1f} ms", f"{one.ratio:.2f}x [{one.ratio_low:.2f}, {one.ratio_high:.2f}]", sandboxed,
        )  # fmt: skip
    print_table(console, answers)
    for name, value in (result.start_up_s | result.score_s).items():
        console.print(f"{name}: {value:.2f} s", highlight=False)


def calibrator(*, jobs: int, as_json: bool) -> None:
    """Held-out score and time of the executor's calibrator beside scikit-learn's, fit by fit."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.calibrator import bench_calibrator

    console = Console(stderr=as_json)
    rows = bench_calibrator(lambda text: console.print(text, highlight=False))
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    titles = ("task", "fits", "score", "scikit-learn's", "difference", "CPU", "scikit-learn's", "ratio")
    table = Table(*titles, title="calibrators, held-out score")
    for row in rows:
        table.add_row(
            row.task,
            str(row.n),
            f"{row.score:.3f}",
            f"{row.reference:.3f}",
            f"[{row.difference_low:+.3f}, {row.difference_high:+.3f}]".replace("[", r"\["),
            f"{row.ms:.1f} ms",
            f"{row.reference_ms:.0f} ms",
            f"{row.reference_ms / row.ms:.1f}x",
        )
    print_table(console, table)


def targets(*, jobs: int, as_json: bool) -> None:
    """Speed of every target that has been made, as a share of the machine's dense products."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.targets import bench_targets

    console = Console(stderr=as_json)
    with telling(console, "passes") as tell:
        rows = bench_targets(tell)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    titles = ("target", "batch", "pass", "inputs/s", "words/s", "GFLOP/s", "of dense peak", "metered / by hand")
    table = Table(*titles, title="forward passes, one thread, medians")
    for row in rows:
        table.add_row(
            row.target,
            str(row.batch),
            f"{row.ms:.2f} ms",
            f"{row.inputs_per_s:,.0f}",
            "-" if row.words_per_s is None else f"{row.words_per_s:,.0f}",
            f"{row.gflops:.2f}",
            f"{row.share_of_peak:.1%}",
            "-" if row.metered_to_hand is None else f"{row.metered_to_hand:.3f}x",
        )
    print_table(console, table)


def truth(*, jobs: int, as_json: bool) -> None:
    """How long truths take beside a loop of single questions, and what their FLOPs would take at the
    machine's dense speed."""
    from dataclasses import asdict

    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.truth import bench_truth, median_ratio

    console = Console(stderr=as_json)
    with telling(console, "truths") as tell:
        rows = bench_truth(tell)
    if as_json:
        print_json([asdict(row) | {"ratio": row.ratio, "share_of_peak": row.share_of_peak} for row in rows])
        return
    titles = ("family", "target", "together", "loop", "ratio", "inputs a pass", "bound", "of dense peak")
    table = Table(*titles, title="truth, CPU time per instance, one thread")
    for row in rows:
        table.add_row(
            row.family,
            row.target,
            f"{row.ms:.2f} ms",
            f"{row.loop_ms:.2f} ms",
            f"{row.ratio:.1f}x",
            f"{row.inputs_per_pass:.0f}, loop {row.loop_inputs_per_pass:.0f}",
            f"{row.bound_ms:.3f} ms",
            f"{row.share_of_peak:.1%}",
        )
    print_table(console, table)
    said = f"median ratio where the loop has one input a pass: {median_ratio(rows):.1f}x; {len(rows)} truths in all"
    console.print(said, highlight=False)


def research(*, jobs: int, as_json: bool) -> None:
    """What a sandboxed proposal of a campaign costs, phase by phase, and what starts cost."""
    import statistics

    from rich.console import Console
    from rich.table import Table

    from flows.progress import telling
    from flows.tables import print_table
    from flows.terminal import print_json
    from stages.benchmarks.campaigns import NIGHT_S, PHASES, bench_research

    console = Console(stderr=as_json)
    with telling(console, "proposals") as tell:
        cost = bench_research(progress=tell)
    if as_json:
        print_json(cost)
        return
    for name, one in (("cold", cost.cold), ("from the warm parent", cost.warm)):
        if one is not None:
            console.print(f"start {name}: {one.cpu_s:.3f} CPU s, {one.wall_s:.2f} s", highlight=False)
    table = Table("phase", "first", "share", "again", title=f"CPU s of a proposal on {cost.n_tasks} tasks, medians")

    def median(costs: list[dict[str, float]], name: str) -> float:
        return statistics.median(one[name] for one in costs)

    first, again = ([one.cpu_s for one in costs] for costs in (cost.first, cost.again))
    total = sum(median(first, name) for name in (*PHASES, "method"))
    for name in (*PHASES, "method"):
        table.add_row(
            name, f"{median(first, name):.2f}", f"{median(first, name) / total:.0%}", f"{median(again, name):.2f}"
        )
    print_table(console, table)
    for name, costs in (("first", cost.first), ("again", cost.again)):
        each = statistics.median(one.total_cpu_s for one in costs)
        said = f"{name}: {each:.2f} CPU s each, {3600 / each:,.0f} an hour and core, {2 * NIGHT_S / each:,.0f} a night"
        console.print(f"{said} of 8 hours on two quiet cores, by arithmetic", highlight=False)


BENCHMARKS: dict[str, Callable[..., None]] = {
    "cache": dictionaries.measure_cache,
    "calibrator": calibrator,
    circuits.__name__.rpartition(".")[2]: circuits.measure,
    dictionaries.__name__.rpartition(".")[2]: dictionaries.measure_training,
    "elk": validity.elk,
    "estimation": validity.estimation,
    "horizon": validity.horizon,
    "metering": metering,
    "pipeline": pipeline,
    "published": validity.published,
    research.__name__: research,
    "synthetic": dictionaries.measure_synthetic,
    targets.__name__: targets,
    "truth": truth,
}


def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which one: see above.")],
    jobs: Jobs = 2,
    growth: Annotated[
        bool, typer.Option("--growth", help="Of circuits: time and memory against layers and heads instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for other programs.")] = False,
) -> None:
    """Measure speed and validity: `pipeline` copies the working copy without results and times cold, warm and
    one-method runs; `calibrator` compares the executor's with scikit-learn's; `metering` measures
    what the meters and the sandbox cost; `dictionaries` trains ours and SAELens's in turn; `cache`
    reads and writes activations; `synthetic` trains dictionaries where the features are known;
    `circuits` looks for circuits that are known; `targets` runs every target that was made; `truth`
    times the brute-force truth of every family beside a loop of single questions; `research` times the
    phases of sandboxed proposals; `estimation` estimates mean outputs and rare events within a FLOP
    budget; `elk` gives labels only where a supervisor is right; `horizon` calibrates on short inputs and
    asks about long ones; `published` asks evaluations that others publish.

    Example: lensmith bench pipeline
    """
    from flows.options import refuse
    from stages.errors import UserError

    if name not in BENCHMARKS:
        raise UserError(f"benchmark {name!r} is unknown: use {', '.join(sorted(BENCHMARKS))}")
    if name != pipeline.__name__:
        refuse(context, "jobs", f"{name} is measured on one thread; nodes are run by `lensmith bench pipeline`")
    if growth and BENCHMARKS[name] is not circuits.measure:
        raise UserError(f"--growth does nothing with {name}: it is of `lensmith bench circuits`")
    (circuits.measure_growth if growth else BENCHMARKS[name])(jobs=jobs, as_json=as_json)


COMMANDS = (bench,)
