"""Do the instances of a task give their answers away by anything but their content?

A method's answer is recorded on shapes, and computed on all instances at once. What it could use besides the values
themselves is where an instance stands, and what is structural: how many arrays and of which shape and type (the same
for all instances, since they are stacked), which inputs are equal to which. (How common a label is tells which label it
is; that is content.) A calibrator is fitted on just that, and what
it explains on held-out instances is compared with what it explains of shuffled truths.

`python -m stages tools.hints` prints a row for every task that was made.
"""

import sys
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stages.execution.calibrator import cross_validate
from stages.tasks.generation import SPLITS
from stages.tasks.storage import Task, list_tasks, load_task

__all__ = ["HintRow", "hint_features", "hints_of", "main"]

FloatArray = npt.NDArray[np.float64]
MODULI = (2, 3, 4, 5, 7, 8, 10)
N_SHUFFLES = 39
FOLDS, MAX_FEATURES = 6, 24


@dataclass(frozen=True)
class HintRow:
    task: str
    split: str
    explained: float
    """Share of the truth's variance that place and structure explain on held-out instances; below 0: nothing."""
    by_chance: float
    """The largest of as many shuffled truths as were tried."""
    p: float
    """Share of shuffled truths that are explained at least as well, the true one counted."""


def hint_features(task: Task) -> FloatArray:
    """(N, K) where an instance stands, and how often its inputs, directions and the like stand in the task."""
    n = task.instances.n
    place = np.arange(n)
    columns = [place / n, np.abs(place - n / 2)]
    columns += [(place % modulus == rest).astype(float) for modulus in MODULI for rest in range(modulus - 1)]
    for name, array in sorted(task.instances.arrays.items()):
        if not name.startswith("shared_") and array.is_floating_point():
            rows = array.reshape(n, -1)
            _, inverse, counts = torch.unique(rows, dim=0, return_inverse=True, return_counts=True)
            columns.append(counts[inverse].numpy().astype(float))
    return np.stack(columns, axis=1)


def hints_of(task: Task, seed: int = 0) -> HintRow:
    """What the hints explain of the truths beside each item's mean, and of the same truths dealt to other instances."""
    values = task.truth.values.numpy()
    truth = values - values.mean(0)
    features = np.repeat(hint_features(task)[:, None, :], truth.shape[1], axis=1)
    rng = np.random.default_rng(seed)

    def explained(values: FloatArray) -> float:
        def score(predictions: FloatArray, wanted: FloatArray) -> float:
            return float(1 - ((predictions - wanted) ** 2).sum() / (wanted**2).sum())

        return cross_validate(features, values, score, FOLDS, MAX_FEATURES).score

    own = explained(truth)
    dealt = [explained(truth[rng.permutation(len(truth))]) for _ in range(N_SHUFFLES)]
    p = (1 + sum(value >= own for value in dealt)) / (1 + N_SHUFFLES)
    return HintRow(task.name, task.split, own, max(dealt), p)


def main() -> None:
    rows = []
    for split in SPLITS:
        for family, target in list_tasks(split):
            rows.append(hints_of(load_task(family, target)))
            row = rows[-1]
            print(f"{row.task}: {row.explained:+.3f}, shuffled at most {row.by_chance:+.3f}, p {row.p:.3f}", flush=True)
    low = sum(row.p <= 0.05 for row in rows)
    print(f"{low} of {len(rows)} tasks have p <= .05; {0.05 * len(rows):.1f} are expected where there is nothing")
    if any(row.p <= 1 / (1 + N_SHUFFLES) and row.explained > 0.1 for row in rows):
        sys.exit("a task is given away: see the rows above")
