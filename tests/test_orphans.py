"""Killed at any moment, also while its workers are starting, a command leaves no process behind."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.base.processes import MARK
from stages.sandbox.groups import descendants
from tests.sandbox.test_killed import gone

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import time
from joblib import delayed
from stages.base.processes import process_pool
print("started", flush=True)
with process_pool(2) as pool:
    for _ in range(100):
        pool(delayed(time.sleep)(0.05) for _ in range(4))
print("ended", flush=True)
"""


def start() -> subprocess.Popen:
    one = subprocess.Popen([sys.executable, "-c", CODE], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert one.stdout is not None and one.stdout.readline() == b"started\n"
    return one


def marked(mark: bytes) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
        except OSError:
            continue
    return found


def marks_below(pid: int) -> set[bytes]:
    found = set()
    for child in descendants(pid):
        try:
            for part in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                if part.startswith(MARK.encode()):
                    found.add(part)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_killed_while_workers_start_or_work_nothing_is_left():
    rng = random.Random(0)
    for _ in range(int(os.environ.get("LENSMITH_KILL_MOMENTS", "4"))):
        one = start()
        time.sleep(rng.uniform(0.0, 1.2))
        below, marks = set(descendants(one.pid)), marks_below(one.pid)
        one.kill()
        one.wait()
        assert gone(below, 20.0) == set()
        assert [pid for mark in marks for pid in marked(mark)] == []


def test_ended_in_good_order_nothing_is_killed_and_nothing_left():
    one = start()
    time.sleep(1.0)
    below = set(descendants(one.pid))
    out, _ = one.communicate(timeout=60)
    assert out == b"ended\n" and one.returncode == 0
    assert len(below) >= 3
    assert gone(below, 20.0) == set()
