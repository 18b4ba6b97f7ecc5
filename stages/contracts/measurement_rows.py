"""Rows about the measurement itself: controls, other forms of the reward, fresh instances, untrained twins."""

from typing import ClassVar

from pydantic import Field

from stages.contracts.outcomes import Outcome
from stages.contracts.record import Ends, Record, ResultFile

__all__ = [
    "CONTROLS",
    "FRESH",
    "NULL",
    "SENSITIVITY",
    "ControlRow",
    "FreshRow",
    "NullRow",
    "RankRow",
    "RewardSettings",
    "SensitivityTable",
    "TauRow",
]


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
    """The size that the reward of an answer which says nothing, for nothing, stays below in 95% of repetitions."""
    n_tasks: int | None = None
    """Tasks that the mean is over, in a row of all tasks."""


CONTROLS = ResultFile("controls", tuple[ControlRow, ...], "reward", "controls that must come out right")
SENSITIVITY = ResultFile("sensitivity", SensitivityTable, "reward", "the ranking under other forms of the reward")
FRESH = ResultFile("fresh", tuple[FreshRow, ...], "fresh", "scores on instances drawn after everything was frozen")
NULL = ResultFile("null", tuple[NullRow, ...], "twins", "rewards on untrained twins of the targets")
