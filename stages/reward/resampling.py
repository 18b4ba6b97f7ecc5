"""Paired bootstrap: the same resampled instances and seeds in every arm, clustered by task.

Source: Efron & Tibshirani 1993, ch. 8 (two-level resampling); Miller 2024 (2411.00640) on clustered, paired evaluation.

Shape legend: W = resamples, S = seeds, R = results (a seed at a budget), E = evaluation instances, N = instances.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.base.intervals import percentile_interval
from stages.contracts.arms import ArmResult
from stages.tasks.storage import Task

__all__ = ["Resamples", "interval", "pooled", "scores"]

FloatArray = npt.NDArray[np.float64]


class Resamples:
    """Draws for one task. Row 0 of everything is the original sample.

    Args:
        n: instances of the task.
        n_seeds: seeds of the executor.
        draws: resamples, the original not counted.
        rng: random generator.
    """

    def __init__(self, n: int, n_seeds: int, draws: int, rng: np.random.Generator) -> None:
        counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
        self.instances: FloatArray = np.concatenate([np.ones((1, n)), counts])
        seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=draws) / n_seeds
        self.seeds: FloatArray = np.concatenate([np.full((1, n_seeds), 1 / n_seeds), seeds])

    def mean(self, values: FloatArray, results: Sequence[ArmResult]) -> FloatArray:
        """(W,) mean over results of (W, R) values: seeds resampled, every budget of a seed together."""
        weights = self.seeds[:, [result.seed for result in results]]
        return np.asarray((values * weights).sum(1) / weights.sum(1))


def scores(task: Task, results: Sequence[ArmResult], resamples: Resamples) -> FloatArray:
    """(W, R) score of each result (seed and budget) under each resample."""
    truth = task.truth.values.numpy()
    columns = [task.family.score(r.predictions, truth[r.index], resamples.instances[:, r.index]) for r in results]
    return np.stack(columns, axis=1)


def interval(draws: FloatArray) -> tuple[float, float, float]:
    """(point, low, high): row 0 is the point, the rest give the 95% percentile interval.

    The interval is widened to hold the point, which a skewed distribution can leave just outside."""
    point = float(draws[0])
    return point, *percentile_interval(draws[1:]).holding(point)


def pooled(per_task: Sequence[FloatArray], rng: np.random.Generator) -> FloatArray:
    """Mean over tasks, tasks resampled as clusters: (W,) from one (W,) per task; row 0 is the plain mean."""
    stacked = np.stack(per_task)
    n_tasks, n_draws = stacked.shape
    chosen = rng.integers(n_tasks, size=(n_draws, n_tasks))
    chosen[0] = np.arange(n_tasks)
    return np.asarray(stacked[chosen, np.arange(n_draws)[:, None]].mean(1))
