"""Rows against numbers worked out by hand: every column of a row says what its name says."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from stages.contracts.arms import ArmResult, Baseline, MethodArms
from stages.contracts.pay import flop_reduction, reward
from stages.contracts.reward_rows import LeaderboardRow
from stages.contracts.task import Instances, Truth
from stages.reward.controls import control_rows
from stages.reward.inference import measured
from stages.reward.judging import Judged, judge, leaderboard_row, task_row
from stages.reward.resampling import resampled
from stages.reward.settings import RewardConfig
from stages.reward.stage import ranked, sensitivity
from stages.reward.statements import MAX_UNSEEN, decide, joint_floor, noise_floor
from stages.tasks.families import family
from stages.tasks.storage import Task

CONFIG = RewardConfig(draws=200, seed=3)
TRUTH = np.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0])
EVALUATED = np.arange(2, 8)
CENTRED = TRUTH[EVALUATED] - 0.5
BUDGETS = {"tight": 100.0, "medium": 200.0, "ample": 400.0}


def a_task(name: str = "noise_flip", split: str = "validation") -> Task:
    return Task(family(name), "digits_mlp", split, Instances({}, 8), Truth(torch.from_numpy(TRUTH[:, None])))


def predicted(skill: float) -> np.ndarray:
    """Half and half, so 1 - SSE / SST with SST 1.5: moving each prediction by d from the truth costs 6 d^2."""
    off = (1.5 * (1 - skill) / 6) ** 0.5
    return (TRUTH[EVALUATED] - np.sign(CENTRED) * off)[:, None]


def arm(skill: float, share: float, seeds: int = 2, effort: int = 1, used: bool = False) -> list[ArmResult]:
    """``share``: of each budget that is spent."""
    return [
        ArmResult(s, name, predicted(skill), EVALUATED, share * b, b, effort, used, "ridge", 0.5, 0.0)
        for s in range(seeds)
        for name, b in BUDGETS.items()
    ]


def judged(
    base: float = 0.5,
    assisted: float = 0.8,
    placebo: float = 0.25,
    spent: tuple[float, float, float] = (0.5, 0.25, 0.75),
    status: str = "ok",
    task: Task | None = None,
    unseen: float = 0.0,
) -> Judged:
    first = arm(base, spent[0])
    arms = MethodArms(
        status, "why", 7.0, 11.0, unseen, arm(assisted, spent[1], 2, 2, True), arm(placebo, spent[2], 2, 3, True)
    )
    return judge(task or a_task(), Baseline(first, first, [], []), arms, CONFIG)


def test_every_column_of_a_task_row_by_hand():
    row = task_row("mine", judged(unseen=3.0))
    assert (row.method, row.family, row.target, row.split) == ("mine", "noise_flip", "digits_mlp", "validation")
    assert (row.kind, row.cluster) == ("Represent", "noise_flip")
    assert (row.status, row.reason, row.n_instances, row.n_seeds) == ("ok", "why", 6, 2)
    assert row.baseline_score_mean == pytest.approx(0.5, abs=1e-6)
    assert row.assisted_score_mean == pytest.approx(0.8, abs=1e-6)
    assert row.placebo_score_mean == pytest.approx(0.25, abs=1e-6)
    assert row.gain_mean == pytest.approx(0.3, abs=1e-6)
    # Savings are a quarter of each budget, at lambda 0.1; the placebo spends a quarter more than the baseline.
    assert row.reward_mean == pytest.approx(0.3 + 0.1 * 0.25, abs=1e-6)
    assert row.placebo_reward_mean == pytest.approx(-0.25 - 0.1 * 0.25, abs=1e-6)
    third = (100 + 200 + 400) / 3
    assert row.flops_baseline == pytest.approx(0.5 * third, rel=1e-4)
    assert row.flops_assisted == pytest.approx(0.25 * third, rel=1e-4)
    assert row.flops_placebo == pytest.approx(0.75 * third, rel=1e-4)
    assert (row.flops_answer_target, row.flops_answer_own) == (7.0, 11.0)
    assert row.unseen_share == pytest.approx(3.0 / 100.0)
    assert row.flop_ratio == pytest.approx((0.25 + 0.01) / (0.5 + 0.01), rel=1e-4)
    assert (row.used_answer, row.effort_baseline, row.effort_assisted) == (1.0, 1.0, 2.0)
    assert row.noise_floor == 0.0, "the baseline is the same twice here"
    # Both seeds do the same, so all of the error is that of the instances: 5 degrees of freedom of 6 evaluated.
    draws = judged().reward
    assert row.reward_se == pytest.approx(draws[1:, 0].std(ddof=1), abs=1e-6) and row.reward_df == 5.0
    half = 2.570582 * row.reward_se
    assert (row.reward_low, row.reward_high) == pytest.approx((0.325 - half, 0.325 + half), abs=1e-5)
    assert row.visible == pytest.approx(3.5139 * row.reward_se, abs=1e-5), "noncentral t with 5 degrees of freedom"
    assert row.improvement == 1.0
    assert row.verdict == "not distinguishable", "3% of the tight budget could have been spent unseen"
    assert task_row("mine", judged()).verdict == "better"


def test_every_column_of_a_budget_row_by_hand():
    row = next(one for one in task_row("mine", judged()).by_budget if one.budget == "medium")
    assert (row.flops_budget, row.flops_baseline, row.flops_assisted, row.flops_placebo) == (200, 100, 50, 150)
    assert (row.effort_baseline, row.effort_assisted, row.effort_placebo, row.used_answer) == (1, 2, 3, 1.0)
    found = (row.baseline_score, row.assisted_score, row.placebo_score)
    assert found == pytest.approx((0.5, 0.8, 0.25), abs=1e-6)
    assert row.baseline_low <= 0.5 <= row.baseline_high and row.assisted_low <= 0.8 <= row.assisted_high
    assert row.placebo_low <= 0.25 <= row.placebo_high
    assert [one.budget for one in task_row("mine", judged()).by_budget] == list(BUDGETS)


def test_a_budget_row_is_about_its_own_budget():
    """One arm that answers well at the ample budget alone."""
    first = arm(0.25, 0.5)
    better = [replace(r, predictions=predicted(0.75)) if r.budget == "ample" else r for r in first]
    arms = MethodArms("ok", "", 0.0, 0.0, 0.0, better, first)
    rows = task_row("mine", judge(a_task(), Baseline(first, first, [], []), arms, CONFIG)).by_budget
    assert [round(row.assisted_score, 4) for row in rows] == [0.25, 0.25, 0.75]
    assert [round(row.placebo_score, 4) for row in rows] == [0.25, 0.25, 0.25]


def test_the_noise_floor_is_of_the_second_baseline_against_the_first():
    first, second = arm(0.5, 0.5), arm(0.4, 0.5)
    arms = MethodArms("declined", "", 0.0, 0.0, 0.0, first, first)
    found = judge(a_task(), Baseline(first, second, [], []), arms, CONFIG)
    assert found.aa_reward == pytest.approx([-0.1, -0.1])
    # By hand: the root mean square of a seed, over the root of the number of seeds, times 1.96.
    assert task_row("m", found).noise_floor == pytest.approx(1.959964 * 0.1 / 2**0.5, abs=1e-5)
    assert noise_floor(np.array([0.3, 0.0, -0.4])) == pytest.approx(1.959964 * 0.5 / 3)
    assert noise_floor(np.zeros(3)) == 0.0
    assert joint_floor([0.3, 0.4]) == pytest.approx(0.25) and joint_floor([0.3, 0.4], [1.0, 0.0]) == pytest.approx(0.3)


def test_a_failed_method_is_never_above_the_baseline_and_one_that_is_worse_stays_worse():
    row = task_row("m", judged(base=0.5, assisted=0.9, placebo=0.9, status="failed"))
    assert row.assisted_score_mean == row.placebo_score_mean == pytest.approx(0.5, abs=1e-6)
    worse = task_row("m", judged(base=0.5, assisted=0.2, placebo=0.1, status="failed"))
    assert (worse.assisted_score_mean, worse.placebo_score_mean) == pytest.approx((0.2, 0.1), abs=1e-6)


def test_every_column_of_a_leaderboard_row_by_hand():
    """Two tasks: one with gain 0.3 and a ratio of 26/51, one with gain -0.1 at equal cost."""
    good, poor = judged(unseen=0.5), judged(0.5, 0.4, 0.5, (0.5, 0.5, 0.5), task=a_task("ablation_effect"), unseen=2.0)
    row = leaderboard_row("mine", "train", [good, poor])
    assert (row.method, row.split, row.n_tasks, row.n_seeds, row.n_instances) == ("mine", "train", 2, 2, 12)
    assert row.reward_mean == pytest.approx((0.325 - 0.1) / 2, abs=1e-6)
    assert row.performance_gain == pytest.approx(0.1, abs=1e-6)
    assert row.placebo_reward == pytest.approx((-0.275 + 0) / 2, abs=1e-6)
    assert row.flop_ratio == pytest.approx((26 / 51) ** 0.5, rel=1e-3)
    assert row.unseen_share == pytest.approx(0.02)
    assert (row.worst_task, row.worst_task_reward) == (poor.task.name, pytest.approx(-0.1, abs=1e-6))
    rows = [task_row("mine", one) for one in (good, poor)]
    error = sum(one.reward_se**2 for one in rows) ** 0.5 / 2
    assert row.reward_low < row.reward_mean < row.reward_high
    assert 1.96 * error < row.reward_high - row.reward_mean < 2.58 * error, "t with between 5 and infinitely many"
    assert row.performance_gain_low < row.performance_gain < row.performance_gain_high
    assert row.placebo_low < row.placebo_reward < row.placebo_high
    assert (row.status, row.n_failed, row.n_declined) == ("ok", 0, 0)
    assert row == leaderboard_row("mine", "train", [good, poor])
    assert row.verdict == "not distinguishable"
    assert leaderboard_row("m", "train", [judged()]).verdict == "better"
    assert leaderboard_row("m", "train", [judged(unseen=2.0)]).verdict == "not distinguishable"


def test_points_are_of_the_sample_and_not_of_a_resample():
    assisted = np.array([0.75, *np.full(200, 0.9)])[:, None]
    one = replace(judged(), assisted_score=assisted, baseline_score=np.full((201, 1), 0.5))
    one = replace(one, reward=np.array([0.25, *np.full(200, 0.4)])[:, None])
    row = leaderboard_row("m", "train", [one])
    assert (row.performance_gain, row.reward_mean, row.worst_task_reward) == (0.25, 0.25, 0.25)


def test_one_failed_task_makes_the_row_failed_and_declined_ones_are_counted():
    rows = [judged(status=status) for status in ("ok", "failed", "declined", "declined")]
    row = leaderboard_row("m", "train", rows)
    assert (row.status, row.n_failed, row.n_declined) == ("failed", 1, 2)


def test_two_methods_that_differ_by_a_constant_have_intervals_that_differ_by_it():
    """The same draws for every method of a task."""
    one = [judged(0.5, 0.8), judged(0.5, 0.6, task=a_task("ablation_effect"))]
    shifted = [replace(j, reward=j.reward + 0.25) for j in one]
    low, high = leaderboard_row("a", "train", one), leaderboard_row("b", "train", shifted)
    assert high.reward_low - low.reward_low == pytest.approx(0.25, abs=1e-5)
    assert high.reward_high - low.reward_high == pytest.approx(0.25, abs=1e-5)


@pytest.mark.parametrize(
    ("value", "p", "floor", "unseen", "expected"),
    [
        (0.2, 0.05, 0.05, 0.0, "not distinguishable"),  # an interval that touches 0 does not exclude it
        (0.2, 0.0499, 0.05, 0.0, "better"),
        (0.05, 0.0, 0.05, 0.0, "not distinguishable"),  # at the floor is not beyond it
        (0.2, 0.01, 0.05, MAX_UNSEEN, "better"),
        (0.2, 0.01, 0.05, MAX_UNSEEN * 1.001, "not distinguishable"),
        (-0.2, 0.05, 0.05, 0.0, "not distinguishable"),
        (-0.05, 0.0, 0.05, 0.0, "not distinguishable"),
        (-0.2, 0.01, 0.05, 1.0, "worse"),  # what could not be seen is no excuse
        (0.0, 0.0, 0.0, 0.0, "not distinguishable"),
    ],
)
def test_verdicts_at_their_limits(value, p, floor, unseen, expected):
    assert decide(value, p, floor, unseen) == expected


def test_a_meter_may_miss_one_percent():
    assert MAX_UNSEEN == 0.01


def test_instance_counts_are_those_of_a_bootstrap():
    resamples = resampled(5, 50, np.random.default_rng(0))
    assert resamples.shape == (51, 5) and np.array_equal(resamples[0], np.ones(5))
    assert np.allclose(resamples.sum(1), 5) and np.array_equal(resamples, np.round(resamples))


def test_a_constant_interval_is_its_point():
    found = measured(np.full((100, 3), 0.25), 10, 6)
    assert (found.value, found.se, found.interval(), found.p, found.visible) == (0.25, 0.0, (0.25, 0.25), 0.0, None)


def test_a_score_interval_stays_within_what_a_score_can_be():
    row = task_row("m", judged(base=0.01, assisted=0.99))
    assert row.baseline_score_low >= 0.0 and row.assisted_score_high <= 1.0
    assert row.baseline_score_low <= row.baseline_score_mean <= row.baseline_score_high


def test_savings_are_paid_down_to_the_margin_and_costs_always_count():
    gain = np.array([-0.25, -0.25 - 1e-9, -0.25, 0.0])
    saved = np.array([0.5, 0.5, 0.0, -0.5])
    assert reward(gain, saved, weight=0.5, margin=0.25) == pytest.approx([0.0, -0.25, -0.25, -0.25])


def test_reductions_at_the_edges():
    assert flop_reduction(0.5, 0, 1, "log") == -1 and flop_reduction(0, 0.5, 1, "log") == 1
    assert flop_reduction(1, 64, 64, "log") == pytest.approx(1.0)
    assert flop_reduction(1, 32, 64, "log") == pytest.approx(5 / 6)
    assert flop_reduction(0, 0.5, 1) == 0.5, "linear where no form is given"
    assert flop_reduction(0.75, 0.25, 1, "polynomial") == pytest.approx(-0.25)
    assert flop_reduction(0.25, 0.5, 0.5, "linear") == 0.5
    with pytest.raises(ValueError, match="never negative"):
        flop_reduction(5, -0.5, 5)
    with pytest.raises(ValueError, match="must be positive"):
        flop_reduction(1, 5, float("nan"))


def controls(methods: dict[str, list[Judged]], oracle: list[Judged]) -> dict[str, object]:
    return {row.control: row for row in control_rows(methods, oracle)}


def test_controls_say_what_they_found():
    idle = judged(0.5, 0.5, 0.5, (0.5, 0.5, 0.5))
    dear = judged(0.5, 0.5, 0.5, (0.5, 0.5, 0.25))
    good, fair = judged(assisted=0.97), judged(assisted=0.92, task=a_task("ablation_effect"))
    found = controls({"nothing": [idle], "random_features": [idle], "other": [dear]}, [good, fair])
    assert (found["oracle"].value, found["oracle"].passed) == (pytest.approx(0.92, abs=1e-4), True)
    assert fair.task.name in found["oracle"].detail
    constant = found["constant predictor"]
    assert constant.value == pytest.approx(0.0, abs=1e-9) and constant.passed
    assert (found["nothing"].value, found["nothing"].passed) == (0.0, True)
    assert (found["random_features"].low, found["random_features"].high) == (0.0, 0.0)
    placebo = found["placebo of other"]
    assert placebo.value == pytest.approx(0.025, abs=1e-6) and placebo.low == pytest.approx(0.025, abs=1e-6)
    assert placebo.high == pytest.approx(0.025, abs=1e-6) and not placebo.passed
    assert set(found) == {
        *("oracle", "constant predictor", "nothing", "random_features"),
        *(f"placebo of {name}" for name in ("nothing", "random_features", "other")),
    }


def test_an_oracle_of_exactly_nine_tenths_passes_and_less_does_not():
    exact = judged(assisted=0.95)
    for value, passed in ((0.9, True), (0.899, False)):
        one = replace(exact, assisted_score=np.array([[value], [0.0]]))
        assert controls({}, [one])["oracle"].passed is passed


def test_a_constant_that_scores_is_noticed():
    """A family whose score is broken pays for the mean of the truth."""
    good = judged(assisted=0.97)

    class Generous(type(good.task.family)):
        def score(self, predictions, truth, weights=None):
            return np.array([1e-6])

    found = controls({}, [replace(good, task=replace(good.task, family=Generous()))])
    assert not found["constant predictor"].passed


def test_a_placebo_within_the_noise_passes():
    first, second = arm(0.5, 0.5), arm(0.3, 0.5)
    arms = MethodArms("ok", "", 0.0, 0.0, 0.0, first, arm(0.55, 0.5))
    one = judge(a_task(), Baseline(first, second, [], []), arms, CONFIG)
    assert controls({"m": [one]}, [judged(assisted=0.95)])["placebo of m"].passed


def board(method: str, mean: float) -> LeaderboardRow:
    return leaderboard_row(method, "train", [replace(judged(), reward=np.full((201, 2), mean))])


def test_a_leaderboard_is_ranked_by_reward_then_by_name():
    rows = [board("c", 0.1), board("b", 0.3), board("a", 0.1)]
    assert [row.method for row in ranked(rows)] == ["b", "a", "c"]


def test_sensitivity_by_hand():
    """Three methods; under the second setting the ranking is turned round, so Kendall's tau is -1."""

    def of(mean: float) -> list[Judged]:
        return [
            replace(judged(), reward=np.full((201, 2), mean)),
            replace(judged(), reward=np.full((201, 2), mean + 0.2)),
        ]

    default = ("linear", 0.1)
    table = {
        ("log", 0.5): {"a": of(0.3), "b": of(0.2), "c": of(0.1)},
        default: {"a": of(0.1), "b": of(0.2), "c": of(0.3)},
        ("linear", 0.2): {"a": of(0.1), "b": of(0.1), "c": of(0.3)},
    }
    found = sensitivity(table, default)
    assert (found.default.form, found.default.flop_weight) == default
    taus = {(row.form, row.flop_weight): row.kendall_tau for row in found.kendall_tau}
    assert list(taus) == [default, ("linear", 0.2), ("log", 0.5)]
    assert taus[default] == 1.0 and taus[("log", 0.5)] == -1.0
    assert taus[("linear", 0.2)] == pytest.approx(2 / 6**0.5, abs=1e-4)  # one tie: 2 concordant of sqrt(3 * 2)
    rows = [(r.form, r.flop_weight, r.method, r.reward_mean, r.rank) for r in found.rows]
    assert rows[:3] == [("linear", 0.1, "c", 0.4, 1), ("linear", 0.1, "b", 0.3, 2), ("linear", 0.1, "a", 0.2, 3)]
    assert [row[2] for row in rows[3:6]] == ["c", "a", "b"] and [row[2] for row in rows[6:]] == ["a", "b", "c"]


def test_sensitivity_of_one_method_agrees_with_itself():
    only = {("linear", 0.1): {"a": [judged()]}, ("log", 0.1): {"a": [judged()]}}
    assert [row.kendall_tau for row in sensitivity(only, ("linear", 0.1)).kendall_tau] == [1.0, 1.0]
    turned = [{"a": [judged(assisted=x)], "b": [judged(assisted=y)]} for x, y in ((0.6, 0.7), (0.7, 0.6))]
    two = sensitivity({("linear", 0.1): turned[0], ("log", 0.1): turned[1]}, ("linear", 0.1))
    assert [row.kendall_tau for row in two.kendall_tau] == [1.0, -1.0]
    same = {("linear", 0.1): {"a": [judged()], "b": [judged()]}}
    assert [row.kendall_tau for row in sensitivity(same, ("linear", 0.1)).kendall_tau] == [1.0], "all tied: no move"
