"""From arms to rows: intervals, verdicts, controls, and that noise is not taken for signal."""

from dataclasses import replace

import numpy as np
import pytest

from stages.contracts.arms import ArmResult, Baseline, MethodArms
from stages.contracts.task import Instances, Truth
from stages.execution.arms import BUDGETS
from stages.reward.controls import control_rows
from stages.reward.inference import combined, measured
from stages.reward.judging import judge, leaderboard_row, task_row
from stages.reward.resampling import by_seed, resampled, scores
from stages.reward.settings import RewardConfig
from stages.reward.statements import decide
from stages.tasks.families import family
from stages.tasks.storage import Task

N, CALIBRATION, SEEDS = 120, 40, 3
CONFIG = RewardConfig(draws=300)


def make_task(name: str = "noise_flip", seed: int = 0) -> Task:
    import torch

    truth = torch.from_numpy(np.random.default_rng(seed).uniform(size=(N, 1)))
    return Task(family(name), "digits_mlp", "validation", Instances({}, N), Truth(truth))


def arm(task: Task, noise: float, flops: float, seed: int) -> list[ArmResult]:
    """Predictions whose errors have a known size, so the skill is about 1 - 12 noise^2."""
    rng, out = np.random.default_rng(seed), []
    truth = task.truth.values.numpy()
    for s in range(SEEDS):
        index = np.random.default_rng(s).permutation(N)[CALIBRATION:]
        predictions = truth[index] + noise * rng.normal(size=(len(index), 1))
        for budget in BUDGETS:
            out.append(ArmResult(s, budget, predictions, index, flops, 100.0, 0, False, "ridge", 0.5, 0.0))
    return out


def compare(task: Task, noise_base: float, noise_assisted: float, flops: float = 100.0, status: str = "ok"):
    base = Baseline(arm(task, noise_base, 100.0, 1), arm(task, noise_base, 100.0, 2), [], [])
    assisted = arm(task, noise_assisted, flops, 3)
    return judge(task, base, MethodArms(status, "", 1.0, 0.0, 0.0, assisted, base.first), CONFIG)


def test_weighted_scores_equal_scores_of_resampled_instances():
    task = make_task()
    results = arm(task, 0.1, 1.0, 0)
    resamples = resampled(N, 50, np.random.default_rng(0))
    found, truth = scores(task, results, resamples), task.truth.values.numpy()
    for draw in (0, 7, 31):
        for column, result in enumerate(results[:4]):
            repeat = np.repeat(np.arange(len(result.index)), resamples[draw, result.index].astype(int))
            by_hand = task.family.score(result.predictions[repeat], truth[result.index][repeat])[0]
            assert found[draw, column] == pytest.approx(by_hand)


def test_better_worse_and_the_same_are_told_apart():
    task = make_task()
    assert task_row("m", compare(task, 0.2, 0.05)).verdict == "better"
    assert task_row("m", compare(task, 0.05, 0.2)).verdict == "worse"
    assert task_row("m", compare(task, 0.1, 0.1)).verdict == "not distinguishable"


def test_an_identical_arm_is_exactly_zero():
    task = make_task()
    base = Baseline(arm(task, 0.1, 100.0, 1), arm(task, 0.1, 100.0, 2), [], [])
    row = task_row("nothing", judge(task, base, MethodArms("declined", "", 0, 0, 0, base.first, base.first), CONFIG))
    assert row.reward_mean == row.reward_low == row.reward_high == 0.0
    assert row.noise_floor > 0, "the noise floor comes from the second baseline, not from the method"


def test_false_positives_of_a_verdict_are_rare():
    """Two arms of equal skill over 60 tasks, where one in twenty may be called better or worse."""
    verdicts = [task_row("m", compare(make_task(seed=s), 0.12, 0.12)).verdict for s in range(60)]
    assert sum(v == "better" for v in verdicts) <= 3 and sum(v == "worse" for v in verdicts) <= 3


def test_cheaper_at_the_same_score_is_rewarded_and_dearer_is_not():
    task = make_task()
    base = Baseline(arm(task, 0.1, 100.0, 1), arm(task, 0.1, 100.0, 1), [], [])
    for flops, sign in ((10.0, 1), (190.0, -1)):
        same = [replace(result, flops=flops) for result in base.first]
        row = task_row("m", judge(task, base, MethodArms("ok", "", 0, 0, 0, same, same), CONFIG))
        assert row.reward_mean == pytest.approx(sign * 0.09)
        assert row.gain_mean == 0.0


