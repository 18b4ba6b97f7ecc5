"""Outcomes are kept apart: ok, failed, void and infra, in a campaign over method files and in `score`."""

import contextlib
import json
import os
import resource
import signal
import textwrap
import threading
import time
from pathlib import Path

import pytest

from stages.base import paths
from stages.contracts.journal import CampaignSummary, Infra, Result
from stages.errors import InfraError, UserError
from stages.research.files_researcher import FilesResearcher
from stages.research.journal import Journal
from stages.research.stage import campaign
from stages.sandbox.groups import descendants
from stages.scoring.candidate import Candidate, Source
from stages.scoring.evaluate import evaluate, questions
from stages.scoring.isolated import Isolated, forget_runners
from stages.scoring.score import score_method
from stages.scoring.settings import settings
from tests.sandbox.walls import needs_sandbox

HEAD = """
import torch
from lensmith import Interpretation, Method, Represent

class Mine(Method):
    def interpret(self, target, budget):
        return Interpretation()

"""
HONEST = """
def answer(self, query, interpretation, target):
    return target.forward(query.inputs).outputs.flatten(1) if isinstance(query, Represent) else None
"""
RAISES = """
def answer(self, query, interpretation, target):
    raise RuntimeError("not today")
"""
TAMPERS = """
def answer(self, query, interpretation, target):
    import numpy as np
    a = np.random.default_rng(0).normal(size=(1500, 1500))
    for _ in range(12):
        a = a @ a / 1500
    return torch.ones(query.inputs.shape[0], 1) * float(a[0, 0] > 1e9) if isinstance(query, Represent) else None
"""


@pytest.fixture
def folder(tmp_path):
    for name, body in (("a_honest", HONEST), ("b_raises", RAISES), ("c_hides_work", TAMPERS)):
        text = HEAD + textwrap.indent(textwrap.dedent(body), "    ")
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    return tmp_path


@needs_sandbox
def test_method_files_of_a_folder_are_a_campaign_and_each_outcome_is_itself(graph, folder):
    summary = campaign("search", 99, 0, "handed-in", lambda said: None, methods=folder)
    events = Journal(paths.campaign_dir("handed-in") / "events.jsonl")
    results = events.of(Result)
    assert [r.status for r in results] == ["ok", "failed", "ok"]
    honest, raises, hides = results
    assert honest.spec["source"] == (folder / "a_honest.py").read_text(encoding="utf-8")
    assert "not today" in raises.reason and raises.train.reward_mean <= 0 and not raises.accepted
    assert hides.train.reward_mean <= 0 and not hides.accepted  # it has seen no data: its work is worth nothing
    theta = json.loads((paths.campaign_dir("handed-in") / "theta.json").read_text(encoding="utf-8"))
    assert [trial["value"] is None for trial in theta["trials"]] == [False, False, False]
    assert [row.spec["file"] for row in summary.iterations] == ["a_honest.py", "b_raises.py", "c_hides_work.py"]
    assert CampaignSummary.model_validate_json(summary.model_dump_json(exclude_unset=True), strict=True) == summary

    # Run again with nothing left to do: the same events, and what a file says now changes no past result.
    (folder / "b_raises.py").write_text("nonsense(", encoding="utf-8")
    before = (paths.campaign_dir("handed-in") / "events.jsonl").read_bytes()
    assert campaign("search", 99, 0, "handed-in", lambda said: None, methods=folder) == summary
    assert (paths.campaign_dir("handed-in") / "events.jsonl").read_bytes() == before


def test_a_folder_without_methods_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no Python file"):
        FilesResearcher(0, tmp_path)


def workers() -> set[int]:
    found = set()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):
            if b"loky" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return found


def test_a_killed_worker_is_infra_is_tried_again_and_changes_no_result(graph, monkeypatch):
    undisturbed = campaign("random", 1, 0, "undisturbed", lambda said: None)
    monkeypatch.setenv("LENSMITH_JOBS", "2")
    stop = threading.Event()

    def kill_one() -> None:
        while not stop.is_set():
            for pid in workers():
                with contextlib.suppress(OSError):
                    if b"resource_tracker" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(pid, signal.SIGKILL)
                        return
            time.sleep(0.05)

    killer = threading.Thread(target=kill_one)
    killer.start()
    try:
        disturbed = campaign("random", 1, 0, "disturbed", lambda said: None)
    finally:
        stop.set()
        killer.join()
    infra = Journal(paths.campaign_dir("disturbed") / "events.jsonl").of(Infra)
    assert len(infra) == 1 and infra[0].iteration == 0
    assert disturbed.iterations == undisturbed.iterations


@contextlib.contextmanager
def few_files():
    """No more file descriptors than are open: nothing can be started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) - 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@needs_sandbox
def test_a_task_the_machinery_fails_on_is_infra_and_no_score(graph, folder):
    chosen = settings()
    source, case = folder / "a_honest.py", ("active_learning", "digits_mlp")
    candidate, host = Candidate("honest", Source.of(source)), Isolated(chosen.interpretation, 60.0)
    frozen = host.freeze(candidate, [case[1]], questions([case]))
    done = evaluate(candidate, [case], host, chosen.execution, frozen=frozen)  # what is on disk is read now
    assert done.outcome == "ok" and done.scored
    forget_runners()
    with few_files():
        done = evaluate(candidate, [case], host, chosen.execution, frozen=frozen)
    assert done.outcome == "infra" and not done.scored and done.arms == {}
    assert "active_learning.digits_mlp" in done.reason and "Too many open files" in done.reason


@needs_sandbox
def test_where_nothing_starts_score_says_so_and_blames_no_method(graph, folder):
    with few_files(), pytest.raises((InfraError, OSError)):
        score_method(folder / "a_honest.py", fresh=False, progress=lambda said: None)


@needs_sandbox
def test_the_same_score_twice_has_the_same_flops(graph, folder):
    first, second = (score_method(folder / "a_honest.py", fresh=False, progress=lambda said: None) for _ in range(2))
    assert first.meters == second.meters and all(one.exact for one in first.meters)
    assert any(one.flops_target > 0 for one in first.meters)
