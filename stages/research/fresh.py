"""The fresh-instance gap: does a method do as well on instances nobody could have seen?

After I(M) is frozen, new instances are drawn from a secret seed and their truth is computed. The same calibrator,
fitted on the
method's answers to the old calibration instances, predicts the old evaluation instances and the new ones. A method
that carries
answers in I(M), or is fitted to the old instances, does worse on the new ones.
"""

import secrets
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.execution import split
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.metering import Calibration
from stages.research.apart import Apart, Frozen, answer_apart
from stages.research.trial import Settings
from stages.targets import Target
from stages.tasks import Task
from stages.tasks.making import make

__all__ = ["fresh_gap", "fresh_task"]

N_FRESH = 40
DRAWS = 400
FloatArray = npt.NDArray[np.float64]


def fresh_task(task: Task, target: Target, n: int = N_FRESH, seed: int | None = None) -> Task:
    """New instances of a task's family from a secret seed, with their truth."""
    drawn = secrets.randbits(48) if seed is None else seed
    made = make(task.family, target, task.split, n, drawn, "fresh")
    return Task(task.family, task.target_name, task.split, made.instances.public(), made.truth)


def fresh_gap(
    source: str | Path,
    name: str,
    frozen: Frozen,
    old: Apart,
    task: Task,
    target: Target,
    chosen: Settings,
    timeout_s: float,
    trust: bool,
    rates: Calibration,
) -> dict[str, Any] | None:
    """Score on old against new instances; None where the method did not answer.

    Returns:
        {"task", "old", "fresh", "gap", "gap_low", "gap_high" (95%, bootstrap over instances), "n_old", "n_fresh"}.
    """
    if old.outcome != "ok" or old.answered.rows is None:
        return None
    fresh = fresh_task(task, target)
    new = answer_apart(source, name, frozen, fresh, target, timeout_s, trust, rates)
    if new.outcome != "ok" or new.answered.rows is None:
        return {"task": task.name, "outcome": new.outcome, "reason": new.reason}
    config, truth = chosen.execution, task.truth.values.numpy()
    old_x, new_x = assemble(old.answered.rows), assemble(new.answered.rows)
    calibration, evaluation = split(task, 0, config)

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    kind = cross_validate(old_x[calibration], truth[calibration], score, config.folds, config.max_features, 0).kind
    model = Calibrator(config.max_features, 0).fit(old_x[calibration], truth[calibration])
    pairs = [
        (model.predict(old_x[evaluation])[kind], truth[evaluation]),
        (model.predict(new_x)[kind], fresh.truth.values.numpy()),
    ]
    rng = np.random.default_rng(0)
    draws = []
    for predictions, wanted in pairs:
        n = len(wanted)
        weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)])
        draws.append(task.family.score(predictions, wanted, weights))
    gap = draws[0] - draws[1]
    low, high = np.quantile(gap[1:], [0.025, 0.975])
    return {
        "task": task.name,
        "outcome": "ok",
        "old": round(float(draws[0][0]), 6),
        "fresh": round(float(draws[1][0]), 6),
        "gap": round(float(gap[0]), 6),
        "gap_low": round(float(low), 6),
        "gap_high": round(float(high), 6),
        "n_old": len(evaluation),
        "n_fresh": fresh.instances.n,
    }