def test_a_failure_gets_the_baselines_score_at_best():
    row = task_row("m", compare(make_task(), 0.2, 0.01, flops=150.0, status="failed"))
    assert row.gain_mean <= 0 and row.reward_mean < 0 and row.status == "failed"


def test_more_instances_and_more_seeds_narrow_an_interval():
    rng = np.random.default_rng(0)
    few, many = (measured(rng.normal(0, 1 / n**0.5, size=(500, 1)), n, n) for n in (20, 2000))
    assert many.se < few.se / 5
    # Draws that share nothing between seeds: what is left is the spread of the seeds.
    three, nine = (measured(np.tile(rng.normal(size=k), (300, 1)), 100, 60) for k in (3, 9))
    assert three.df == pytest.approx(2) and nine.df == pytest.approx(8)


def test_a_mean_over_fixed_tasks_is_no_wider_than_its_tasks_however_they_differ():
    """The tasks are these: how far their rewards lie apart says nothing of how well each is known."""
    rng = np.random.default_rng(0)
    per_task = [measured(mean + 0.01 * rng.normal(size=(500, 3)), 100, 60) for mean in (0.0, 0.1, 0.5)]
    together = combined(per_task)
    assert together.value == pytest.approx(0.2, abs=0.02)
    assert together.se < max(one.se for one in per_task)


@pytest.mark.parametrize(
    ("value", "p", "floor", "expected"),
    [
        (0.2, 0.01, 0.05, "better"),
        (0.2, 0.06, 0.05, "not distinguishable"),
        (0.04, 0.01, 0.05, "not distinguishable"),
        (-0.2, 0.01, 0.05, "worse"),
        (0.2, None, 0.0, "not distinguishable"),
    ],
)
def test_a_verdict_needs_the_test_and_the_noise_floor(value, p, floor, expected):
    assert decide(value, p, floor) == expected


def test_leaderboard_rows_have_the_fixed_keys():
    row = leaderboard_row("m", "validation", [compare(make_task(), 0.2, 0.1), compare(make_task(seed=1), 0.2, 0.1)])
    fixed = "method split reward_mean reward_low reward_high performance_gain flop_ratio placebo_reward n_tasks n_seeds"
    assert {*fixed.split(), "n_instances", "status"} <= set(row.facts())
    assert row.n_tasks == 2 and row.n_seeds == SEEDS and row.n_instances == 2 * (N - CALIBRATION)
    assert row.reward_low <= row.reward_mean <= row.reward_high


def test_controls_fail_when_they_should():
    """A check that cannot fail is no check: a broken oracle, a scoring nothing, a winning placebo are noticed."""
    task = make_task()
    fine, poor = compare(task, 0.2, 0.01), compare(task, 0.2, 0.3)
    base = Baseline(arm(task, 0.2, 100.0, 1), arm(task, 0.2, 100.0, 2), [], [])
    idle = judge(task, base, MethodArms("declined", "", 0, 0, 0, base.first, base.first), CONFIG)
    cheat = judge(task, base, MethodArms("ok", "", 0, 0, 0, base.first, arm(task, 0.01, 100.0, 3)), CONFIG)

    def passed(methods, oracle):
        return {row.control: row.passed for row in control_rows(methods, oracle)}

    good = passed({"nothing": [idle], "random_features": [idle]}, [fine])
    assert all(good.values())
    bad = passed({"nothing": [fine], "random_features": [fine], "cheat": [cheat]}, [poor])
    assert not bad["oracle"] and not bad["nothing"] and not bad["random_features"] and not bad["placebo of cheat"]


def test_the_same_arms_judged_twice_give_the_same_draws():
    task = make_task()
    one, two = compare(task, 0.2, 0.1), compare(task, 0.2, 0.1)
    assert np.array_equal(one.reward, two.reward) and np.array_equal(one.aa_reward, two.aa_reward)


def test_every_budget_of_a_seed_is_one_value():
    results = arm(make_task(), 0.1, 1.0, 0)
    values = np.array([[10.0 * r.seed + BUDGETS.index(r.budget) for r in results]])
    assert by_seed(values, results).tolist() == [[1.0, 11.0, 21.0]]


def test_an_interval_covers_as_often_as_it_says():
    """Instances of a known population: 95% of the intervals of a mean hold the true one (here 92 to 98%)."""
    rng, held = np.random.default_rng(0), 0
    for _ in range(400):
        values = rng.normal(size=N)
        draws = resampled(N, 400, rng) @ values / N
        low, high = measured(draws[:, None], N, N).interval()
        held += low <= 0.0 <= high
    assert 0.92 <= held / 400 <= 0.98
