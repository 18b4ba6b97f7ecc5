"""Rows about methods: on one task, over the tasks of a split, on the sealed test, on fresh instances, and controls."""

from typing import ClassVar, Self

from pydantic import Field

from stages.contracts.outcomes import Outcome
from stages.contracts.record import Ends, Record, ResultFile, Verdict, spread

__all__ = [
    "CONTROLS",
    "FRESH",
    "LEADERBOARD",
    "NULL",
    "PER_TASK",
    "SENSITIVITY",
    "TEST",
    "TEST_PER_TASK",
    "TRAIN",
    "BudgetRow",
    "ControlRow",
    "FreshRow",
    "LeaderboardRow",
    "NullRow",
    "RankRow",
    "RewardSettings",
    "SensitivityTable",
    "TaskRow",
    "TauRow",
    "TestRow",
]


class BudgetRow(Record):
    """The three arms of one method on one task at one compute budget. Scores are explained variance, 0 to 1."""

    ESTIMATES: ClassVar[Ends] = {
        "baseline": ("baseline_score", "baseline_low", "baseline_high"),
        "assisted": ("assisted_score", "assisted_low", "assisted_high"),
        "placebo": ("placebo_score", "placebo_low", "placebo_high"),
    }

    budget: str
    """Name of the compute budget: tight, medium or ample."""
    flops_budget: float
    """FLOPs the agent may spend per instance, mean over seeds."""
    baseline_score: float
    """Score without the method."""
    baseline_low: float
    """Lower end of its 95% interval."""
    baseline_high: float
    """Upper end of its 95% interval."""
    flops_baseline: float
    """FLOPs per instance spent without the method."""
    effort_baseline: float
    """Mean step of the black-box ladder used without the method; -1: none."""
    assisted_score: float
    """Score with the method's answers."""
    assisted_low: float
    """Lower end of its 95% interval."""
    assisted_high: float
    """Upper end of its 95% interval."""
    flops_assisted: float
    """FLOPs per instance spent with the method, its answers included."""
    effort_assisted: float
    """Mean step of the black-box ladder used with the method; -1: none."""
    placebo_score: float
    """Score with the method's answers permuted between instances."""
    placebo_low: float
    """Lower end of its 95% interval."""
    placebo_high: float
    """Upper end of its 95% interval."""
    flops_placebo: float
    """FLOPs per instance spent in the placebo arm."""
    effort_placebo: float
    """Mean step of the black-box ladder used in the placebo arm; -1: none."""
    used_answer: float
    """Share of seeds in which the agent preferred the method's answer."""


class TaskRow(Record):
    """One method on one task, means over seeds and compute budgets."""

    ESTIMATES: ClassVar[Ends] = spread(
        "baseline_score", "assisted_score", "placebo_score", "gain", "reward", "placebo_reward"
    )

    method: str
    """Name of the method."""
    family: str
    """Task family."""
    target: str
    """Model the questions are about."""
    split: str
    """train, validation or test."""
    status: Outcome
    """ok, declined (the method gave no answer) or failed."""
    reason: str
    """Why it failed; empty otherwise."""
    n_instances: int
    """Evaluated instances per seed."""
    n_seeds: int
    """Seeds: splits into calibration and evaluation."""
    flops_baseline: float
    """FLOPs per instance without the method."""
    flops_assisted: float
    """FLOPs per instance with the method, its answers included."""
    flops_placebo: float
    """FLOPs per instance in the placebo arm."""
    flops_answer_target: float
    """FLOPs per answer spent in the target by the method."""
    flops_answer_own: float
    """FLOPs per answer of the method's own operations."""
    unseen_share: float = 0.0
    """FLOPs per answer that its meter could miss, as a share of the tight budget: 0 where the answer was recorded and
    priced exactly, above where the method is ``adaptive`` and metered by CPU time. Above 0.01 nothing is called
    better."""
    flop_ratio: float = Field(title="FLOP ratio")
    """FLOPs with the method over FLOPs without it, each as shares of the budget plus 1%."""
    used_answer: float = Field(title="answer used")
    """Share of seeds in which the agent preferred the method's answer."""
    effort_baseline: float
    """Mean step of the black-box ladder used without the method; -1: none."""
    effort_assisted: float
    """Mean step of the black-box ladder used with the method; -1: none."""
    noise_floor: float
    """Size that the reward of two identical arms stays below in 95% of resamples."""
    verdict: Verdict
    """better or worse only if the 95% interval excludes 0 and the reward exceeds the noise floor."""
    baseline_score_mean: float
    """Score without the method (explained variance, 0 to 1)."""
    baseline_score_low: float
    """Lower end of its 95% interval (paired bootstrap over instances and seeds)."""
    baseline_score_high: float
    """Upper end of its 95% interval."""
    assisted_score_mean: float
    """Score with the method's answers."""
    assisted_score_low: float
    """Lower end of its 95% interval."""
    assisted_score_high: float
    """Upper end of its 95% interval."""
    placebo_score_mean: float
    """Score with the method's answers permuted between instances."""
    placebo_score_low: float
    """Lower end of its 95% interval."""
    placebo_score_high: float
    """Upper end of its 95% interval."""
    gain_mean: float
    """Score with the method minus score without it."""
    gain_low: float
    """Lower end of its 95% interval."""
    gain_high: float
    """Upper end of its 95% interval."""
    reward_mean: float
    """Reward: score gained + lambda x share of compute saved."""
    reward_low: float
    """Lower end of its 95% interval."""
    reward_high: float
    """Upper end of its 95% interval."""
    placebo_reward_mean: float
    """Reward of the placebo arm."""
    placebo_reward_low: float
    """Lower end of its 95% interval."""
    placebo_reward_high: float
    """Upper end of its 95% interval."""
    by_budget: tuple[BudgetRow, ...]
    """The arms at each compute budget."""

    @property
    def task(self) -> str:
        return f"{self.family}.{self.target}"


