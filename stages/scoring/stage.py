"""Stage ``execution``: the assisted and placebo arms of one built-in method, on every train and validation task.

Writes data/execution/<method>/<family>.<target>.safetensors and .json. The test split stays sealed.
"""

import sys

from stages.base import paths
from stages.errors import UserError
from stages.execution.results import save_arms
from stages.execution.settings import ExecutorConfig, executor
from stages.interpretation.loading import built_in
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.evaluate import Evaluation, evaluate
from stages.scoring.in_process import InProcess
from stages.tasks.storage import list_tasks

__all__ = ["main", "run", "stage_frozen"]


def stage_frozen(method: str, targets: list[str]) -> dict[str, Frozen]:
    """I(M) of a built-in method on every target, as stage ``interpretation`` left it.

    Raises:
        UserError: it is missing.
    """
    folder, made = paths.interpretation_dir(method), {}
    for target in targets:
        arrays = paths.require(folder / f"{target}.safetensors", "interpretation").read_bytes()
        made[target] = Frozen(arrays, paths.require(folder / f"{target}.json", "interpretation").read_bytes())
    return made


def run(config: ExecutorConfig, method: str) -> None:
    """All train and validation tasks of one method."""
    tasks = [task for split in ("train", "validation") for task in list_tasks(split)]
    frozen = stage_frozen(method, sorted({target for _, target in tasks}))
    candidate = Candidate(method, built_in(method))
    for one in tasks:  # one after the other: this node runs beside those of other methods
        done: Evaluation[None] = evaluate(candidate, [one], InProcess(), config, frozen=frozen)
        result = done.results[0]
        arms = result.arms
        if arms is None:
            raise RuntimeError(f"{method} on {result.task}: {result.answered.reason}")
        save_arms(arms, paths.execution_dir(method), result.task)
        used = sum(arm.used_answer for arm in arms.assisted)
        words = [arms.status, arms.reason, f"used in {used} of {len(arms.assisted)} runs"]
        print(f"{method}: {result.task}: {' '.join(filter(None, words))}", flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one method is needed, such as `python -m stages scoring pca`")
    run(executor(), sys.argv[1])
