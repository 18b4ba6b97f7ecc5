"""kill -9 at random moments: of the sandboxed process and of the process that serves it. Nothing is left behind."""

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from stages.contracts.method import Represent
from stages.errors import MethodError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.sandbox.groups import descendants
from stages.sandbox.host import MethodProcess
from tests.sandbox.walls import needs_sandbox

MOMENTS = int(os.environ.get("LENSMITH_KILL_MOMENTS", "3"))
METHOD = """
from lensmith import Interpretation, Method
class Busy(Method):
    def interpret(self, target, budget): return Interpretation()
    def answer(self, query, interpretation, target):
        for _ in range(2000): target.forward(query.inputs)
        return target.forward(query.inputs).outputs
"""
SERVER = """
import sys
from lensmith import Interpretation, Represent
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.sandbox.host import MethodProcess
from tests.conftest import make_target
target = make_target("digits_mlp", steps=1)
with MethodProcess(sys.argv[1], "busy", 60) as process:
    print("ready", flush=True)
    while True:
        process.answer(Represent(target.corpus("train").inputs[:50]), Interpretation(), MeteredAccess(target, Ledger()))
"""


def alive(pids: set[int]) -> set[int]:
    found = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state not in "ZX":
            found.add(pid)
    return found


def gone(pids: set[int], seconds: float = 10.0) -> set[int]:
    until = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < until:
        time.sleep(0.05)
    return alive(pids)


@needs_sandbox
def test_killing_the_sandboxed_process_is_a_failure_in_one_line(tmp_path, mlp):
    path = tmp_path / "busy.py"
    path.write_text(METHOD, encoding="utf-8")
    inputs, rng = mlp.corpus("train").inputs[:50], random.Random(0)
    before = set(descendants(os.getpid()))
    for _ in range(MOMENTS):
        with MethodProcess(path, "busy", 60) as process:
            made = process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
            victims = [process._root, *descendants(process._root)]
            timer = threading.Timer(rng.uniform(0, 0.4), lambda v=victims: os.kill(rng.choice(v), signal.SIGKILL))
            timer.start()
            with pytest.raises(MethodError, match="its process ended"):
                process.answer(Represent(inputs), made, MeteredAccess(mlp, Ledger()))
            timer.join()
    assert gone(set(descendants(os.getpid())) - before) == set()


@needs_sandbox
def test_killing_the_server_ends_the_sandbox(tmp_path):
    path = tmp_path / "busy.py"
    path.write_text(METHOD, encoding="utf-8")
    rng = random.Random(1)
    for _ in range(MOMENTS):
        server = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(SERVER), str(path)],
            cwd=Path(__file__).resolve().parents[2],
            stdout=subprocess.PIPE,
        )
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        time.sleep(rng.uniform(0, 0.5))
        inside = set(descendants(server.pid))
        assert len(inside) >= 2
        server.kill()
        server.wait()
        assert gone(inside) == set()