class LeaderboardRow(Record):
    """One method over all tasks of a split; tasks are resampled as clusters."""

    ESTIMATES: ClassVar[Ends] = {
        **spread("reward"),
        "performance_gain": ("performance_gain", "performance_gain_low", "performance_gain_high"),
        "placebo_reward": ("placebo_reward", "placebo_low", "placebo_high"),
    }

    method: str
    """Name of the method."""
    split: str
    """train, validation, test, or all."""
    reward_mean: float = Field(title="reward")
    """Mean reward over tasks: score gained + lambda x share of compute saved."""
    reward_low: float
    """Lower end of its 95% interval (bootstrap over tasks, instances and seeds)."""
    reward_high: float
    """Upper end of its 95% interval."""
    performance_gain: float = Field(title="score gained")
    """Score with the method minus score without it, mean over tasks."""
    performance_gain_low: float
    """Lower end of its 95% interval."""
    performance_gain_high: float
    """Upper end of its 95% interval."""
    flop_ratio: float = Field(title="FLOP ratio")
    """FLOPs with the method over FLOPs without it, geometric mean over tasks."""
    placebo_reward: float = Field(title="placebo")
    """Reward of the placebo arm: same interface and price, the method's answers permuted between instances."""
    placebo_low: float
    """Lower end of its 95% interval."""
    placebo_high: float
    """Upper end of its 95% interval."""
    unseen_share: float = 0.0
    """The largest over its tasks of what its meter could miss, as a share of the tight budget; 0: priced exactly."""
    noise_floor: float
    """Size that the reward of two identical arms stays below in 95% of resamples."""
    worst_task: str
    """Task with the lowest reward."""
    worst_task_reward: float
    """Its reward."""
    n_tasks: int
    """Tasks of the split."""
    n_seeds: int
    """Seeds per task."""
    n_instances: int
    """Evaluated instances of all tasks together."""
    n_declined: int
    """Tasks on which the method gave no answer."""
    n_failed: int
    """Tasks on which it failed."""
    status: Outcome
    """failed if it failed on any task; void if the test split was opened more than once."""
    verdict: Verdict
    """better or worse only if the 95% interval excludes 0 and the reward exceeds the noise floor."""


class TestRow(LeaderboardRow):
    """A method on the sealed test split."""

    __test__ = False  # pytest takes every class whose name begins so for tests

    opening: int
    """How many times the test split had been opened in this campaign."""
    found: bool
    """Whether this is the method the campaign found."""
    reason: str | None = None
    """Why the row is void."""

    def voided(self) -> Self:
        """void with the reason, if the test split has been opened more than once; else the same row."""
        if self.opening <= 1:
            return self
        reason = f"the sealed test split was opened {self.opening} times in this campaign"
        return self.model_copy(update={"status": "void", "reason": reason})


