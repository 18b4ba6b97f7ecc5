"""Rows about methods: on one task, over the tasks of a split, on the sealed test, and what may be said of them."""

from typing import ClassVar, Literal, Self

from pydantic import Field

from stages.contracts.outcomes import Outcome
from stages.contracts.record import Ends, Record, ResultFile, Verdict, spread

__all__ = [
    "CONTROL_METHODS",
    "LEADERBOARD",
    "ON_TASKS",
    "PER_TASK",
    "STATEMENTS",
    "TEST",
    "TEST_PER_TASK",
    "TEST_STATEMENTS",
    "TRAIN",
    "BudgetRow",
    "LeaderboardRow",
    "Scope",
    "StatementRow",
    "TaskRow",
    "TestRow",
]


CONTROL_METHODS = frozenset({"inputs", "nothing", "oracle", "random_features", "surrogate"})
"""Methods that claim nothing: what they earn says whether the measurement is right."""
Scope = Literal["tasks", "kind", "families"]
ON_TASKS: Scope = "tasks"
"""The sentence about these tasks alone."""


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
    kind: str = Field(title="question")
    """Kind of question that the family asks."""
    cluster: str
    """Families of one cluster count once; its own name where a family stands alone."""
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
    """The size that the reward of an answer which says nothing, for nothing, stays below in 95% of repetitions."""
    verdict: Verdict
    """better or worse only if the 95% interval excludes 0 and the reward exceeds the noise floor."""
    reward_se: float
    """Standard error of the reward, from instances and seeds."""
    reward_df: float
    """Its degrees of freedom."""
    visible: float | None = Field(title="smallest visible")
    """The smallest true reward that would have been told from 0 in 80% of repetitions (two-sided, 5%); null where
    nothing varied."""
    improvement: float = Field(title="P(improvement)")
    """Share of seeds in which the reward is above 0, ties counted half."""
    baseline_score_mean: float
    """Score without the method (explained variance, 0 to 1)."""
    baseline_score_low: float
    """Lower end of its 95% interval (t; instances resampled in pairs, seeds by their spread)."""
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
    """One method over all tasks of a split. Intervals and verdict are about these tasks; ``StatementRow`` has what can
    be said of others."""

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
    """Lower end of its 95% interval on these tasks (instances and seeds vary, the tasks are fixed)."""
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
    """The size that the reward of an answer which says nothing, for nothing, stays below in 95% of repetitions."""
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
    """On these tasks: better or worse only if the reward differs from 0 at the 5% level, corrected for the number of
    methods in the table, and exceeds the noise floor."""


class StatementRow(Record):
    """One sentence about one method: on these tasks, on questions of one kind, or on families like these."""

    ESTIMATES: ClassVar[Ends] = {"reward": ("value", "low", "high")}

    method: str
    """Name of the method."""
    against: str = ""
    """The method whose reward is subtracted; empty: none, so the comparison is with the agent alone."""
    split: str
    """train, validation or test; two of them with a plus where they are taken together."""
    scope: Scope
    """tasks: these tasks, with other instances and seeds. kind: families that ask one kind of question, where the
    method answers. families: families like these."""
    kind: str = Field(default="", title="question")
    """Kind of question, where the sentence is about one."""
    value: float = Field(title="reward")
    """Mean reward: over tasks, or over families, whose targets are averaged first and whose clusters count once."""
    low: float | None
    """Lower end of its 95% interval; null where there is one family."""
    high: float | None
    """Upper end of its 95% interval; null where there is one family."""
    n: int
    """Tasks, or families (clusters of them counted once), that the mean is over."""
    p: float | None
    """Two-sided, of no difference; null where it was not tested (one family, or no answer)."""
    p_holm: float | None = Field(title="p (Holm)")
    """The same, corrected for the number of methods that the sentence is said of; of controls uncorrected."""
    verdict: Verdict
    """better or worse only if p (Holm) is below .05 and the reward exceeds the noise floor."""
    visible: float | None = Field(title="smallest visible")
    """The smallest true reward that would have been told from 0 in 80% of repetitions (two-sided, 5%, uncorrected).
    Null where it was not tested or nothing varied."""
    needed: int | None = Field(default=None, title="families needed")
    """Families that would have told a reward of this size, spread over families as here, from 0 in 80% of repetitions,
    corrected for as many methods. Null of tasks, of one family, of controls, and above 1,000."""
    improvement: float = Field(title="P(improvement)")
    """Share of seeds, tasks and families in which the reward is above 0, ties counted half."""
    noise_floor: float
    """The size that the reward of an answer which says nothing, for nothing, stays below in 95% of repetitions."""
    unseen_share: float = 0.0
    """The largest over its tasks of what its meter could miss, as a share of the tight budget."""

    @property
    def is_control(self) -> bool:
        return self.method in CONTROL_METHODS

    @property
    def where(self) -> str:
        """What the sentence is about: ``on questions of kind Localise (3 train families)``."""
        split = self.split.replace("+", " and ")
        if self.scope == "tasks":
            return f"on {'this' if self.n == 1 else f'these {self.n}'} {split} task{'s' if self.n != 1 else ''}"
        families = f"{self.n} {split} {'family' if self.n == 1 else 'families'}"
        return f"on questions of kind {self.kind} ({families})" if self.kind else f"on families like these ({families})"

    @property
    def sentence(self) -> str:
        """The row in words, without a capital and a full stop."""
        rival = self.against or "the agent alone"
        numbers = f"{self.value:+.3f}"
        if self.value == 0 and (self.p is None or self.low == self.high == 0):
            return f"{self.where} {self.method} changed nothing"
        if self.low is None or self.high is None:
            few = "one family says" if self.n == 1 else "two families say"
            return f"{self.where} {self.method} has {numbers} against {rival}: {few} nothing of others"
        numbers += f" [{self.low:+.3f}, {self.high:+.3f}]"
        verdict = {"not distinguishable": "not distinguishable from"}.get(self.verdict, f"{self.verdict} than")
        text = f"{self.where} {self.method} is {verdict} {rival}: {numbers}"
        text += "" if self.visible is None else f", smallest visible {self.visible:.3f}"
        if self.verdict == "not distinguishable" and self.p is not None and self.p < 0.05:
            text += f", p {_p(self.p)}"
            text += f" and {_p(self.p_holm)} corrected by Holm" if self.p_holm not in (None, self.p) else ""
            text += f", noise floor {self.noise_floor:.3f}"
        return text


def _p(value: float | None) -> str:
    if value is None:
        return "unknown"
    return "below .001" if value < 0.001 else f"{value:.3f}".lstrip("0")


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


Board = tuple[LeaderboardRow, ...]
Tasks = tuple[TaskRow, ...]
LEADERBOARD = ResultFile("leaderboard", Board, "reward", "the leaderboard on validation families")
TRAIN = ResultFile("train", Board, "reward", "the leaderboard on train families")
Statements = tuple[StatementRow, ...]
STATEMENTS = ResultFile("statements", Statements, "reward", "what may be said of each method, on what evidence")
TEST_STATEMENTS = ResultFile(
    "test_statements", Statements, "sealed_test", "what the sealed test lets one say, with validation and without"
)
PER_TASK = ResultFile("per_task", Tasks, "reward", "every method on every task")
TEST = ResultFile("test", tuple[TestRow, ...], "sealed_test", "the sealed test split")
TEST_PER_TASK = ResultFile("test_per_task", Tasks, "sealed_test", "every method on every test task")
