"""The three meters together, fresh instances, and the seals."""

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from stages.base import paths
from stages.contracts.journal import Infra
from stages.errors import UserError
from stages.metering.cpu_time import Calibration, Unexplained, calibrate
from stages.redteam.red_team import CONTROLS
from stages.research.journal import Journal
from stages.sandbox.groups import descendants
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Source
from stages.scoring.fresh import fresh_gap, fresh_task
from stages.scoring.isolated import Isolated, TargetGuard
from stages.scoring.settings import settings
from stages.tasks.generation import instance_keys
from tests import toy
from tests.sandbox.test_killed import gone
from tests.sandbox.walls import TRUST, needs_sandbox

RATES = Calibration(1e11, 2e9, 0.1, 9)
CASE = ("active_learning", "digits_mlp")
HEAD = """
import time, torch
import numpy as np
from stages.interpretation import Interpretation, Method
class Mine(Method):
    def interpret(self, target, budget): return Interpretation()
"""


def asked(tmp_path, body: str, timeout: float = 30.0):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "), encoding="utf-8")
    chosen = settings()
    candidate, host = Candidate("mine", Source.of(path)), Isolated(chosen.interpretation, calibrate(), timeout, TRUST)
    frozen = host.freeze(candidate, [CASE[1]])[CASE[1]]
    task, target = cached_task(*CASE), cached_target(CASE[1])
    return candidate, host, frozen, host.ask(candidate, frozen, task, target), task, target


@pytest.mark.parametrize(
    ("cpu_s", "calls", "ops", "own", "void"),
    [
        (0.01, 1, 10, 0.0, False),  # an ordinary answer
        (0.24, 0, 0, 0.0, False),  # within the allowance
        (2.0, 0, 0, 0.0, True),  # two seconds of nothing that was counted
        (2.0, 0, 0, 2e9, False),  # slow pointwise work that was declared
        (1.0, 0, 20_000, 0.0, False),  # many small ops that were declared
        (60.0, 0, 10**12, 0.0, True),  # more ops than a process may declare
        (2.0, 1000, 0, 0.0, False),  # a thousand messages
    ],
)
def test_cpu_time_decides_what_is_void(cpu_s, calls, ops, own, void):
    spent = Unexplained.of(cpu_s, calls, ops, 1e6, own, RATES)
    assert bool(spent.void) is void
    assert spent.charge >= 1e6 + own
    assert ("2.00 s of CPU" in spent.void) == (void and cpu_s == 2.0)


def test_the_charge_is_the_largest_of_the_layers():
    spent = Unexplained.of(1.25, 0, 0, 5e9, 0.0, RATES)
    assert spent.flops == pytest.approx(1e11) and spent.charge == spent.flops
    assert Unexplained.of(0.1, 0, 0, 5e9, 1e9, RATES).charge == 6e9


def test_calibration_is_plausible():
    rates = calibrate()
    assert 1e8 < rates.pointwise < rates.dense < 1e13 and rates.spread >= 0


def test_an_honest_answer_is_ok_and_its_layers_are_reported(graph, tmp_path):
    body = """
    def answer(self, query, interpretation, target):
        return target.forward(query.inputs).outputs @ torch.ones(10, 2)
    """
    *_, apart, _, _ = asked(tmp_path, body)
    assert apart.status == "ok" and apart.meters["flops_a"] > 0 and apart.meters["flops_c"] == 0
    assert apart.meters["flops_b"] == 2 * 50 * 10 * 2
    assert apart.meters["charged_flops"] == apart.meters["flops_a"] + apart.meters["flops_b"]
    assert 0 < apart.meters["cpu_s"] < apart.meters["cpu_allowed_s"]


@pytest.mark.parametrize(
    ("body", "layer"),
    [
        (
            """
            def answer(self, query, interpretation, target):
                a = np.ones((2048, 2048), dtype=np.float32)
                for _ in range(60): a @ a
                return None
            """,
            "CPU meter",
        ),
        (
            """
            def answer(self, query, interpretation, target):
                from torch.utils._python_dispatch import _get_current_dispatch_mode as mode
                torch.ones(64, 64) @ torch.ones(64, 64)
                mode().flops = 0
                return None
            """,
            "method meter",
        ),
    ],
)
def test_tampering_is_void_and_never_a_score(graph, tmp_path, body, layer):
    *_, apart, _, _ = asked(tmp_path, body)
    assert (apart.status, apart.layer) == ("void", layer)
    assert apart.rows is None


