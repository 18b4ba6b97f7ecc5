"""The null's numbers, and what each outcome leaves of its row."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from joblib import Parallel

from stages.contracts.arms import Answered
from stages.contracts.target import TWIN
from stages.errors import InfraError, MethodError
from stages.execution.runs import arms_of, baseline_of
from stages.interpretation.loading import built_in
from stages.reward.judging import judge
from stages.reward.statements import noise_floor
from stages.scoring import null
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.fresh import fresh_task
from stages.scoring.in_process import InProcess
from stages.scoring.settings import settings

CASE = ("active_learning", "digits_mlp")
CANDIDATE = Candidate("x", built_in("nothing"))


class Says:
    def __init__(self, said=None, fails=None):
        self.said, self.fails, self.asked = said, fails, []

    def freeze(self, candidate, targets, asked=None):
        self.asked.append((targets, asked))
        assert torch.get_num_threads() == 1  # whatever the worker had before
        if self.fails:
            raise self.fails
        return {target: Frozen(b"", b"") for target in targets}

    def ask(self, candidate, frozen, task, target):
        self.task = task
        assert target.name == task.target_name
        truth = task.truth.values.numpy()[..., None]
        rows = truth + 0.1 * truth.std() * np.random.default_rng(0).normal(size=truth.shape)
        return self.said or Answered("ok", rows, 2.0, 3.0)


def row_of(host, case=CASE):
    rows = null.null_rows([CANDIDATE], host, {"train": [case]}, settings(), Parallel(n_jobs=1))
    assert [row.task for row in rows[:-1]] == ["all"] * (len(rows) - 1)
    assert (rows[0].reward, rows[0].n_tasks) == (rows[-1].reward, 1) or rows[-1].reward is None
    return rows[-1]


def test_the_reward_on_a_twin_is_that_of_one_seed(graph):
    host, chosen = Says(), settings()
    torch.set_num_threads(2)
    row = row_of(host)
    twin = cached_target(f"digits_mlp{TWIN}")
    (targets, asked), task = host.asked[0], host.task
    assert targets == [twin.name] == list(asked) and asked[twin.name][0].question.inputs.shape[0] == 50
    assert (task.instances.n, task.split, task.family.name) == (50, "train", "active_learning")
    assert not torch.equal(task.truth.values, cached_task(*CASE).truth.values)
    config = chosen.execution.model_copy(update={"n_seeds": 1})
    baseline = baseline_of(task, twin, config)
    arms = arms_of(task, baseline, host.ask(CANDIDATE, None, task, twin), config, placebo=False)
    judged = judge(task, baseline, arms, chosen.reward)
    estimate = judged.estimate(judged.reward)
    point, (low, high) = estimate.value, estimate.interval()
    assert row.task == "active_learning.digits_mlp" and row.outcome == "ok" and row.reason == ""
    wanted = [point, low, high, noise_floor(judged.aa_reward)]
    found = [row.reward, row.reward_low, row.reward_high, row.noise_floor]
    assert found == [round(float(value), 6) for value in wanted] and row.reward_low <= row.reward_high


@pytest.mark.parametrize(
    ("host", "outcome", "reason"),
    [
        (Says(Answered("void", None, 0.0, 0.0, "too good")), "void", "too good"),
        (Says(fails=MethodError("x", "interpret", "no idea", "Think.")), "failed", "no idea"),
        (Says(fails=InfraError("full")), "infra", "full"),
        (Says(fails=OSError("gone")), "infra", "gone"),
    ],
)
def test_without_an_answer_there_is_no_number(graph, host, outcome, reason):
    row = row_of(host)
    assert (row.outcome, row.reason) == (outcome, reason)
    assert row.reward is row.reward_low is row.reward_high is row.noise_floor is None


def test_who_does_not_answer_has_the_baseline_and_pays_for_a_failure(graph):
    declined = row_of(Says(Answered("declined", None, 0.0, 0.0, "not this")))
    assert (declined.outcome, declined.reason, declined.reward) == ("declined", "not this", 0.0)
    failed = row_of(Says(Answered("failed", None, 1e9, 0.0, "it broke")))
    assert (failed.outcome, failed.reason) == ("failed", "it broke") and failed.reward < 0.0


def test_the_mean_is_over_what_twins_pose(graph, monkeypatch):
    real = null.make

    def made(family, *rest):
        if family.name == "few_shot_shapley":
            raise ValueError("no")
        return real(family, *rest)

    monkeypatch.setattr(null, "make", made)
    splits = {"train": [CASE], "validation": [("few_shot_shapley", "digits_few_shot")]}
    rows = null.null_rows([CANDIDATE], Says(), splits, settings(), Parallel(n_jobs=1))
    assert [(row.split, row.task, row.outcome) for row in rows] == [
        ("train", "all", "ok"),
        ("train", "active_learning.digits_mlp", "ok"),
        ("validation", "few_shot_shapley.digits_few_shot", "declined"),
    ]


def test_a_twin_that_poses_nothing_says_why(graph, monkeypatch):
    real = null.make
    for spread, posed in ((0.0, False), (1e-7, False), (1e-4, True)):

        def made(family, target, split, n, *rest, spread=spread):
            values = torch.linspace(-1, 1, n, dtype=torch.float64)[:, None]
            found = real(family, target, split, n, *rest)
            return found._replace(truth=replace(found.truth, values=spread * values))

        monkeypatch.setattr(null, "make", made)
        row = row_of(Says())
        assert (row.outcome == "ok") == posed
        assert posed or row.reason == "the twin poses no active_learning: its truth does not vary"
    for error in (RuntimeError("nan"), ValueError("nan")):
        monkeypatch.setattr(null, "make", lambda *of, error=error: (_ for _ in ()).throw(error))
        assert (row_of(Says()).outcome, row_of(Says()).reason) == ("declined", "the twin poses no active_learning: nan")


def test_it_is_posed_as_often_as_the_task_and_never_more_than_that_many_times(graph):
    twin = cached_target(f"digits_mlp{TWIN}")
    large = fresh_task(cached_task(*CASE), cached_target("digits_mlp"), 125)
    task = null._posed(large, twin.name)
    assert task.instances.n == 120 and not task.instances.planted and task.target_name == twin.name
    assert null._posed(large, twin.name).digest == task.digest


def test_reviewed_code_is_frozen_once_a_twin_and_other_hosts_are_asked_for_every_task(graph, monkeypatch):
    made, host, task = [], InProcess(settings().interpretation), cached_task(*CASE)
    plain = InProcess.freeze_one
    monkeypatch.setattr(InProcess, "freeze_one", lambda self, *of: made.append(of[1]) or plain(self, *of))
    null._frozen_once.cache_clear()
    twin, gradient = f"digits_mlp{TWIN}", Candidate("gradient", built_in("gradient"))
    first, again = (null._frozen(host, gradient, task, twin) for _ in range(2))
    assert made == [twin] and first == again == plain(host, gradient, twin)
    null._frozen(host, Candidate("gradient", built_in("pca")), task, twin)
    assert len(made) == 2, "another method of the same name"

    class Notebook(type(built_in("nothing"))):
        pass

    null._frozen(host, Candidate("mine", Notebook()), task, twin)
    null._frozen(host, Candidate("mine", Notebook()), task, twin)
    assert len(made) == 4, "what cannot be told apart is computed anew"
    says = Says()
    null._frozen(says, gradient, task, twin), null._frozen(says, gradient, task, twin)
    assert len(says.asked) == 2
