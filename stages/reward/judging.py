"""From arms to rows: one row per method and task, one per method and split.

Shape legend: W = resamples (row 0 the original), S = seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.contracts.arms import ArmResult, Baseline, MethodArms
from stages.contracts.record import Verdict
from stages.contracts.reward_rows import BudgetRow, LeaderboardRow, TaskRow
from stages.reward.formula import flop_reduction, reward
from stages.reward.resampling import Resamples, interval, pooled, scores
from stages.reward.settings import RewardConfig
from stages.tasks.storage import Task

__all__ = ["MAX_UNSEEN", "Judged", "judge", "leaderboard_row", "noise_floor", "task_row", "verdict"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """One method on one task, under every resample."""

    task: Task
    arms: MethodArms
    baseline_score: FloatArray
    assisted_score: FloatArray
    placebo_score: FloatArray
    reward: FloatArray
    placebo_reward: FloatArray
    aa_reward: FloatArray
    """Reward of the baseline arm against itself: noise. All (W,)."""
    by_budget: list[BudgetRow]
    """The three arms at each budget, not rounded."""

    @property
    def unseen_share(self) -> float:
        """What the method's meter could miss, as a share of the tight budget."""
        tight = next(row for row in self.by_budget if row.budget == "tight")
        return self.arms.unseen_flops / tight.flops_budget

    @property
    def flop_ratio(self) -> float:
        """Assisted over baseline FLOPs, each as shares of the budgets; 1% of a budget is added to both, since an arm
        may spend nothing at all."""
        assisted = _mean([row.flops_assisted / row.flops_budget for row in self.by_budget]) + 0.01
        baseline = _mean([row.flops_baseline / row.flops_budget for row in self.by_budget]) + 0.01
        return assisted / baseline


