"""The gap to fresh instances: its numbers by hand, whose answers it is of, and the stage that writes it."""

from dataclasses import replace

import numpy as np
import pytest

from stages.contracts.arms import Answered
from stages.contracts.journal import CAMPAIGN, CampaignSummary, Incumbent
from stages.contracts.measurement_rows import FRESH
from stages.contracts.method import Interpretation, Method
from stages.contracts.task import skill
from stages.execution.arms import split
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.interpretation.loading import built_in
from stages.scoring import fresh
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.fresh import DRAWS, fresh_gap, fresh_task
from stages.scoring.in_process import InProcess
from stages.scoring.settings import settings
from stages.scoring.stage import stage_frozen
from stages.tasks.generation import instance_keys
from tests import toy

CASE = ("active_learning", "digits_mlp")


def truth_of(task, noise=0.0):
    truth = task.truth.values.numpy()[..., None]
    return truth + noise * truth.std() * np.random.default_rng(1).normal(size=truth.shape)


def test_a_seed_names_the_instances_and_none_is_a_secret_one(graph):
    task, target = cached_task(*CASE), cached_target(CASE[1])
    one, again, other = (fresh_task(task, target, 12, seed) for seed in (0, 0, 1))
    assert one.instances.n == 12 and one.digest == again.digest != other.digest
    assert (one.name, one.split) == (task.name, task.split) and not one.instances.planted
    keys = set(instance_keys(one.instances))
    assert not keys & set(instance_keys(other.instances)) and not keys & set(instance_keys(task.instances))
    secret = fresh_task(task, target)
    assert secret.instances.n == fresh.n_fresh(task) and not keys & set(instance_keys(secret.instances))


@pytest.mark.parametrize(("n", "drawn"), [(200, 40), (120, 40), (60, 20), (30, 10), (2, 1)])
def test_of_a_task_with_few_instances_a_third_as_many_are_drawn(graph, n, drawn):
    task = cached_task(*CASE)
    few = replace(task, instances=replace(task.instances, n=n))
    assert fresh.n_fresh(few) == drawn


def test_the_numbers_of_a_gap_by_hand():
    draws = np.stack([np.concatenate([[0.9], np.linspace(0.8, 1.0, 401)]), np.full(402, 0.4)])
    found = fresh._numbers(draws)
    assert found["old"] == 0.9 and found["fresh"] == 0.4 and found["gap"] == pytest.approx(0.5)
    assert found["gap_low"] == pytest.approx(0.405) and found["gap_high"] == pytest.approx(0.595)
    assert fresh._numbers(draws * 1.23456789 / 3)["old"] == round(0.9 * 1.23456789 / 3, 6)


def test_the_calibrator_is_fitted_on_old_calibration_instances_alone(graph):
    chosen, task = settings(), cached_task(*CASE)
    new = fresh_task(task, cached_target(CASE[1]), 40, seed=3)
    draws = fresh._draws(task, new, truth_of(task), truth_of(new), chosen)
    assert draws.shape == (2, 401) and DRAWS == 400
    assert (draws[:, 0] > 0.9).all()  # it was told the truth
    calibration, evaluation = split(task, 0, chosen.execution)
    assert fresh._gap(task, draws, new, chosen).n_old == len(evaluation)
    # Nonsense for evaluated instances costs the old score alone; nonsense for those it learns from costs both.
    rng = np.random.default_rng(0)
    for spoilt, hurts_new in ((evaluation, False), (calibration, True)):
        rows = truth_of(task).copy()
        rows[spoilt] = rng.permutation(rows[spoilt]) * rng.normal(size=rows[spoilt].shape)
        found = fresh._draws(task, new, rows, truth_of(new), chosen)
        assert found[0, 0] < draws[0, 0] - 0.2
        assert (found[1, 0] < draws[1, 0] - 0.2) == hurts_new


def test_resamples_are_of_instances_and_always_the_same(graph):
    chosen, task = settings(), cached_task(*CASE)
    new = fresh_task(task, cached_target(CASE[1]), 40, seed=3)
    rows, others = truth_of(task, 0.7), truth_of(new, 0.7)
    draws = fresh._draws(task, new, rows, others, chosen)
    assert np.array_equal(draws, fresh._draws(task, new, rows, others, chosen))
    for old_or_new in draws:
        assert abs(old_or_new[1:].mean() - old_or_new[0]) < 0.15 and 0.01 < old_or_new[1:].std() < 0.3
        assert len(np.unique(old_or_new)) > 300
    # The old score is of the instances it was not fitted on, by the sums of squares themselves.
    features, truth, config = assemble(rows), task.truth.values.numpy(), chosen.execution
    calibration, evaluation = split(task, 0, config)
    fit = cross_validate(
        features[calibration], truth[calibration], lambda a, b: float(skill(a, b)[0]), config.folds, config.max_features
    )
    model = Calibrator(config.max_features).fit(features[calibration], truth[calibration])
    error = model.predict(features[evaluation])[fit.kind] - truth[evaluation]
    about = truth[evaluation] - truth[evaluation].mean()
    assert draws[0, 0] == pytest.approx(1 - (error**2).sum() / (about**2).sum())
    row = fresh._gap(task, draws, new, chosen)
    assert (row.task, row.outcome, row.n_fresh) == (task.name, "ok", 40)
    assert row.gap_low < row.gap < row.gap_high and row.old == round(float(draws[0, 0]), 6)


class Knows:
    """A host that answers the old instances and says what it is told of new ones."""

    def __init__(self, new=None):
        self.new = new

    def ask(self, candidate, frozen, task, target):
        return self.new or Answered("ok", truth_of(task), 0.0, 0.0)


