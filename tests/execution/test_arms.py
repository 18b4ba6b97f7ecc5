"""The three arms on tasks whose best answer is known."""

import numpy as np
import pytest
import torch

from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Method
from stages.errors import MethodError
from stages.execution.answering import ask_in_process, checked
from stages.execution.arms import BUDGETS, as_rows, budgets_of, run_ladder, shuffle_rows, split, stream
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.execution.runs import arms_of, baseline_of
from stages.execution.settings import ExecutorConfig
from stages.interpretation.loading import built_in
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.storage import Task

CONFIG = ExecutorConfig(n_calibration=40)


@pytest.fixture(scope="module")
def task(mlp) -> Task:
    made = make(family("noise_flip"), mlp, "train", 100, 0, "test", b"key")
    return Task(family("noise_flip"), mlp.name, "train", made.instances.public(), made.truth)


@pytest.fixture(scope="module")
def baseline(task, mlp):
    return baseline_of(task, mlp, CONFIG)


def score(task: Task, result) -> float:
    return float(task.family.score(result.predictions, task.truth.values.numpy()[result.index])[0])


def test_calibration_and_evaluation_never_share_an_instance(task):
    for seed in range(4):
        calibration, evaluation = split(task, seed, CONFIG)
        assert not set(calibration) & set(evaluation)
        assert sorted([*calibration, *evaluation]) == list(range(100))
        assert len(calibration) == 40
    assert not np.array_equal(split(task, 0, CONFIG)[0], split(task, 1, CONFIG)[0])


def test_every_arm_has_one_result_per_seed_and_budget_in_the_same_order(task, baseline):
    arms = arms_of(task, baseline, Answered("ok", np.random.default_rng(0).normal(size=(100, 1, 3)), 1.0, 0.0), CONFIG)
    keys = [(r.seed, r.budget) for r in baseline.first]
    assert keys == [(seed, budget) for seed in range(3) for budget in BUDGETS]
    for results in (baseline.second, arms.assisted, arms.placebo):
        assert [(r.seed, r.budget) for r in results] == keys
        assert all(np.array_equal(r.index, b.index) for r, b in zip(results, baseline.first, strict=True))


def test_no_arm_spends_more_than_its_budget(task, baseline):
    dear = Answered("ok", task.truth.values.numpy()[..., None], 1e15, 0.0)
    for results in (baseline.first, arms_of(task, baseline, dear, CONFIG).assisted):
        for r in results:
            if r.budget != "ample":
                assert r.flops <= r.budget_flops


def test_the_truth_for_free_is_taken_and_nearly_perfect(task, baseline):
    oracle = arms_of(task, baseline, Answered("ok", task.truth.values.numpy()[..., None], 0.0, 0.0), CONFIG)
    assert all(r.used_answer and r.flops == 0 and score(task, r) > 0.9 for r in oracle.assisted)


def test_the_placebo_of_the_truth_is_worth_nothing(task, baseline):
    oracle = arms_of(task, baseline, Answered("ok", task.truth.values.numpy()[..., None], 0.0, 0.0), CONFIG)
    gains = [score(task, p) - score(task, b) for p, b in zip(oracle.placebo, baseline.first, strict=True)]
    assert np.mean(gains) < 0.03


def test_the_placebo_keeps_the_rows_and_breaks_the_order():
    answer = np.arange(24.0).reshape(4, 2, 3)
    dealt = shuffle_rows(answer, "t", 0)
    assert dealt.shape == answer.shape and not np.array_equal(dealt, answer)
    assert sorted(map(tuple, dealt.reshape(-1, 3))) == sorted(map(tuple, answer.reshape(-1, 3)))
    assert np.array_equal(dealt, shuffle_rows(answer, "t", 0))


def test_declining_is_the_baseline_and_failing_pays_for_what_it_used(task, baseline):
    declined = arms_of(task, baseline, Answered("declined", None, 5.0, 0.0), CONFIG)
    failed = arms_of(task, baseline, Answered("failed", None, 5.0, 2.0, "no"), CONFIG)
    for d, f, b in zip(declined.assisted, failed.assisted, baseline.first, strict=True):
        assert np.array_equal(d.predictions, b.predictions) and d.flops == b.flops
        assert np.array_equal(f.predictions, b.predictions) and f.flops == b.flops + 7.0


