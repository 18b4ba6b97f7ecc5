"""`lensmith bench`: every claim of speed is a measurement that can be repeated.

``pipeline`` works in a copy of the working copy that has neither results nor cache, so nothing of the original changes.
"""

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from flows.commands import circuits, dictionaries
from flows.environment import child_environment
from flows.tables import print_json
from flows.times import load_times
from stages.base import paths

__all__ = ["BENCHMARKS", "arm_file", "copy_without_results", "pipeline"]

LEFT_OUT = (
    ".git", ".venv", ".lensmith", ".prefect", "mlruns", "__pycache__", "*.pyc", ".*_cache", ".hypothesis", "*.egg-info",
)  # fmt: skip


def copy_without_results(root: Path, copy: Path) -> None:
    """Sources, params and dvc.lock; no results, no cache."""
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
    """A source file that only nodes of one and the same arm depend on, in more than one stage: one method's file."""
    if not lock.is_file():
        return None
    arms: dict[str, set[str]] = {}
    users: dict[str, int] = {}
    for node, entry in (yaml.safe_load(lock.read_text(encoding="utf-8")).get("stages") or {}).items():
        for dep in entry.get("deps") or []:
            if str(dep["path"]).endswith(".py") and (root / dep["path"]).is_file():
                arms.setdefault(dep["path"], set()).add(node.partition("@")[2])
                users[dep["path"]] = users.get(dep["path"], 0) + 1
    found = sorted(path for path in arms if len(arms[path]) == 1 and "" not in arms[path] and users[path] > 1)
    return found[0] if found else None


def pipeline(*, jobs: int, as_json: bool) -> None:
    """Cold, warm and one-method-changed wall time, and the share of node time outside computation."""
    root = paths.root()
    console = Console(stderr=as_json)
    with tempfile.TemporaryDirectory(prefix="lensmith-bench-") as temporary:
        copy = Path(temporary) / "copy"
        copy_without_results(root, copy)
        rows = [_timed("cold", copy, jobs, console), _timed("warm", copy, jobs, console)]
        changed = arm_file(copy / "dvc.lock", copy)
        if changed is not None:
            with (copy / changed).open("a", encoding="utf-8") as file:
                file.write("\n# touched by the benchmark\n")
            rows.append(_timed("one method changed", copy, jobs, console) | {"changed": changed})
    if as_json:
        print_json(rows)
        return
    table = Table("run", "wall", "executed", "cached", "node time", "outside computation", title="pipeline")
    for row in rows:
        share = row["outside_computation"]
        table.add_row(
            row["run"], f"{row['wall_s']:.1f} s", str(row["executed"]), str(row["cached"]),
            f"{row['node_s']:.1f} s", "-" if share is None else f"{share:.0%}",
        )  # fmt: skip
    console.print(table)
    console.print(
        f"{jobs} nodes at a time. Outside computation (start-up, imports, hashing): share of node time.",
        highlight=False,
    )
    if changed is not None:
        console.print(f"one method changed: a comment was added to {changed}", highlight=False)


def _timed(name: str, copy: Path, jobs: int, console: Console) -> dict[str, Any]:
    before = {node: entry["finished_at"] for node, entry in load_times(copy).nodes.items()}
    environment = child_environment(copy) | {"LENSMITH_ROOT": str(copy), "PYTHONPATH": str(copy)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    environment["PREFECT_HOME"] = str(copy / ".prefect")
    started = time.monotonic()
    with console.status(f"{name} run in {copy}"):
        done = subprocess.run(
            [sys.executable, "-m", "flows.command", "run", "--jobs", str(jobs)],
            cwd=copy, env=environment, capture_output=True, text=True,
        )  # fmt: skip
    wall = time.monotonic() - started
    if done.returncode != 0:
        raise RuntimeError(f"the {name} run failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    times = load_times(copy)
    fresh = [entry for node, entry in times.nodes.items() if before.get(node) != entry["finished_at"]]
    told = [entry for entry in fresh if entry["computation_s"] is not None]
    node_s = sum(float(entry["wall_s"]) for entry in fresh)
    computed = sum(float(entry["computation_s"]) for entry in told)
    return {
        "run": name,
        "wall_s": round(wall, 2),
        "executed": len(fresh),
        "cached": max(len(times.nodes), len(fresh)) - len(fresh),
        "node_s": round(node_s, 2),
        "outside_computation": round(1 - computed / node_s, 4) if node_s and len(told) == len(fresh) else None,
    }


def metering(*, jobs: int, as_json: bool) -> None:
    """What the meters and the sandbox cost, and the built-in methods' FLOPs by layer."""
    from stages.benchmarks.metering import bench_metering

    console = Console(stderr=as_json)
    with console.status("metering") as shown:
        result = bench_metering(lambda said: shown.update(said[:120]))
    if as_json:
        print_json(result)
        return
    table = Table("batch", "bare", "metered", "across processes", "across the sandbox", title="forward passes")
    for row in result["overhead"]:
        sandboxed = row.get("across_sandboxed")
        table.add_row(
            str(row["batch"]), f"{row['bare_ms']:.2f} ms",
            f"{row['metered']:.3f}x [{row['metered_low']:.3f}, {row['metered_high']:.3f}]",
            f"{row['across']:.2f}x", "-" if sandboxed is None else f"{sandboxed:.2f}x",
        )  # fmt: skip
    console.print(table)
    for name, value in (result["start_up_s"] | result["score"]).items():
        what = (
            "ratio of whole scores" if name == "ratio" else f"start-up {name}" if "_s" not in name else f"score {name}"
        )
        console.print(f"{what}: {value:.2f}", highlight=False)
    layers = Table(
        "method", "task", "(a) target", "(b) own", "(c) unexplained", "CPU", "outcome", title="FLOPs by layer"
    )
    for row in result["layers"]:
        layers.add_row(
            row["method"], row["task"], f"{row['flops_a']:.3g}", f"{row['flops_b']:.3g}", f"{row['flops_c']:.3g}",
            f"{1e3 * row['cpu_s']:.1f} ms", row["outcome"],
        )  # fmt: skip
    console.print(layers)
    rates = result["calibration"]
    console.print(
        f"calibration: {rates['dense_flops_per_s'] / 1e9:.0f} GFLOP/s dense (spread {rates['spread']:.0%}, n ="
        f" {rates['n']:.0f}), {rates['pointwise_flops_per_s'] / 1e9:.1f} pointwise",
        highlight=False,
    )


BENCHMARKS: dict[str, Callable[..., None]] = {
    "cache": dictionaries.measure_cache,
    circuits.__name__.rpartition(".")[2]: circuits.measure,
    dictionaries.__name__.rpartition(".")[2]: dictionaries.measure_training,
    "metering": metering,
    "pipeline": pipeline,
    "synthetic": dictionaries.measure_synthetic,
}