def test_a_target_that_changes_is_noticed(mlp):
    with TargetGuard(mlp) as check:
        pass
    assert check.fault() == ""
    weight = next(mlp.model.parameters())
    kept = weight.detach().clone()
    try:
        with TargetGuard(mlp) as check:
            weight.data.mul_(1.01)
    finally:
        weight.data.copy_(kept)
    assert "weights changed" in check.fault()


def test_fresh_instances_are_new_each_time_and_the_gap_has_an_interval(graph, tmp_path):
    candidate, host, frozen, apart, task, target = asked(
        tmp_path, "def answer(self, query, interpretation, target): return target.forward(query.inputs).outputs"
    )
    seen = set(instance_keys(task.instances))
    first, second = (set(instance_keys(fresh_task(task, target, 20).instances)) for _ in range(2))
    assert not seen & first and not seen & second and first != second
    assert not fresh_task(task, target, 20).instances.planted
    gap = fresh_gap(host, candidate, frozen, apart, task, target)
    assert gap is not None and gap.gap == pytest.approx(gap.old - gap.fresh, abs=1e-5)
    assert gap.gap_low <= gap.gap_high and gap.n_fresh == 40


@needs_sandbox
def test_a_second_answer_starts_from_nothing(graph, tmp_path):
    """Two answers share neither memory nor files nor what they did to I(M)."""
    body = """
    def answer(self, query, interpretation, target):
        import os
        before = os.path.exists("/tmp/x") or hasattr(torch, "left_behind")
        open("/tmp/x", "w").close(); torch.left_behind = True
        return torch.full((len(query.inputs), 1), float(before))
    """
    candidate, host, frozen, first, task, target = asked(tmp_path, body)
    second = host.ask(candidate, frozen, task, target)
    assert first.rows is not None and second.rows is not None
    assert first.rows.max() == second.rows.max() == 0


def test_an_edited_journal_is_void(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    for iteration in range(4):
        journal.append(Infra(iteration=iteration, reason="0.25"))
    assert len(Journal(path).events) == 4
    whole = path.read_text(encoding="utf-8")
    lines = whole.splitlines(keepends=True)
    for edited in (whole.replace("0.25", "0.75", 1), "".join(lines[:1] + lines[2:]), "".join([lines[1], *lines])):
        path.write_text(edited, encoding="utf-8")
        with pytest.raises(UserError, match="does not follow from the lines before it"):
            Journal(path)


def results(graph: Path) -> dict[Path, int]:
    """Everything but work in progress, with its time of writing."""
    return {f: f.stat().st_mtime_ns for f in graph.rglob("*") if f.is_file() and paths.work_dir() not in f.parents}


@needs_sandbox
def test_killing_the_orchestrator_leaves_neither_processes_nor_half_results(graph):
    """kill -9 of `score` at random moments, with workers and sandboxes below it; then it simply runs again."""
    code = (
        "import sys; from pathlib import Path; from stages.scoring.score import score_method;"
        " print('started', flush=True); score_method(Path(sys.argv[1]), progress=lambda said: None); print('done')"
    )
    method = CONTROLS / "numpy_heavy.py"
    before = results(graph)
    rng = random.Random(2)
    for _ in range(int(os.environ.get("LENSMITH_KILL_MOMENTS", "2"))):
        one = subprocess.Popen(
            [sys.executable, "-c", code, str(method)],
            cwd=toy.ROOT,
            env=os.environ | {"LENSMITH_JOBS": "2"},
            stdout=subprocess.PIPE,
        )
        assert one.stdout is not None and one.stdout.readline() == b"started\n"
        time.sleep(rng.uniform(0.5, 14.0))
        below = set(descendants(one.pid))
        one.kill()
        one.wait()
        left = {pid: Path(f"/proc/{pid}/cmdline").read_bytes()[:200] for pid in gone(below, 20.0)}
        assert left == {}
        assert results(graph) == before
        for file in paths.work_dir().rglob("*.json"):
            json.loads(file.read_text(encoding="utf-8"))
