"""What a job is held to have taken does not hang on what else the machine does."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.errors import InfraError, MethodError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.sandbox import stopwatch
from stages.sandbox.groups import _children, _children_of_all, cpu_seconds, descendants, waits
from stages.sandbox.host import MethodProcess
from stages.sandbox.stopwatch import Stopwatch
from tests.sandbox.test_host import write
from tests.sandbox.walls import TRUST

SPIN = "import time\nend = time.process_time() + {cpu}\nwhile time.process_time() < end: pass\n"
SPIN += "print('done', flush=True)\n{then}"
needs_schedstat = pytest.mark.skipif(not waits(os.getpid()), reason="this kernel does not say how long threads wait")


def started(cpu: float, then: str = "input()") -> subprocess.Popen[bytes]:
    line = [sys.executable, "-S", "-c", SPIN.format(cpu=cpu, then=then)]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


@needs_schedstat
def test_waiting_for_a_cpu_does_not_count_and_working_does():
    """One CPU, and four others on it: by the clock on the wall the job takes far longer than it works."""
    rivals = [started(60.0) for _ in range(4)]
    job = started(0.6)
    try:
        one = min(os.sched_getaffinity(0))
        for each in (*rivals, job):
            os.sched_setaffinity(each.pid, {one})
        began, watch = time.monotonic(), Stopwatch(job.pid, lambda: cpu_seconds(job.pid), 60.0)
        assert job.stdout is not None and job.stdout.readline() == b"done\n"
        wall, seconds = time.monotonic() - began, watch.seconds()
        worked = cpu_seconds(job.pid)
    finally:
        for each in (*rivals, job):
            each.kill()
            each.wait()
    assert seconds < 0.4 * wall, "four fifths of the time went to others"
    assert 0.5 * worked <= seconds <= worked + 0.3 * wall


def test_sleeping_counts_and_our_own_work_counts_as_work_alone():
    job = started(0.0, "time.sleep(60)")
    try:
        assert job.stdout is not None and job.stdout.readline() == b"done\n"
        asleep, served = (Stopwatch(job.pid, lambda: cpu_seconds(job.pid), 60.0) for _ in range(2))
        with served.serving():
            time.sleep(0.5)
            until = time.thread_time() + 0.2
            while time.thread_time() < until:
                pass
        assert asleep.seconds() >= 0.7 * 0.9
        assert 0.2 <= served.seconds() < asleep.seconds() - 0.3
    finally:
        job.kill()
        job.wait()


def test_what_the_machine_is_too_busy_for_is_no_fault_of_the_method(mlp, tmp_path, monkeypatch):
    """The same sleep: counted it has failed, not counted (as if it had waited for a CPU) the machinery has."""
    body = "def interpret(self, target, budget): time.sleep(60)"
    with (
        MethodProcess(write(tmp_path, body), "mine", 1, trust=TRUST) as process,
        pytest.raises(MethodError, match="longer than 1 s"),
    ):
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
    monkeypatch.setattr(stopwatch, "FAR", 2.0)
    monkeypatch.setattr(Stopwatch, "seconds", lambda self: 0.1)
    with (
        MethodProcess(write(tmp_path, body), "mine", 1, trust=TRUST) as process,
        pytest.raises(InfraError, match="too busy"),
    ):
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)


def test_half_a_message_is_no_way_to_sleep_longer(mlp, tmp_path, monkeypatch):
    """The far limit is for machines, not for methods."""
    monkeypatch.setattr(stopwatch, "FAR", 1000.0)
    body = """
    def interpret(self, target, budget):
        import socket, struct
        for fd in range(3, 64):
            try: os.write(fd, struct.pack("!QQ", 1000, 0) + b"{")
            except OSError: pass
        time.sleep(60)
    """
    with (
        MethodProcess(write(tmp_path, body), "mine", 1, trust=TRUST) as process,
        pytest.raises(MethodError, match="longer than 1 s"),
    ):
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)


@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="this kernel lists no children")
def test_children_are_those_that_a_look_at_every_process_finds():
    job = subprocess.Popen(["/bin/sh", "-c", "sleep 30 & sleep 30 & wait"])
    try:
        until = time.monotonic() + 20
        while len(descendants(job.pid)) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        of_all = _children_of_all()
        assert sorted(_children(job.pid)) == sorted(of_all(job.pid)) == sorted(descendants(job.pid))
        assert len(of_all(job.pid)) == 2 and job.pid in _children(os.getpid())
    finally:
        for pid in descendants(job.pid):
            os.kill(pid, 9)
        job.kill()
        job.wait()
