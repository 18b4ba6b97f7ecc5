"""Paired bootstrap over instances: the same resampled instances in every arm, so that what arms share cancels.

Source: Efron & Tibshirani 1993, ch. 8; Miller 2024 (2411.00640) on paired evaluation. Seeds are not resampled: there
are three, and ``inference.measured`` says what they leave open.

Shape legend: W = resamples, S = seeds, R = results (a seed at a budget), E = evaluation instances, N = instances.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.contracts.arms import ArmResult
from stages.tasks.storage import Task

__all__ = ["by_seed", "resampled", "scores"]

FloatArray = npt.NDArray[np.float64]


def resampled(n: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """(1 + draws, n) how often each of n instances was drawn; row 0 is the original sample."""
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)
    return np.concatenate([np.ones((1, n)), counts])


def scores(task: Task, results: Sequence[ArmResult], resamples: FloatArray) -> FloatArray:
    """(W, R) score of each result (seed and budget) under each resample."""
    truth = task.truth.values.numpy()
    columns = [task.family.score(r.predictions, truth[r.index], resamples[:, r.index]) for r in results]
    return np.stack(columns, axis=1)


def by_seed(values: FloatArray, results: Sequence[ArmResult]) -> FloatArray:
    """(W, S) mean over the budgets of each seed, of (W, R) values."""
    seeds = np.array([result.seed for result in results])
    return np.stack([values[:, seeds == seed].mean(1) for seed in sorted(set(seeds.tolist()))], axis=1)
