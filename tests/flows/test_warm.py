"""Warm processes: what runs in a fork is what would run in a process of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.flows.conftest import Toy, until

WARM = {"LENSMITH_WARM": ""}
"""Both warm processes, as in a run of the real graph."""

NAMES = ("first", "a", "b", "join")


def outputs(toy: Toy) -> dict[str, object]:
    files = [path for folder in ("data", "metrics") for path in (toy.root / folder).rglob("*")]
    made: dict[str, object] = {str(path.relative_to(toy.root)): path.read_bytes() for path in files if path.is_file()}
    # The order of arms in the lock is the order in which they ended.
    return made | {"dvc.lock": yaml.safe_load((toy.root / "dvc.lock").read_text())}


def facts(toy: Toy, node: str) -> dict[str, object]:
    lines = (toy.root / ".lensmith" / "logs" / f"{node}.log").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("facts ")]
    found: dict[str, object] = json.loads(line.removeprefix("facts "))
    return found


def worker(toy: Toy, name: str) -> int:
    """Process id of a stage at work."""
    return int((toy.root / "executions.log").read_text().split(f"start {name} ")[1].split()[1])


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_fork_is_like_a_process_of_its_own(toy: Toy) -> None:
    for name in NAMES:
        toy.ask(name, "facts")
    assert toy.lensmith("run", MARK="x", **WARM).returncode == 0
    warm = {node: facts(toy, node) for node in ("first", "arm@a", "arm@b", "join")}
    assert all(fact["torch"] for fact in warm.values()), "they were not forked from the warm process"
    made = outputs(toy)
    cold_run = toy.lensmith("run", "--jobs", "1", MARK="x", LENSMITH_WARM="off")
    assert "nothing executed" in cold_run.stdout, "the lock of the forks is not that of dvc"
    toy.dvc("repro", "-f")
    assert outputs(toy) == made
    (toy.root / "dvc.lock").unlink()
    shutil.rmtree(toy.root / ".dvc" / "cache" / "runs")
    assert toy.lensmith("run", MARK="x", LENSMITH_WARM="off").returncode == 0
    assert outputs(toy) == made
    for node, fact in warm.items():
        cold = facts(toy, node)
        assert not cold["torch"] and not fact["dvc"]
        for name in ("argv", "cwd", "mark", "sigint", "sigterm", "main", "path", "environment"):
            assert fact[name] == cold[name], name
        assert fact["random"] != cold["random"]
    assert len({str(fact["random"]) for fact in warm.values()}) == 4, "they draw the same numbers"


@pytest.mark.parametrize(
    ("wish", "code", "cause"),
    [
        ("user", 2, "params/toy.yaml: steps = -1"),
        ("ours", 1, "RuntimeError: shape (3,) is not (4,)"),
        ("kill", 1, "the stage was killed, most likely for memory"),
    ],
)
def test_failures_of_a_fork_are_told_as_others_are(toy: Toy, wish: str, code: int, cause: str) -> None:
    toy.ask("first", wish)
    told = []
    for environment in (WARM, {"LENSMITH_WARM": "off"}):
        done = toy.lensmith("run", **environment)
        assert done.returncode == code, done.stderr
        told.append([line for line in done.stderr.splitlines() if line.startswith("error: ")])
    assert told[0] == told[1] and cause in told[0][0]


def test_debug_shows_the_traceback_of_a_fork(toy: Toy) -> None:
    toy.ask("first", "ours")
    assert toy.lensmith("run", "--debug", **WARM).returncode == 1
    log = (toy.root / ".lensmith" / "logs" / "first.log").read_text()
    assert "Traceback" in log and "RuntimeError: shape (3,)" in log


def test_interrupt_reaches_a_fork(toy: Toy) -> None:
    toy.ask("a", "hang")
    running = toy.start("run", **WARM)
    until(lambda: "a" in toy.log() and "b" in toy.log("end"))
    stage = worker(toy, "a")
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=600)
    assert running.returncode == 130
    until(lambda: gone(stage))
    assert "KeyboardInterrupt" in (toy.root / ".lensmith" / "logs" / "arm@a.log").read_text()


def test_kill_9_of_the_run_ends_the_warm_processes_and_their_forks(toy: Toy) -> None:
    toy.ask("a", "hang")
    running = toy.start("run", **WARM)
    until(lambda: "a" in toy.log() and "b" in toy.log("end"))
    stage = worker(toy, "a")
    ours = [process.pid for process in psutil.Process(running.pid).children(recursive=True)]
    assert stage in ours
    running.kill()
    running.communicate(timeout=600)
    until(lambda: all(map(gone, ours)))
    toy.grant("a")
    toy.forget_log()
    done = toy.lensmith("run", **WARM)
    assert done.returncode == 0, done.stderr + done.stdout
    assert set(toy.log()) <= {"a", "b", "join"} and toy.log("end")[-1] == "join"


def test_a_killed_command_ends_its_fork(toy: Toy) -> None:
    toy.ask("first", "hang")
    running = toy.start("run", **WARM)
    until(lambda: toy.log() == ["first"])
    stage = worker(toy, "first")
    group = os.getpgid(stage)
    members = [process for process in psutil.process_iter() if in_group(process.pid, group)]
    (command,) = [process for process in members if process.pid != stage and process.cmdline()[1:3] == ["-m", "stages"]]
    command.kill()
    _, errors = running.communicate(timeout=600)
    assert gone(stage)
    assert running.returncode == 1 and "the stage was killed" in errors


def in_group(pid: int, group: int) -> bool:
    try:
        return os.getpgid(pid) == group
    except OSError:
        return False


def test_code_that_changed_is_not_run_by_the_warm_process(toy: Toy) -> None:
    """The fork has an old stages/errors.py in its memory, so the command runs by itself."""
    toy.ask("first", "slow")
    toy.ask("join", "facts")
    running = toy.start("run", **WARM)
    until(lambda: toy.log() == ["first"])
    with (toy.root / "stages" / "errors.py").open("a") as file:
        file.write("\n# changed\n")
    _, errors = running.communicate(timeout=600)
    assert running.returncode == 0, errors
    assert facts(toy, "join")["torch"] is False


@pytest.mark.parametrize("kind", ["stages", "dvc"])
def test_a_warm_process_starts_no_thread_and_touches_no_gpu(kind: str) -> None:
    code = (
        "import importlib, os, sys, flows.warm as warm\n"
        f"for name in warm.STAGE_LIBRARIES if {kind == 'stages'} else warm.DVC_LIBRARIES:\n"
        "    importlib.import_module(name)\n"
        "torch = sys.modules.get('torch')\n"
        "print(len(os.listdir('/proc/self/task')), bool(torch and torch.cuda.is_initialized()))"
    )
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.stdout == "1 False\n", done.stderr
