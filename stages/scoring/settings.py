"""The configurations of all the stages that a candidate goes through."""

from dataclasses import dataclass

from stages.base.params import load
from stages.execution.settings import ExecutorConfig, executor
from stages.interpretation.settings import Config as InterpretationConfig
from stages.reward.settings import RewardConfig

__all__ = ["Settings", "settings"]


@dataclass(frozen=True)
class Settings:
    """The configurations of the stages a trial goes through."""

    interpretation: InterpretationConfig
    execution: ExecutorConfig
    reward: RewardConfig


def settings() -> Settings:
    """The stages' configurations."""
    return Settings(
        load("interpretation", InterpretationConfig),
        executor(),
        load("reward", RewardConfig, part=True),
    )
