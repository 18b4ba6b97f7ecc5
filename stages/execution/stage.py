"""Stage ``execution``: the baseline arm, or the assisted and placebo arms of one method, on every task.

Writes data/execution/<baseline | method>/<family>.<target>.safetensors and .json.
"""

import os
import sys

from joblib import delayed
from pydantic import Field

from stages.base import paths
from stages.base.params import load
from stages.base.processes import processes
from stages.execution.answering import Answered, ask_in_process
from stages.execution.results import load_baseline, save_arms, save_baseline
from stages.execution.runs import arms_of, baseline_of
from stages.execution.settings import ExecutorConfig
from stages.interpretation.artifact import load_interpretation
from stages.interpretation.loading import built_in
from stages.targets.storage import load_target
from stages.tasks.storage import list_tasks, load_task

__all__ = ["Config", "main", "run"]


class Config(ExecutorConfig):
    n_seeds: int = Field(ge=3, le=20)


def _one(config: ExecutorConfig, arm: str, family: str, target_name: str) -> str:
    task, target = load_task(family, target_name), load_target(target_name)
    folder = paths.execution_dir(arm)
    if arm == "baseline":
        baseline = baseline_of(task, target, config)
        save_baseline(baseline, folder, task.name)
        # The control that must be near the maximum: the truth itself, for free. It lives here since no method may see
        # it.
        truth = Answered("ok", task.truth.values.numpy()[..., None], 0.0, 0.0)
        save_arms(arms_of(task, baseline, truth, config), folder / "oracle", task.name)
        return f"{task.name}: rungs taken {[r.effort for r in baseline.first]}"
    interpretation = load_interpretation(paths.interpretation_dir(arm), target_name)
    answered = ask_in_process(built_in(arm), arm, interpretation, task, target)
    arms = arms_of(task, load_baseline(paths.execution_dir("baseline"), task.name), answered, config)
    save_arms(arms, folder, task.name)
    used = sum(result.used_answer for result in arms.assisted)
    return f"{task.name}: {arms.status} {arms.reason} used in {used} of {len(arms.assisted)} runs".replace("  ", " ")


def run(config: ExecutorConfig, arm: str, jobs: int = 1) -> None:
    """All train and validation tasks of one arm, ``jobs`` processes at a time. The test split stays sealed."""
    tasks = [task for split in ("train", "validation") for task in list_tasks(split)]
    work = (delayed(_one)(config, arm, family, target) for family, target in tasks)
    for line in processes(jobs, return_as="generator")(work):
        print(f"{arm}: {line}", flush=True)


def main() -> None:
    arm = sys.argv[1]
    # The baseline arm runs alone, so it may have every core; methods' arms run beside each other.
    run(load("execution", Config), arm, (os.cpu_count() or 1) if arm == "baseline" else 1)
