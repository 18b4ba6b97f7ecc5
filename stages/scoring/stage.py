"""Stage ``execution``: the assisted and placebo arms of one built-in method, on every train and validation task.

Writes data/execution/<method>/<family>.<target>.safetensors and .json. The test split stays sealed.
"""

import sys

from stages.base import paths
from stages.errors import UserError
from stages.execution.results import save_arms
from stages.interpretation.artifact import load_interpretation, pack
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.evaluate import Evaluation, evaluate
from stages.scoring.in_process import InProcess
from stages.scoring.settings import Settings, settings
from stages.tasks.storage import list_tasks

__all__ = ["main", "run", "stage_frozen"]


def stage_frozen(method: str, targets: list[str], chosen: Settings) -> dict[str, Frozen]:
    """I(M) of a built-in method on every target, as stage ``interpretation`` left it."""
    folder, limit = paths.interpretation_dir(method), chosen.interpretation.max_bytes
    return {
        target: Frozen(*pack(load_interpretation(folder, target), method, f"interpret on {target}", limit))
        for target in targets
    }


def run(method: str) -> None:
    """All train and validation tasks of one method."""
    chosen, _ = settings()
    tasks = [task for split in ("train", "validation") for task in list_tasks(split)]
    frozen = stage_frozen(method, sorted({target for _, target in tasks}), chosen)
    host, folder = InProcess(chosen.interpretation), paths.execution_dir(method)
    for one in tasks:  # one after the other: this node runs beside those of other methods
        done: Evaluation[None] = evaluate(Candidate(method, method), [one], host, chosen.execution, frozen=frozen)
        result = done.results[0]
        arms = result.arms
        if arms is None:
            raise RuntimeError(f"{method} on {result.task}: {result.answered.reason}")
        save_arms(arms, folder, result.task)
        used = sum(arm.used_answer for arm in arms.assisted)
        words = [arms.status, arms.reason, f"used in {used} of {len(arms.assisted)} runs"]
        print(f"{method}: {result.task}: {' '.join(filter(None, words))}", flush=True)


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one method is needed, such as `python -m stages scoring pca`")
    run(sys.argv[1])
