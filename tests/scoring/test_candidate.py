"""What a candidate is, what a researcher proposes, what an answer is charged, and what must be on disk."""

import hashlib

import numpy as np
import pytest
import torch

from stages.base import paths
from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Method
from stages.errors import InfraError
from stages.interpretation.artifact import pack
from stages.interpretation.loading import built_in
from stages.scoring.cached import INFRA, cached_baseline, cached_target, cached_task, jobs
from stages.scoring.candidate import Candidate, Frozen, Source
from stages.scoring.composed import Composed, Spec
from stages.scoring.evaluate import evaluate
from stages.scoring.in_process import InProcess
from stages.scoring.isolated import Isolated
from stages.scoring.judge import host_of, judge_arms
from stages.scoring.meters import meters_of
from stages.scoring.needs import score_inputs, score_outputs
from stages.scoring.proposals import as_json, candidate_of, from_json, shown
from stages.scoring.settings import settings

CASE = ("active_learning", "digits_mlp")


class Reads(Method):
    def interpret(self, target, budget):
        return Interpretation({"seed": torch.tensor([budget.seed])}, {"bytes": budget.max_bytes})

    def answer(self, query, interpretation, target):
        return query.inputs.flatten(1)[:, :2] + interpretation.arrays["seed"]


def test_source_is_named_by_its_file_and_never_run_here(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("a = 'é'\n", encoding="utf-8")
    assert Source.of(file) == Source("mine.py", "a = 'é'\n")
    long = tmp_path / ("x" * 130 + ".py")
    long.write_text("", encoding="utf-8")
    assert len(Source.of(long).file) <= 120
    method, source = Candidate("a", Reads()), Candidate("b", Source("b.py", ""))
    assert method.reviewed and not source.reviewed and method.method() is method.what
    with pytest.raises(ValueError, match="b is source that nobody has reviewed"):
        source.method()


def test_frozen_is_bytes_of_data():
    packed = pack(Interpretation({"w": torch.arange(3)}, {"k": 1}), "m", "here", 10**6)
    frozen = Frozen(*packed)
    assert frozen.n_bytes == len(packed[0]) + len(packed[1]) and frozen.interpretation().data == {"k": 1}
    assert torch.equal(frozen.interpretation().arrays["w"], torch.arange(3))
    assert (frozen.cpu_s, frozen.adaptive, dict(frozen.programs)) == (0.0, False, {})


def test_worker_processes_are_as_many_as_asked_for_or_one_a_core(monkeypatch):
    monkeypatch.setenv("LENSMITH_JOBS", "3")
    assert jobs() == 3
    monkeypatch.setenv("LENSMITH_JOBS", "0")
    assert jobs() == 1
    monkeypatch.setenv("LENSMITH_JOBS", "")
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert jobs() == 7
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert jobs() == 1


def test_what_is_read_once_is_kept_and_the_machinery_fails_in_known_ways(graph):
    folder = paths.execution_dir("baseline")
    for read in (cached_target, cached_task, cached_baseline):
        read.cache_clear()
    for read, of in ((cached_target, CASE[1:]), (cached_task, CASE)):
        assert read(*of) is read(*of)
    assert cached_target(CASE[1]).name == cached_task(*CASE).target_name == CASE[1]
    assert len(cached_baseline(folder, ".".join(CASE)).rungs) == 3
    assert cached_baseline(folder, ".".join(CASE)) is cached_baseline(folder, ".".join(CASE))
    sizes = [read.cache_info().maxsize for read in (cached_target, cached_task, cached_baseline)]
    assert sizes[0] < sizes[1] == sizes[2]  # targets are large
    assert all(isinstance(error, INFRA) for error in (InfraError("x"), OSError(), MemoryError()))
    assert not isinstance(ValueError(), INFRA)


def test_a_proposal_survives_the_journal_and_is_shown_without_its_text():
    spec, source = Spec(representation="pca", n_features=7), Source("mine.py", "import torch\n")
    assert from_json(as_json(spec)) == spec and from_json(as_json(source)) == source
    assert shown(as_json(spec)) == as_json(spec)
    digest = hashlib.sha256(b"import torch\n").hexdigest()[:16]
    assert shown(as_json(source)) == {"file": "mine.py", "sha256": digest}
    made = candidate_of(spec, "seven")
    assert isinstance(made.what, Composed) and made.what.spec == spec and made.what.name == made.name == "seven"
    assert candidate_of(source, "other") == Candidate("other", source)


def test_meters_are_of_all_instances_and_exact_where_nothing_went_unseen(graph):
    task = cached_task(*CASE)
    row = meters_of(task, Answered("ok", None, 3.0, 5.0))
    assert (row.task, row.outcome, row.exact) == ("active_learning.digits_mlp", "ok", True)
    assert (row.flops_target, row.flops_own, row.flops_unseen) == (150.0, 250.0, 0.0)
    row = meters_of(task, Answered("failed", None, 0.0, 0.0, unseen_flops=2.0))
    assert row.flops_unseen == 100.0 and not row.exact and row.outcome == "failed"


def test_what_scoring_needs_is_on_disk(graph):
    made = score_outputs()
    assert made == (
        paths.execution_dir("baseline"),
        *(paths.dictionaries_dir(target) for target in settings().interpretation.targets),
    )
    read = score_inputs()
    assert len(read) == 4 and read[-1] == paths.execution_dir("baseline")
    for path in (paths.target_dir("x"), paths.task_dir("x"), paths.dictionaries_dir("x")):
        assert path.parent in read


def test_settings_are_those_of_the_stages(graph):
    chosen = settings()
    assert chosen.execution.n_seeds == 3 and chosen.interpretation.max_bytes == 8_000_000
    assert chosen.reward.draws == 200  # the toy's


def test_reviewed_code_runs_here_and_all_else_in_the_sandbox(graph):
    chosen = settings()
    assert host_of(Candidate("x", Reads()), chosen) == InProcess(chosen.interpretation)
    assert host_of(Candidate("x", Source("x.py", "")), chosen) == Isolated(chosen.interpretation)


def test_the_host_in_this_process_freezes_within_limits_and_asks(graph):
    limits = settings().interpretation.model_copy(update={"seed": 4, "max_bytes": 1000})
    candidate, host = Candidate("reads", Reads()), InProcess(limits)
    frozen = host.freeze(candidate, ["digits_mlp", "digits_few_shot"])
    assert list(frozen) == ["digits_mlp", "digits_few_shot"]
    made = frozen["digits_mlp"].interpretation()
    assert made.arrays["seed"].item() == 4 and made.data == {"bytes": 1000}
    task, target = cached_task(*CASE), cached_target(CASE[1])
    answered = host.ask(candidate, frozen["digits_mlp"], task, target)
    wanted = task.instances.arrays["inputs"].flatten(1)[:, :2].double().numpy() + 4
    assert answered.status == "ok" and np.allclose(answered.rows[:, 0], wanted)
    with pytest.raises(ValueError, match="no limits for the free phase"):
        InProcess().freeze(candidate, ["digits_mlp"])


def test_arms_are_judged_in_the_order_of_the_tasks(graph):
    chosen, tasks = settings(), [("few_shot_shapley", "digits_few_shot"), CASE]
    done = evaluate(
        Candidate("nothing", built_in("nothing")), tasks, InProcess(chosen.interpretation), chosen.execution
    )
    judged = judge_arms(done.arms, tasks, chosen.reward)
    assert [one.task.name for one in judged] == ["few_shot_shapley.digits_few_shot", "active_learning.digits_mlp"]
    assert all(not one.reward.any() for one in judged)