def judge(task: Task, baseline: Baseline, arms: MethodArms, config: RewardConfig) -> Judged:
    """Score the arms of one method on one task."""
    # One stream per task, the same for every method: comparisons between methods are paired too.
    rng = np.random.default_rng([config.seed, *task.name.encode()])
    n_seeds = 1 + max(result.seed for result in baseline.first)
    resamples = Resamples(task.instances.n, n_seeds, config.draws, rng)
    base = scores(task, baseline.first, resamples)
    assisted, placebo = (scores(task, results, resamples) for results in (arms.assisted, arms.placebo))
    if arms.status == "failed":
        assisted, placebo = np.minimum(assisted, base), np.minimum(placebo, base)
    second = scores(task, baseline.second, resamples)

    def total(values: FloatArray) -> FloatArray:
        return resamples.mean(values, baseline.first)

    def reward_of(values: FloatArray, results: Sequence[ArmResult]) -> FloatArray:
        reduction = np.array(
            [
                flop_reduction(a.flops, b.flops, b.budget_flops, config.form)
                for a, b in zip(results, baseline.first, strict=True)
            ]
        )
        return total(reward(values - base, np.broadcast_to(reduction, base.shape), config.flop_weight, config.margin))

    by_budget = []
    for budget in dict.fromkeys(result.budget for result in baseline.first):
        at = [i for i, result in enumerate(baseline.first) if result.budget == budget]
        numbers: dict[str, float] = {}
        for arm, values, results in (
            ("baseline", base, baseline.first),
            ("assisted", assisted, arms.assisted),
            ("placebo", placebo, arms.placebo),
        ):
            numbers[f"{arm}_score"], numbers[f"{arm}_low"], numbers[f"{arm}_high"] = interval(
                resamples.mean(values[:, at], [results[i] for i in at])
            )
            numbers[f"flops_{arm}"] = _mean([results[i].flops for i in at])
            numbers[f"effort_{arm}"] = _mean([results[i].effort for i in at])
        by_budget.append(
            BudgetRow(
                budget=budget,
                flops_budget=_mean([baseline.first[i].budget_flops for i in at]),
                used_answer=_mean([arms.assisted[i].used_answer for i in at]),
                **numbers,
            )
        )
    return Judged(
        task,
        arms,
        total(base),
        total(assisted),
        total(placebo),
        reward_of(assisted, arms.assisted),
        reward_of(placebo, arms.placebo),
        reward_of(second, baseline.second),
        by_budget,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def noise_floor(aa_reward: FloatArray) -> float:
    """The size that the reward of two identical arms stays below in 95% of resamples."""
    return float(np.quantile(np.abs(aa_reward[1:]), 0.95))


MAX_UNSEEN = 0.01
"""Share of the tight budget that a meter may miss where a method is called better."""


def verdict(point: float, low: float, high: float, floor: float, unseen_share: float = 0.0) -> Verdict:
    """Better or worse only if the interval excludes 0 and the point is beyond the noise floor; better only where the
    meter could not miss more than 1% of the tight budget."""
    if low > 0 and point > floor and unseen_share <= MAX_UNSEEN:
        return "better"
    if high < 0 and point < -floor:
        return "worse"
    return "not distinguishable"


def _spread(prefix: str, draws: FloatArray) -> dict[str, float]:
    point, low, high = interval(draws)
    return {f"{prefix}_mean": point, f"{prefix}_low": low, f"{prefix}_high": high}


def task_row(method: str, judged: Judged) -> TaskRow:
    """One method on one task."""
    point, low, high = interval(judged.reward)
    floor = noise_floor(judged.aa_reward)
    numbers = (
        _spread("baseline_score", judged.baseline_score)
        | _spread("assisted_score", judged.assisted_score)
        | _spread("placebo_score", judged.placebo_score)
        | _spread("gain", judged.assisted_score - judged.baseline_score)
        | _spread("reward", judged.reward)
        | _spread("placebo_reward", judged.placebo_reward)
    )
    return TaskRow(
        method=method,
        family=judged.task.family.name,
        target=judged.task.target_name,
        split=judged.task.split,
        status=judged.arms.status,
        reason=judged.arms.reason,
        n_instances=len(judged.arms.assisted[0].index),
        n_seeds=len({result.seed for result in judged.arms.assisted}),
        flops_baseline=_mean([row.flops_baseline for row in judged.by_budget]),
        flops_assisted=_mean([row.flops_assisted for row in judged.by_budget]),
        flops_placebo=_mean([row.flops_placebo for row in judged.by_budget]),
        flops_answer_target=judged.arms.target_flops,
        flops_answer_own=judged.arms.own_flops,
        unseen_share=judged.unseen_share,
        flop_ratio=judged.flop_ratio,
        used_answer=_mean([result.used_answer for result in judged.arms.assisted]),
        effort_baseline=_mean([row.effort_baseline for row in judged.by_budget]),
        effort_assisted=_mean([row.effort_assisted for row in judged.by_budget]),
        noise_floor=floor,
        verdict=verdict(point, low, high, floor, judged.unseen_share),
        by_budget=tuple(row.rounded() for row in judged.by_budget),
        **numbers,
    ).rounded()


def leaderboard_row(method: str, split: str, judged: Sequence[Judged], seed: int) -> LeaderboardRow:
    """One method over all tasks of a split."""

    def over_tasks(draws: Sequence[FloatArray]) -> FloatArray:
        return pooled(draws, np.random.default_rng([seed, 1]))

    rewards, placebo = over_tasks([j.reward for j in judged]), over_tasks([j.placebo_reward for j in judged])
    gains = over_tasks([j.assisted_score - j.baseline_score for j in judged])
    floor = noise_floor(over_tasks([j.aa_reward for j in judged]))
    point, low, high = interval(rewards)
    _, gain_low, gain_high = interval(gains)
    placebo_point, placebo_low, placebo_high = interval(placebo)
    unseen = max(j.unseen_share for j in judged)
    statuses = [j.arms.status for j in judged]
    lowest = min(judged, key=lambda j: float(j.reward[0]))
    return LeaderboardRow(
        method=method,
        split=split,
        reward_mean=point,
        reward_low=low,
        reward_high=high,
        performance_gain=float(gains[0]),
        performance_gain_low=gain_low,
        performance_gain_high=gain_high,
        flop_ratio=float(np.exp(np.mean([np.log(j.flop_ratio) for j in judged]))),
        placebo_reward=placebo_point,
        placebo_low=placebo_low,
        placebo_high=placebo_high,
        unseen_share=unseen,
        noise_floor=floor,
        worst_task=lowest.task.name,
        worst_task_reward=float(lowest.reward[0]),
        n_tasks=len(judged),
        n_seeds=len({result.seed for result in judged[0].arms.assisted}),
        n_instances=sum(len(j.arms.assisted[0].index) for j in judged),
        n_declined=statuses.count("declined"),
        n_failed=statuses.count("failed"),
        status="failed" if "failed" in statuses else "ok",
        verdict=verdict(point, low, high, floor, unseen),
    ).rounded()
