"""Targets, tasks and baselines, read once a process; and what counts as a failure of the machinery."""

import os
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path

from stages.contracts.arms import Baseline
from stages.contracts.target import Target
from stages.errors import InfraError
from stages.execution.results import load_baseline
from stages.targets.storage import load_target
from stages.tasks.storage import Task, load_task

__all__ = ["INFRA", "cached_baseline", "cached_target", "cached_task", "jobs"]

INFRA = (InfraError, OSError, MemoryError, BrokenProcessPool)
"""Failures of the machinery: a worker that was killed, a full disk, a sandbox that does not start."""


def jobs() -> int:
    """Worker processes: LENSMITH_JOBS, else one per core."""
    return max(1, int(os.environ.get("LENSMITH_JOBS") or os.cpu_count() or 1))


@lru_cache(maxsize=16)
def cached_target(name: str) -> Target:
    return load_target(name)


@lru_cache(maxsize=128)
def cached_task(family: str, target: str) -> Task:
    return load_task(family, target)


@lru_cache(maxsize=128)
def cached_baseline(folder: Path, task: str) -> Baseline:
    return load_baseline(folder, task)
