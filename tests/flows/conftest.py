"""A toy working copy: the smallest graph that has everything the real one has (arms, a join, a
headline metric).
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]

DVC_YAML = """
vars:
  - params/arms.yaml:arms
stages:
  first:
    cmd: python -m stages toy first data/first
    deps:
      - stages/toy/stage.py
    outs:
      - data/first
  arm:
    matrix:
      name: ${arms}
    cmd: python -m stages toy ${item.name} data/arm/${item.name}
    deps:
      - stages/toy/stage.py
      - source/${item.name}.txt
      - data/first
    outs:
      - data/arm/${item.name}
  join:
    cmd: python -m stages toy join metrics/leaderboard.json
    deps:
      - stages/toy/stage.py
      - data/arm
    outs:
      - metrics/leaderboard.json
metrics:
  - metrics/leaderboard.json
"""

# A stage that can be told to fail, to hang or to be slow, and that notes when it ran.
WORK = """
import json, os, pathlib, sys, time
from stages import tracking
from stages.errors import UserError

ROW = {"method": "pca", "split": "validation", "reward_mean": 0.25, "reward_low": 0.1,
       "reward_high": 0.4, "performance_gain": 0.2, "flop_ratio": 0.5, "placebo_reward": 0.0,
       "n_tasks": 3, "n_seeds": 3, "n_instances": 40, "status": "ok"}

def note(what):
    with open("executions.log", "a") as log:
        print(what, sys.argv[1], time.time(), os.getpid(), file=log)

def main():
    name, out = sys.argv[1], pathlib.Path(sys.argv[2])
    note("start")
    with tracking.stage_run(name) as log:
        log({"loss": 0.5}, 0)
    print(f"{name} at work", flush=True)
    asked = pathlib.Path(f"ask-{name}")
    wish = asked.read_text() if asked.exists() else ""
    if wish == "user":
        raise UserError("params/toy.yaml: steps = -1: Input should be greater than 0")
    if wish == "ours":
        raise RuntimeError("shape (3,) is not (4,)")
    if wish == "full":
        raise OSError(28, "No space left on device", str(out))
    if wish == "hang":
        time.sleep(600)
    if wish == "kill":
        os.kill(os.getpid(), 9)
    if wish == "slow":
        time.sleep(4)
    out.parent.mkdir(parents=True, exist_ok=True)
    source = pathlib.Path(f"source/{name}.txt")
    if wish == "facts":
        import random, signal
        facts = {"argv": sys.argv, "cwd": os.getcwd(), "mark": os.environ.get("MARK"),
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "sigterm": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "main": sys.modules["__main__"].__spec__.name, "path": sys.path[0],
            "random": random.random(), "torch": "torch" in sys.modules,
            "environment": sorted(os.environ), "dvc": "dvc" in sys.modules}
        print("facts", json.dumps(facts), flush=True)
    text = f"{name} {source.read_text() if source.exists() else ''}"
    out.write_text(json.dumps([ROW]) if name == "join" else text)
    note("end")
"""


class Toy:
    """A working copy in a folder of its own, and the means to run commands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def environment(self, **more: str) -> dict[str, str]:
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MLFLOW_", "PREFECT_", "RUN_"))
        }
        kept |= {
            "LENSMITH_ROOT": str(self.root),
            "LENSMITH_TRACKING": "off",
            "LENSMITH_WARM": "dvc",  # importing torch takes longer than all of the toy
            "PYTHONPATH": str(REPOSITORY),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "COLUMNS": "200",
            "DVC_NO_ANALYTICS": "1",
            "OMP_NUM_THREADS": "1",
        }
        return kept | more

    def arguments(self, *words: str) -> list[str]:
        # -P: the house's code, not the few files of it that the toy has for its stages.
        return [sys.executable, "-P", "-m", "flows.command", *words]

    def lensmith(self, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.arguments(*words),
            cwd=self.root,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=600,
        )

    def start(self, *words: str, **more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.arguments(*words),
            cwd=self.root,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def dvc(self, *words: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "dvc", *words],
            cwd=self.root,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def ask(self, name: str, wish: str) -> None:
        """Make a stage fail (user, ours, full, kill), hang or be slow."""
        (self.root / f"ask-{name}").write_text(wish)

    def grant(self, name: str) -> None:
        (self.root / f"ask-{name}").unlink()

    def log(self, what: str = "start") -> list[str]:
        path = self.root / "executions.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.startswith(what)]

    def forget_log(self) -> None:
        (self.root / "executions.log").unlink(missing_ok=True)


def until(condition: Callable[[], object], seconds: float = 600) -> None:
    """Wait for a condition, and fail if it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def make_toy(root: Path) -> Toy:
    for folder in ("params", "source"):
        (root / folder).mkdir(parents=True)
    (root / "params" / "arms.yaml").write_text("arms: [a, b]\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    # A room of its own beside the house's modules: its commands are started as those of the real
    # graph.
    room = root / "stages" / "toy"
    room.mkdir(parents=True)
    (room / "__init__.py").write_text("")
    (room / "stage.py").write_text(WORK)
    for folder in (REPOSITORY / "stages", REPOSITORY / "stages" / "base"):
        for path in folder.glob("*.py"):
            copy = root / path.relative_to(REPOSITORY)
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
    (root / ".gitignore").write_text(
        "/data/\n/metrics/\n/mlruns/\n/.lensmith/\n/.prefect/\nexecutions.log\nask-*\n__pycache__/\n"
    )
    for arm in ("a", "b"):
        (root / "source" / f"{arm}.txt").write_text("1\n")
    toy = Toy(root)
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    toy.dvc("init", "-q")
    return toy


@pytest.fixture(scope="session")
def _fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "fresh"
    make_toy(root)
    return root


@pytest.fixture(scope="session")
def _done(_fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy") / "done"
    shutil.copytree(_fresh, root, symlinks=True)
    done = Toy(root).lensmith("run")
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def toy(_fresh: Path, tmp_path: Path) -> Toy:
    """A working copy in which nothing has run."""
    return Toy(Path(shutil.copytree(_fresh, tmp_path / "copy", symlinks=True)))


@pytest.fixture
def done_toy(_done: Path, tmp_path: Path) -> Toy:
    """A working copy in which everything has run."""
    return Toy(Path(shutil.copytree(_done, tmp_path / "copy", symlinks=True)))
