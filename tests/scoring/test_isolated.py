"""What an answer is charged, fresh instances, and the seals."""

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from stages.base import paths
from stages.contracts.journal import Infra
from stages.errors import UserError
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import Calibration, calibrate
from stages.metering.ledger import Ledger
from stages.redteam.red_team import CONTROLS
from stages.research.journal import Journal
from stages.sandbox.groups import descendants
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Source
from stages.scoring.evaluate import questions
from stages.scoring.fresh import fresh_gap, fresh_task, n_fresh
from stages.scoring.isolated import Isolated, TargetGuard
from stages.scoring.settings import settings
from stages.tasks.generation import instance_keys
from tests import toy
from tests.sandbox.test_killed import gone
from tests.sandbox.walls import TRUST, needs_sandbox

CASE = ("active_learning", "digits_mlp")
HEAD = """
import threading, time, torch
import numpy as np
from lensmith import Interpretation, Method
class Mine(Method):
    adaptive = ADAPTIVE
    def interpret(self, target, budget): return Interpretation()
"""


def asked(tmp_path, body: str, timeout: float = 30.0, adaptive: bool = False):
    path = tmp_path / "mine.py"
    head = HEAD.replace("ADAPTIVE", str(adaptive))
    path.write_text(head + textwrap.indent(textwrap.dedent(body), "    "), encoding="utf-8")
    chosen = settings()
    candidate, host = Candidate("mine", Source.of(path)), Isolated(chosen.interpretation, timeout, TRUST)
    frozen = host.freeze(candidate, [CASE[1]], questions([CASE]))[CASE[1]]
    task, target = cached_task(*CASE), cached_target(CASE[1])
    return candidate, host, frozen, host.ask(candidate, frozen, task, target), task, target


def test_calibration_is_plausible():
    rates = calibrate()
    assert 1e9 < rates.dense < 1e13 and rates.spread >= 0


def test_an_allowance_is_what_was_measured_and_the_rest_is_charged_at_the_fastest_rate():
    rates = Calibration(1e11, 0.1, 9, empty_s=0.02, byte_s=1e-9)
    assert rates.allowed_s(0) == 0.02 and rates.allowed_s(10**7) == pytest.approx(0.03)
    assert rates.flops(1.0) == pytest.approx(2e11) and rates.flops(-1.0) == 0.0


def test_a_recorded_answer_is_priced_exactly(graph, tmp_path):
    body = """
    def answer(self, query, interpretation, target):
        return target.forward(query.inputs).outputs @ torch.ones(10, 2)
    """
    *_, apart, task, target = asked(tmp_path, body)
    ledger = Ledger()
    MeteredAccess(target, ledger).forward(task.instances.arrays["inputs"])
    assert apart.status == "ok" and apart.unseen_flops == 0
    assert apart.own_flops == 2 * 10 * 2 and apart.target_flops == ledger.flops / 50


def test_work_in_python_is_worth_nothing_to_a_recorded_answer(graph, tmp_path):
    """It cannot see the data: whatever it computes, it could have computed in the free phase."""
    body = """
    def answer(self, query, interpretation, target):
        a = np.ones((512, 512), dtype=np.float32)
        for _ in range(20): a @ a
        for _ in range(1000):
            try: target.weights()
            except Exception: pass
        return torch.from_numpy(np.ones((len(query.inputs), 1), dtype=np.float32))
    """
    *_, apart, _, _ = asked(tmp_path, body)
    assert apart.status == "ok" and np.ptp(apart.rows) == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return torch.zeros(len(query.inputs)) if query.inputs.sum() > 0 else None", "asks for the values"),
        ("    return query.inputs.numpy()", "asks for the values"),
        ("    return query.inputs[query.inputs.sum(1) > 0]", "torch.where"),
        ("    x = query.inputs\n        x.add_(1.0)\n        return x", "clone it first"),
        ("    return target.forward(query.inputs.requires_grad_()).outputs.sum().backward()", "target.gradients"),
    ],
)
def test_what_cannot_be_recorded_says_what_to_write_instead(graph, tmp_path, body, said):
    *_, apart, _, _ = asked(tmp_path, f"def answer(self, query, interpretation, target):\n    {body}")
    assert apart.status == "failed" and said in apart.reason


def test_a_fault_in_a_method_names_its_file_line_and_text(graph, tmp_path):
    *_, apart, _, _ = asked(
        tmp_path, "def answer(self, query, interpretation, target):\n    return query.inputs @ torch.ones(3, 200)"
    )
    assert "mine.py line 9 (`return query.inputs @ torch.ones(3, 200)`)" in apart.reason


@pytest.mark.parametrize(
    "work",
    [
        "for _ in range(30): a @ a",
        "t = threading.Thread(target=lambda: [a @ a for _ in range(30)]); t.start(); t.join()",
        "[target_refuses(target) for _ in range(2000)]; [a @ a for _ in range(30)]",
    ],
)
def test_an_adaptive_answer_pays_for_its_time_whatever_it_declares(graph, tmp_path, work):
    body = f"""
    def answer(self, query, interpretation, target):
        def target_refuses(target):
            try: target.weights()
            except Exception: pass
        a = np.ones((1024, 1024), dtype=np.float32)
        {work}
        return torch.zeros(len(query.inputs), 1)
    """
    *_, apart, task, _ = asked(tmp_path, body, adaptive=True)
    assert apart.status == "ok" and apart.unseen_flops > 0
    assert apart.own_flops * task.instances.n > 0.9 * 30 * 2 * 1024**3


def test_an_adaptive_answer_may_look_at_values(graph, tmp_path):
    body = """
    def answer(self, query, interpretation, target):
        return torch.from_numpy(np.sort(query.inputs.numpy(), 1)[:, -3:].copy())
    """
    *_, apart, task, _ = asked(tmp_path, body, adaptive=True)
    assert apart.status == "ok" and apart.rows.shape == (50, 1, 3)
    assert np.array_equal(apart.rows[:, 0], task.instances.arrays["inputs"].sort(1).values[:, -3:].double().numpy())


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
    assert gap.gap_low <= gap.gap_high and gap.n_fresh == n_fresh(task)


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