def test_the_same_inputs_give_the_same_bytes(task, baseline, mlp, tmp_path, monkeypatch):
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))  # where nothing is kept, so all is computed again
    again = baseline_of(task, mlp, CONFIG)
    for a, b in zip(again.first + again.second, baseline.first + baseline.second, strict=True):
        assert np.array_equal(a.predictions, b.predictions) and a.flops == b.flops


def test_the_second_baseline_is_the_first_with_an_answer_that_says_nothing(task, baseline):
    """As a method that hands in random numbers for nothing: same splits, same rungs, another choice at most."""
    for seed in range(3):
        empty = torch.randn(100, 1, 16, generator=stream("empty answer", task.name, seed), dtype=torch.float64).numpy()
        alone = Answered("ok", empty, 0.0, 0.0)
        again = [r for r in arms_of(task, baseline, alone, CONFIG, placebo=False).assisted if r.seed == seed]
        for one, other in zip(again, [r for r in baseline.second if r.seed == seed], strict=True):
            assert np.array_equal(one.predictions, other.predictions) and one.flops == other.flops
    for one, first in zip(baseline.second, baseline.first, strict=True):
        assert one.flops <= one.budget_flops or one.budget == "ample"
        assert one.used_answer or np.array_equal(one.predictions, first.predictions)


def test_a_rung_that_draws_nothing_is_run_once_and_the_others_anew(task, mlp):
    fixed = {}
    first, again = (run_ladder(task, mlp, seed, fixed) for seed in (0, 1))
    assert sorted(fixed) == [0] and again[0] is first[0]
    plain = run_ladder(task, mlp, 1)
    for kept, made in zip(again, plain, strict=True):
        assert np.array_equal(kept.features, made.features) and kept.flops == made.flops


def test_budgets_rise_and_the_first_rung_is_always_affordable(task, mlp):
    rungs = run_ladder(task, mlp, 0)
    limits = [limit for limit, _ in budgets_of(rungs).values()]
    assert limits == sorted(limits) and rungs[0].flops <= limits[0]
    assert all(0 < amount < float("inf") for _, amount in budgets_of(rungs).values())


