"""What `lensmith doctor` looks at. Imports nothing heavy: versions come from the metadata of what
is installed.
"""

import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

from flows.durations import load_durations
from flows.environment import prepare_dvc
from flows.lock import holder
from stages import tracking
from stages.base import paths
from stages.errors import UserError, explain_os
from stages.sandbox.bubblewrap import layers

__all__ = ["Check", "examine"]

MAIN = (
    "torch",
    "transformer-lens",
    "sae-lens",
    "scikit-learn",
    "optuna",
    "dvc",
    "mlflow",
    "prefect",
    "fastapi",
)
COLD_RUN_S = 12 * 60
"""What a cold run may take on two cores; replaced by the measured time once there has been one."""
DISK_GIB = 2.0
"""Results, cache and logs of a run, with room to spare."""
MEMORY_GIB = 4.0


class Check(NamedTuple):
    state: Literal["ok", "optional", "missing", "fact"]
    what: str
    found: str
    remedy: str = ""


def examine() -> list[Check]:
    root = paths.root()
    return [
        *_python(),
        *_packages(root),
        *_folder(root),
        *_programs(),
        *_machine(root),
        *_costs(root),
        *_places(root),
    ]  # fmt: skip


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Check(
        "ok" if good else "missing",
        "Python",
        f"{version}, {sys.executable}",
        "" if good else "make env PYTHON=/path/to/python3.11",
    )


def _packages(root: Path) -> Iterator[Check]:
    constraints = root / "constraints.txt"
    pinned = {}
    if constraints.is_file():
        for line in constraints.read_text(encoding="utf-8").splitlines():
            name, found, version = line.partition(";")[0].strip().partition("==")
            if found:
                pinned[name.lower().replace("_", "-")] = version.strip()
    for name in MAIN:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check("missing", name, "not installed", "make env")
            continue
        wanted = pinned.get(name, version)
        same = version.partition("+")[0] == wanted.partition("+")[0]
        yield Check(
            "ok" if same else "optional",
            name,
            version,
            "" if same else f"constraints.txt has {wanted}: make env",
        )


def _folder(root: Path) -> Iterator[Check]:
    try:
        prepare_dvc(root)
        scm = "with git" if (root / ".git").exists() else "without git"
        yield Check("ok", "DVC", f"{root / '.dvc'}, {scm}")
    except UserError as error:
        yield Check("missing", "DVC", str(error), "unpack or clone it again")
    except OSError as error:
        yield Check("missing", "DVC", explain_os(error)[0], "see `can be written` below")
    yield from _writable(root)
    yield _store()
    who = holder(root)
    yield Check("fact", "at work here", who or "nobody")
    git = shutil.which("git")
    yield Check(
        "ok" if git else "optional",
        "git",
        git or "none: nights note no commit",
        "" if git else "apt-get install git",
    )


def _writable(root: Path) -> Iterator[Check]:
    """Whether a file can be made and grown in every folder that a run writes to; the mode of a folder does not tell."""
    made = (paths.metrics_file("any"), paths.report_file(), paths.mlruns_dir() / "any")
    folders = [
        root,
        *(root / name for name in (".lensmith", ".dvc", "data", ".prefect")),
        *(file.parent for file in made),
    ]
    refused: dict[str, str] = {}
    for folder in [*folders, Path(tempfile.gettempdir())]:
        if folder != root and not folder.exists():
            continue  # it is made below root, which is tried
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor-", suffix=".partial") as trial:
                trial.write(bytes(4096))
                trial.flush()
        except OSError as error:
            error.filename = str(folder)
            refused[str(folder)] = explain_os(error)[0]
    if not refused:
        yield Check("ok", "can be written", f"{root} and what a run writes in it, {tempfile.gettempdir()}")
    for folder_name, said in refused.items():
        text, _, remedy = said.partition(". ")
        yield Check("missing", "can be written", text or folder_name, remedy or "make room, or choose another folder")


def _store() -> Check:
    if not tracking.enabled():
        return Check("optional", "MLflow store", "off", "unset LENSMITH_TRACKING")
    uri = tracking.uri()
    file = tracking.sqlite_file(uri)
    if file is None:
        return Check("fact", "MLflow store", uri)
    if not file.exists():
        return Check("ok", "MLflow store", f"{file}, made by the first run")
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            count = database.execute("select count(*) from runs").fetchone()[0]
        return Check("ok", "MLflow store", f"{uri}, {count} runs")
    except sqlite3.Error as error:
        return Check(
            "missing",
            "MLflow store",
            f"{uri}: {error}",
            "move the file away: MLflow is a projection, results are kept",
        )


def _programs() -> Iterator[Check]:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    yield Check(
        "ok" if browser else "optional",
        "Chromium",
        browser or "none: the browser test is skipped",
        "" if browser else "apt-get install chromium",
    )
    remedies = {
        "bubblewrap": "apt-get install bubblewrap; without it `score` needs --trust",
        "seccomp": "needs bubblewrap on x86-64 or arm64; without it namespaces and rlimits hold alone",
        "cgroup": "run within `systemd-run --user --scope -p Delegate=yes`; without it rlimits hold alone",
    }
    for layer in layers():
        remedy = "" if layer.active else remedies.get(layer.name, "")
        state: Literal["ok", "optional", "fact"] = "ok" if layer.active else "optional" if remedy else "fact"
        what = layer.name if layer.name == "bubblewrap" else f"sandbox: {layer.name}"
        yield Check(state, what, layer.detail, remedy)


def _machine(root: Path) -> Iterator[Check]:
    import psutil

    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 2**30
    free = shutil.disk_usage(root).free / 2**30
    yield Check("fact", "cores", f"{cores}, threads per stage {os.environ.get('OMP_NUM_THREADS', '1')}", "")
    yield Check(
        "ok" if memory >= MEMORY_GIB else "missing",
        "memory",
        f"{memory:.1f} GiB",
        "" if memory >= MEMORY_GIB else f"a run needs {MEMORY_GIB:.0f} GiB: use --jobs 1",
    )
    yield Check(
        "ok" if free >= DISK_GIB else "missing",
        "free disk",
        f"{free:.1f} GiB",
        "" if free >= DISK_GIB else f"a run wants {DISK_GIB:.0f} GiB: free some",
    )


def _costs(root: Path) -> Iterator[Check]:
    nodes = load_durations(root).nodes
    minutes = sum(node.wall_s for node in nodes.values()) / 60
    if nodes:
        text = f"about {minutes:.0f} min of node time, two nodes at a time, {len(nodes)} nodes"
        text += " (measured)"
    else:
        text = f"at most {COLD_RUN_S // 60} min on 2 cores; again: some seconds"
    yield Check("fact", "a cold run takes", f"{text}; up to {DISK_GIB:.0f} GiB of disk")


def _places(root: Path) -> Iterator[Check]:
    for what, path in (
        ("working copy", root),
        ("results", root / "data"),
        ("numbers", paths.metrics_file("leaderboard").parent),
        ("page", paths.report_file()),
        ("logs of the nodes", root / ".lensmith" / "logs"),
    ):
        yield Check("fact", what, str(path) + ("" if path.exists() else " (not made yet)"))