class ControlRow(Record):
    """A control that must come out right."""

    ESTIMATES: ClassVar[Ends] = {"value": ("value", "low", "high")}

    control: str
    """What is controlled."""
    expected: str
    """What must come out."""
    value: float
    """What came out: a score or a reward."""
    passed: bool
    """Whether it came out as expected."""
    detail: str = Field(default="", title="note")
    """Where the value was found."""
    low: float | None = None
    """Lower end of its 95% interval, where it has one."""
    high: float | None = None
    """Upper end of its 95% interval, where it has one."""


class RewardSettings(Record):
    """One definition of the reward."""

    form: str
    """Form of the FLOP reduction: linear, log or polynomial."""
    flop_weight: float
    """lambda: what a complete saving of compute is worth, in units of score."""


class RankRow(RewardSettings):
    """One method under one definition of the reward."""

    method: str
    """Name of the method."""
    reward_mean: float
    """Mean reward over validation tasks."""
    rank: int
    """Place of the method; 1 is the best."""


class TauRow(RewardSettings):
    """How far the ranking moves under one definition of the reward."""

    kendall_tau: float
    """Kendall's tau with the ranking by the default definition; 1: the same order."""


class SensitivityTable(Record):
    """The ranking of methods under other definitions of the reward."""

    default: RewardSettings
    """The definition that is used everywhere else."""
    rows: tuple[RankRow, ...]
    """Every method under every definition."""
    kendall_tau: tuple[TauRow, ...]
    """Agreement of each ranking with the default one."""


class FreshRow(Record):
    """Scores of one method on the old instances of a task and on instances drawn after it was frozen."""

    ESTIMATES: ClassVar[Ends] = {"gap": ("gap", "gap_low", "gap_high")}

    method: str | None = None
    """Name of the method; left out where the file is about one method."""
    task: str
    """<family>.<target>, or all: the mean over the tasks it answered."""
    split: str | None = None
    """train, validation, or all."""
    outcome: Outcome
    """ok, declined or failed."""
    reason: str | None = None
    """Why it has no score."""
    old: float | None = None
    """Score on the old evaluation instances."""
    fresh: float | None = None
    """Score on new instances, same calibrator."""
    gap: float | None = None
    """Old minus fresh; above 0 with its whole interval, the method knows the old instances."""
    gap_low: float | None = None
    """Lower end of its 95% interval (bootstrap over instances)."""
    gap_high: float | None = None
    """Upper end of its 95% interval."""
    n_old: int | None = None
    """Old evaluation instances."""
    n_fresh: int | None = None
    """New instances."""
    n_tasks: int | None = None
    """Tasks that the mean is over, in a row of all tasks."""


class NullRow(Record):
    """A method's reward on the twin of one task's target: untrained weights, so that there is nothing to find."""

    ESTIMATES: ClassVar[Ends] = {"reward": ("reward", "reward_low", "reward_high")}

    method: str
    """Name of the method."""
    split: str
    """train or validation."""
    task: str
    """<family>.<target>, or all: the mean over the tasks that twins pose."""
    outcome: Outcome
    """What came of it; declined where the twin does not pose the question, or the method did not answer."""
    reason: str = ""
    """Why it is not ok."""
    reward: float | None = None
    """On the twin, one seed."""
    reward_low: float | None = None
    """Lower end of its 95% interval."""
    reward_high: float | None = None
    """Upper end of its 95% interval."""
    noise_floor: float | None = None
    """Size that the reward of two identical arms stays below in 95% of resamples."""
    n_tasks: int | None = None
    """Tasks that the mean is over, in a row of all tasks."""


Board = tuple[LeaderboardRow, ...]
Tasks = tuple[TaskRow, ...]
LEADERBOARD = ResultFile("leaderboard", Board, "reward", "the leaderboard on validation families")
TRAIN = ResultFile("train", Board, "reward", "the leaderboard on train families")
PER_TASK = ResultFile("per_task", Tasks, "reward", "every method on every task")
SENSITIVITY = ResultFile("sensitivity", SensitivityTable, "reward", "the ranking under other forms of the reward")
CONTROLS = ResultFile("controls", tuple[ControlRow, ...], "reward", "controls that must come out right")
TEST = ResultFile("test", tuple[TestRow, ...], "sealed_test", "the sealed test split")
TEST_PER_TASK = ResultFile("test_per_task", Tasks, "sealed_test", "every method on every test task")
FRESH = ResultFile("fresh", tuple[FreshRow, ...], "fresh", "scores on instances drawn after everything was frozen")
NULL = ResultFile("null", tuple[NullRow, ...], "twins", "rewards on untrained twins of the targets")
