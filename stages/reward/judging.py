"""From arms to rows: one row per method and task, one per method and split.

Shape legend: W = resamples of the instances (row 0 the original), S = seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.contracts.arms import ArmResult, Baseline, MethodArms
from stages.contracts.pay import flop_reduction, reward
from stages.contracts.reward_rows import BudgetRow, LeaderboardRow, StatementRow, TaskRow
from stages.reward.inference import Estimated, combined, measured
from stages.reward.resampling import by_seed, resampled, scores
from stages.reward.settings import RewardConfig
from stages.reward.statements import above_zero, decide, noise_floor, on_these_tasks
from stages.tasks.storage import Task

__all__ = ["Judged", "judge", "leaderboard_row", "task_row"]

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
    """All (W, S): the mean over the budgets of each seed."""
    aa_reward: FloatArray
    """(S,) reward of an answer for nothing that says nothing: noise."""
    by_budget: list[BudgetRow]
    """The three arms at each budget, not rounded."""

    def estimate(self, draws: FloatArray) -> Estimated:
        """Of (W, S) draws of this task: their mean over seeds, with the error that instances and seeds leave."""
        return measured(draws, self.task.instances.n, len(self.arms.assisted[0].index))

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
    resamples = resampled(task.instances.n, config.draws, rng)
    base = scores(task, baseline.first, resamples)
    assisted, placebo = (scores(task, results, resamples) for results in (arms.assisted, arms.placebo))
    if arms.status == "failed":
        assisted, placebo = np.minimum(assisted, base), np.minimum(placebo, base)
    second = scores(task, baseline.second, resamples[:1])

    def reward_of(values: FloatArray, results: Sequence[ArmResult]) -> FloatArray:
        reduction = np.array(
            [
                flop_reduction(a.flops, b.flops, b.budget_flops, config.form)
                for a, b in zip(results, baseline.first, strict=True)
            ]
        )
        gain = values - base[: len(values)]
        paid = reward(gain, np.broadcast_to(reduction, gain.shape), config.flop_weight, config.margin)
        return by_seed(paid, results)

    def estimate(draws: FloatArray) -> Estimated:
        return measured(draws, task.instances.n, len(baseline.first[0].index))

    by_budget = []
    for budget in dict.fromkeys(result.budget for result in baseline.first):
        at = [i for i, result in enumerate(baseline.first) if result.budget == budget]
        numbers: dict[str, float] = {}
        for arm, values, results in (
            ("baseline", base, baseline.first),
            ("assisted", assisted, arms.assisted),
            ("placebo", placebo, arms.placebo),
        ):
            found = estimate(by_seed(values[:, at], [results[i] for i in at]))
            numbers |= _ends(f"{arm}_score", f"{arm}_low", f"{arm}_high", found, score=True)
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
        by_seed(base, baseline.first),
        by_seed(assisted, arms.assisted),
        by_seed(placebo, arms.placebo),
        reward_of(assisted, arms.assisted),
        reward_of(placebo, arms.placebo),
        reward_of(second, baseline.second)[0],
        by_budget,
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _ends(point: str, low: str, high: str, found: Estimated, *, score: bool = False) -> dict[str, float]:
    """The fields of a number and of its interval; a score lies in [0, 1], and so does what is said of it."""
    ends = found.interval()
    if score:
        ends = min(max(ends[0], 0.0), found.value), max(min(ends[1], 1.0), found.value)
    return {point: found.value, low: ends[0], high: ends[1]}


def task_row(method: str, judged: Judged) -> TaskRow:
    """One method on one task."""

    def spread(prefix: str, draws: FloatArray, *, score: bool = False) -> dict[str, float]:
        names = f"{prefix}_mean", f"{prefix}_low", f"{prefix}_high"
        return _ends(*names, judged.estimate(draws), score=score)

    found = judged.estimate(judged.reward)
    floor = noise_floor(judged.aa_reward)
    numbers = (
        spread("baseline_score", judged.baseline_score, score=True)
        | spread("assisted_score", judged.assisted_score, score=True)
        | spread("placebo_score", judged.placebo_score, score=True)
        | spread("gain", judged.assisted_score - judged.baseline_score)
        | spread("reward", judged.reward)
        | spread("placebo_reward", judged.placebo_reward)
    )
    family = judged.task.family
    return TaskRow(
        method=method,
        family=family.name,
        target=judged.task.target_name,
        split=judged.task.split,
        kind=family.query_kind,
        cluster=family.cluster or family.name,
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
        verdict=decide(found.value, found.p, floor, judged.unseen_share),
        reward_se=found.se,
        reward_df=found.df,
        visible=found.visible,
        improvement=above_zero(judged.reward[0]),
        by_budget=tuple(row.rounded() for row in judged.by_budget),
        **numbers,
    ).rounded()


def leaderboard_row(
    method: str, split: str, judged: Sequence[Judged], stated: StatementRow | None = None
) -> LeaderboardRow:
    """One method over all tasks of a split.

    Args:
        stated: what is said of it "on these tasks", among the methods of its table; None: it stands alone.
    """

    def over_tasks(draws: Sequence[FloatArray]) -> Estimated:
        return combined([one.estimate(of) for one, of in zip(judged, draws, strict=True)])

    stated = stated or on_these_tasks([task_row(method, one) for one in judged], split)
    gain = over_tasks([one.assisted_score - one.baseline_score for one in judged])
    placebo = over_tasks([one.placebo_reward for one in judged])
    statuses = [one.arms.status for one in judged]
    means = [float(one.reward[0].mean()) for one in judged]
    lowest = means.index(min(means))
    return LeaderboardRow(
        method=method,
        split=split,
        reward_mean=stated.value,
        reward_low=stated.value if stated.low is None else stated.low,
        reward_high=stated.value if stated.high is None else stated.high,
        **_ends("performance_gain", "performance_gain_low", "performance_gain_high", gain),
        flop_ratio=float(np.exp(np.mean([np.log(one.flop_ratio) for one in judged]))),
        **_ends("placebo_reward", "placebo_low", "placebo_high", placebo),
        unseen_share=stated.unseen_share,
        noise_floor=stated.noise_floor,
        worst_task=judged[lowest].task.name,
        worst_task_reward=means[lowest],
        n_tasks=len(judged),
        n_seeds=len({result.seed for result in judged[0].arms.assisted}),
        n_instances=sum(len(one.arms.assisted[0].index) for one in judged),
        n_declined=statuses.count("declined"),
        n_failed=statuses.count("failed"),
        status="failed" if "failed" in statuses else "ok",
        verdict=stated.verdict,
    ).rounded()