def test_a_gap_needs_both_answers(graph):
    task, target = cached_task(*CASE), cached_target(CASE[1])
    of = (Candidate("x", built_in("nothing")), Frozen(b"", b""))
    old = Answered("ok", truth_of(task), 0.0, 0.0)
    assert fresh_gap(Knows(), *of, replace(old, rows=None), task, target) is None
    assert fresh_gap(Knows(), *of, replace(old, status="failed"), task, target) is None
    row = fresh_gap(Knows(), *of, old, task, target)
    assert row.outcome == "ok" and row.n_fresh == fresh.n_fresh(task) and row.old > 0.9 and row.fresh > 0.9
    for said in (Answered("failed", truth_of(task), 0.0, 0.0, "no"), Answered("ok", None, 0.0, 0.0, "no")):
        row = fresh_gap(Knows(said), *of, old, task, target)
        assert (row.task, row.outcome, row.reason, row.gap) == (task.name, said.status, "no", None)


class Outputs(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        return target.forward(query.inputs).outputs.flatten(1) if hasattr(query, "labels") else None


class OnlyOld(Outputs):
    """It fails on as many instances as fresh ones are."""

    def answer(self, query, interpretation, target):
        if len(query.inputs) == fresh.n_fresh(cached_task(*CASE)):
            raise RuntimeError("not these")
        return super().answer(query, interpretation, target)


def test_all_methods_of_a_task_are_asked_about_the_same_fresh_instances(graph, monkeypatch):
    chosen, drawn = settings(), []

    def spied(*arguments, **named):
        drawn.append(fresh_task(*arguments, **named))
        return drawn[-1]

    monkeypatch.setattr(fresh, "fresh_task", spied)
    contenders = [Candidate(n, m) for n, m in (("a", Outputs()), ("b", Outputs()), ("c", OnlyOld()))]
    contenders.append(Candidate("none", built_in("nothing")))
    frozen = {one.name: InProcess(chosen.interpretation).freeze_one(one, CASE[1]) for one in contenders}
    found = fresh._on_task(contenders, frozen, *CASE, 5, chosen)
    assert [(name, of) for name, of, _, _ in found] == [(one.name, "train") for one in contenders]
    first, second, third, last = (row for _, _, row, _ in found)
    assert first == second and first.outcome == "ok" and np.array_equal(found[0][3], found[1][3])
    assert third.outcome == "failed" and "not these" in third.reason and found[2][3] is None
    assert last.outcome == "declined" and found[3][3] is None
    fresh._on_task(contenders[:1], frozen, *CASE, 6, chosen)
    other = fresh_task(cached_task(*CASE), cached_target(CASE[1]), seed=6)
    assert len(drawn) == 2 and drawn[1].digest == other.digest != drawn[0].digest


def with_a_campaign(incumbent=None):
    CAMPAIGN.save(CampaignSummary(campaign="c", researcher="search", seed=0, iterations=(), incumbent=incumbent))


def test_the_stage_has_a_row_of_every_method_and_task_and_one_over_all(graph, capsys):
    with_a_campaign()
    rows = fresh.run()
    assert rows == FRESH.load() and len(rows) == len(toy.METHODS) * 3
    over_all, on_tasks = rows[: len(toy.METHODS)], rows[len(toy.METHODS) :]
    assert [row.method for row in over_all] == sorted(toy.METHODS) and {row.task for row in over_all} == {"all"}
    names = [("active_learning.digits_mlp", "train"), ("few_shot_shapley.digits_few_shot", "validation")]
    wanted = [(*name, method) for name in names for method in sorted(toy.METHODS)]
    assert [(row.task, row.split, row.method) for row in on_tasks] == wanted
    for row in over_all:
        mine = [one for one in on_tasks if one.method == row.method and one.outcome == "ok"]
        assert row.split == "all" and row.n_tasks == len(mine)
        if mine:
            assert row.outcome == "ok" and row.old == pytest.approx(np.mean([one.old for one in mine]), abs=2e-6)
            assert row.gap == pytest.approx(np.mean([one.gap for one in mine]), abs=2e-6)
        else:
            assert row.outcome == "declined" and row.gap is None
    assert {row.method for row in over_all if row.outcome == "declined"} == {"nothing"}
    fresh.main()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == len(toy.METHODS) and "nothing: declined, gap - over 0 tasks" in said
    ok = next(row for row in over_all if row.outcome == "ok")
    assert f"{ok.method}: ok, gap {ok.gap} over {ok.n_tasks} tasks" in said


def test_the_method_that_the_campaign_found_is_among_them(graph):
    spec = {"representation": "raw", "roles": "mlp"}
    with_a_campaign(Incumbent(name="search-3", spec=spec, iteration=3, validation_reward=0.1, accepted=True))
    rows = [row for row in fresh.run() if row.method == "search-3"]
    assert [row.task for row in rows] == ["all", "active_learning.digits_mlp", "few_shot_shapley.digits_few_shot"]
    assert rows[1].outcome == "ok" and rows[1].old is not None


def test_the_seed_of_the_stage_is_what_was_frozen(graph):
    with_a_campaign()
    before = {(row.method, row.task): row for row in fresh.run()}
    file = next((graph / "data" / "interpretation" / "nothing").glob("digits_mlp.json"))
    text = file.read_bytes()
    file.unlink()
    file.write_bytes(text + b" ")
    after = {(row.method, row.task): row for row in fresh.run()}
    changed = [key for key in before if before[key] != after[key]]
    assert changed and all(before[key].outcome == "ok" for key in changed)
    assert stage_frozen("nothing", ["digits_mlp"])["digits_mlp"].text == text + b" "
