"""`lensmith bench pipeline`: cold, warm and one-method runs in a copy of the working copy that has neither results nor
cache, so nothing of the original changes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["arm_file", "copy_without_results", "pipeline"]

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
