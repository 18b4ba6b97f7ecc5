"""Stage ``baseline``: the black-box arm of every train and validation task. It runs first, alone.

Writes data/execution/baseline/<family>.<target>.safetensors and .json, and in oracle/ the arms of a control that is
given the truth. The test split stays sealed.
"""

import os

from joblib import delayed

from stages.base import paths
from stages.base.processes import process_pool
from stages.contracts.arms import Answered
from stages.execution.results import save_arms, save_baseline
from stages.execution.runs import arms_of, baseline_of
from stages.execution.settings import Config, ExecutorConfig, executor
from stages.execution.store import prune
from stages.targets.storage import load_target
from stages.tasks.storage import Task, dearest_first, list_tasks, load_task

__all__ = ["Config", "main", "oracle", "run"]


def oracle(task: Task) -> Answered:
    """The control that must be near the maximum: the truth itself, for free. No method may see it."""
    return Answered("ok", task.truth.values.numpy()[..., None], 0.0, 0.0)


def _one(config: ExecutorConfig, family: str, target_name: str) -> str:
    task, folder = load_task(family, target_name), paths.execution_dir("baseline")
    baseline = baseline_of(task, load_target(target_name), config)
    save_baseline(baseline, folder, task.name)
    save_arms(arms_of(task, baseline, oracle(task), config), folder / "oracle", task.name)
    return f"{task.name}: ladder steps taken {[result.effort for result in baseline.first]}"


def run(config: ExecutorConfig, jobs: int = 1) -> None:
    """All train and validation tasks, ``jobs`` processes at a time."""
    tasks = dearest_first(task for split in ("train", "validation") for task in list_tasks(split))
    work = (delayed(_one)(config, family, target) for family, target in tasks)
    for done, line in enumerate(process_pool(jobs, return_as="generator_unordered")(work), 1):
        print(f"baseline: {done} of {len(tasks)}: {line}", flush=True)
    prune()


def main() -> None:
    run(executor(), os.cpu_count() or 1)  # it runs alone, so it may have every core
