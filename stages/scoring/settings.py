"""What every trial needs: the stages' configurations, and targets and tasks read once a process."""

import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from stages.base.params import load
from stages.contracts.arms import Baseline
from stages.contracts.target import Target
from stages.errors import InfraError
from stages.execution.results import load_baseline
from stages.execution.settings import Config as ExecutionConfig
from stages.execution.settings import ExecutorConfig
from stages.interpretation.stage import Config as InterpretationConfig
from stages.reward.settings import Config as RewardStageConfig
from stages.reward.settings import RewardConfig
from stages.targets.storage import load_target
from stages.tasks.storage import Task, load_task

__all__ = ["INFRA", "Settings", "cached_baseline", "cached_target", "cached_task", "jobs", "settings"]

INFRA = (InfraError, OSError, MemoryError, BrokenProcessPool)
"""Failures of the machinery: a worker that was killed, a full disk, a sandbox that does not start."""


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


def jobs() -> int:
    """Worker processes: LENSMITH_JOBS, else one per core."""
    return max(1, int(os.environ.get("LENSMITH_JOBS") or os.cpu_count() or 1))


@lru_cache(maxsize=4)
def cached_target(name: str) -> Target:
    return load_target(name)


@lru_cache(maxsize=32)
def cached_task(family: str, target: str) -> Task:
    return load_task(family, target)


@lru_cache(maxsize=32)
def cached_baseline(folder: Path, task: str) -> Baseline:
    return load_baseline(folder, task)
