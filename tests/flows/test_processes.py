"""Which processes are a run's: never one that merely has the number of one."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest

from flows.processes import ChildProcesses, ProcessIdentity, nodes_at_work
from tests.flows.conftest import until

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dvc.yaml").write_text("")
    return tmp_path


@pytest.fixture
def sleeper() -> "Iterator[subprocess.Popen[bytes]]":
    process = subprocess.Popen(SLEEP, process_group=0)
    yield process
    process.kill()
    process.wait(600)


class Child:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid

    def wait(self, timeout: float) -> int | None:
        return None


def noted(root: Path) -> tuple[Path, ProcessIdentity]:
    (path,) = (root / ".lensmith" / "children").iterdir()
    return path, ProcessIdentity(**json.loads(path.read_text()))


def test_leftovers_of_a_killed_run_are_ended(root: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    ChildProcesses(root).add(Child(sleeper), "arm@a")
    assert nodes_at_work(root) == ["arm@a"]
    assert ChildProcesses(root).end_leftovers() == 1
    assert not psutil.pid_exists(sleeper.pid)
    assert nodes_at_work(root) == [] and ChildProcesses(root).end_leftovers() == 0


def test_members_of_a_group_whose_leader_is_gone_are_ended(root: Path) -> None:
    code = f"import subprocess, time; print(subprocess.Popen({SLEEP!r}).pid, flush=True)"
    code += "; time.sleep(600)"
    leader = subprocess.Popen([sys.executable, "-c", code], process_group=0, stdout=subprocess.PIPE)
    assert leader.stdout is not None
    member = psutil.Process(int(leader.stdout.readline()))
    ChildProcesses(root).add(Child(leader), "first")
    leader.kill()
    leader.wait(600)
    assert member.is_running()
    assert ChildProcesses(root).end_leftovers() == 1
    until(lambda: not member.is_running() or member.status() == psutil.STATUS_ZOMBIE)


@pytest.mark.parametrize("change", [{"started": 1.0}, {"boot": "another"}, {"host": "another"}])
def test_a_process_that_has_the_number_of_an_old_one_is_left_alone(
    root: Path, sleeper: "subprocess.Popen[bytes]", change: dict[str, object]
) -> None:
    ChildProcesses(root).add(Child(sleeper), "first")
    path, identity = noted(root)
    path.write_text(json.dumps(asdict(replace(identity, **change))))  # type: ignore[arg-type]
    assert ChildProcesses(root).end_leftovers() == 0
    assert sleeper.poll() is None


def test_a_half_written_note_is_dropped(root: Path) -> None:
    folder = root / ".lensmith" / "children"
    folder.mkdir(parents=True)
    (folder / "host-12.json").write_text('{"node": "fir')
    assert nodes_at_work(root) == []
    assert ChildProcesses(root).end_leftovers() == 0
    assert list(folder.iterdir()) == []


def test_a_process_added_while_everything_stops_is_ended_too(root: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    children = ChildProcesses(root)
    children.stop()
    children.add(Child(sleeper), "first")
    assert sleeper.wait(600) == -9
