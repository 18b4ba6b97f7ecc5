"""The configurations of all the stages that a candidate goes through."""

from dataclasses import dataclass

from stages.base.params import load
from stages.execution.settings import Config as ExecutionConfig
from stages.execution.settings import ExecutorConfig
from stages.interpretation.settings import Config as InterpretationConfig
from stages.reward.settings import Config as RewardStageConfig
from stages.reward.settings import RewardConfig

__all__ = ["Settings", "settings"]


@dataclass(frozen=True)
class Settings:
    """The configurations of the stages a trial goes through."""

    interpretation: InterpretationConfig
    execution: ExecutorConfig
    reward: RewardConfig


def settings() -> tuple[Settings, tuple[str, ...]]:
    """The stages' configurations, and the methods on the leaderboard."""
    reward = load("reward", RewardStageConfig)
    return Settings(
        load("interpretation", InterpretationConfig), load("execution", ExecutionConfig), reward
    ), reward.methods