def test_the_kernel_is_chosen_where_the_relation_is_not_linear():
    """A linear calibrator hides most of a signal like this one."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 1, 3))
    y = (x[:, :, 0] ** 2 > 0.5) * 1.0
    squared = lambda p, t: float(1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())  # noqa: E731
    fit = cross_validate(x, y, squared, 3, 8)
    assert fit.kind in ("kernel", "mean") and fit.score > 0.4
    ridge = Calibrator(8).fit(x[:80], y[:80]).predict(x[80:])["ridge"]
    assert squared(ridge, y[80:]) < 0.1


def test_predictions_stay_in_the_range_seen_and_constants_do_not_break_it():
    x, y = np.linspace(0, 1, 40).reshape(40, 1, 1), np.linspace(0, 1, 40).reshape(40, 1)
    model = Calibrator(4).fit(x, y)
    assert all(p.min() >= 0 and p.max() <= 1 for p in model.predict(x * 100).values())
    flat = Calibrator(4).fit(np.zeros((40, 1, 2)), y).predict(np.ones((5, 1, 2)))
    assert all(np.allclose(p, y.mean()) for p in flat.values())


def test_items_are_also_given_relative_to_their_instance():
    features = np.arange(12.0).reshape(2, 3, 2)
    out = assemble(features)
    assert out.shape == (2, 3, 4)
    assert np.allclose(out[..., 2:].mean(1), 0)
    assert assemble(features[:, :1]).shape == (2, 1, 2)


@pytest.mark.parametrize(
    ("shape", "n", "items", "fits"),
    [
        ((5, 7), 5, 1, True),
        ((5,), 5, 1, True),
        ((5, 1, 7), 5, 1, True),
        ((5, 8), 5, 8, True),
        ((5, 8, 3), 5, 8, True),
        ((4, 7), 5, 1, False),
        ((5, 7), 5, 8, False),
        ((5, 8, 3, 1), 5, 8, False),
        ((), 5, 1, False),
    ],
)
def test_answers_are_taken_in_the_shapes_the_contract_names(shape, n, items, fits):
    if fits:
        assert as_rows(torch.zeros(shape), n, items).shape[:2] == (n, items)
    else:
        with pytest.raises(ValueError, match="it has shape"):
            as_rows(torch.zeros(shape), n, items)


class Talks(Method):
    """Says what it is told to."""

    def __init__(self, says):
        self.says = says

    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        return self.says(query, target)


@pytest.mark.parametrize(
    ("says", "cause"),
    [
        (lambda q, t: torch.full((100, 1), float("nan")), "NaN"),
        (lambda q, t: torch.zeros(100, 5000), "5000 features"),
        (lambda q, t: torch.zeros(100, 2, dtype=torch.complex64), "complex"),
        (lambda q, t: [1, 2, 3], "it returned list"),
        (lambda q, t: torch.zeros(7, 2), "it has shape"),
        (lambda q, t: 1 / 0, "ZeroDivisionError"),
        (lambda q, t: t.weights(), "interpret"),
    ],
)
def test_a_bad_answer_is_a_failure_with_its_cause(task, mlp, says, cause):
    answered = ask_in_process(Talks(says), "talks", Interpretation(), task, mlp)
    assert answered.status == "failed" and answered.rows is None
    assert cause in answered.reason


def test_numpy_answers_are_taken_and_objects_are_not(task):
    assert checked(np.ones((100, 2)), "m", task).shape == (100, 1, 2)
    with pytest.raises(MethodError, match="it returned"):
        checked(np.ones((100, 2)).astype(object).tolist(), "m", task)


def test_an_answer_is_charged_for_the_target_and_for_its_own_ops(task, mlp):
    def says(query, target):
        target.forward(query.inputs)
        return query.inputs @ torch.ones(64, 3)

    answered = ask_in_process(Talks(says), "talks", Interpretation(), task, mlp)
    bare = ask_in_process(
        built_in("raw_activations"), "raw", Interpretation(data={"hook_points": ["layers.0.hook_post"]}), task, mlp
    )
    assert answered.own_flops == 2 * 64 * 3
    assert answered.target_flops == bare.target_flops > 0


def test_methods_get_an_access_without_the_free_phase(task, mlp):
    for closed in ("weights", "corpus", "dictionaries"):
        answered = ask_in_process(
            Talks(lambda q, t, name=closed: getattr(t, name)()), "talks", Interpretation(), task, mlp
        )
        assert answered.status == "failed" and f"{closed}() is open in interpret() only" in answered.reason


def test_an_answer_is_paid_for_wherever_it_is_used(task, baseline):
    """The truth at a price: what is used costs it, alone or with a rung, and what cannot be paid is not used."""
    tight = {r.seed: r.budget_flops for r in baseline.first if r.budget == "tight"}
    price = 0.5 * min(tight.values())
    arms = arms_of(task, baseline, Answered("ok", task.truth.values.numpy()[..., None], price, 0.0), CONFIG)
    rungs = {seed: {step.effort: step.flops for step in steps} for seed, steps in enumerate(baseline.rungs)}
    assert any(r.used_answer for r in arms.assisted)
    for r in arms.assisted:
        by_hand = price * r.used_answer + rungs[r.seed].get(r.effort, 0.0)
        assert r.flops == pytest.approx(by_hand)
    own = arms_of(task, baseline, Answered("ok", task.truth.values.numpy()[..., None], 0.0, price), CONFIG)
    assert [r.flops for r in own.assisted] == [r.flops for r in arms.assisted], "the method's own ops cost the same"
    dear = 1.01 * max(tight.values())
    arms = arms_of(task, baseline, Answered("ok", task.truth.values.numpy()[..., None], dear, 0.0), CONFIG)
    assert not any(r.used_answer for r in arms.assisted if r.budget == "tight")
