"""Tasks whose calibration instances are of one kind and whose evaluation instances are of another.

The executor is the one that scores methods, unchanged: which instances it calibrates on is its own draw, so instances
are laid out to stand where they are wanted.

Shape legend: N = instances, I = items, K = features, E = evaluation instances.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stages.base.intervals import t_interval
from stages.contracts.arms import Answered, ArmResult
from stages.contracts.method import Interpretation, Method
from stages.contracts.target import Target
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.errors import UserError
from stages.execution.answering import ask_in_process
from stages.execution.arms import split
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.execution.settings import ExecutorConfig
from stages.interpretation.free_phase import interpret
from stages.interpretation.loading import built_in
from stages.interpretation.settings import Config
from stages.tasks.storage import Task

__all__ = ["Estimate", "Half", "alone", "answer", "check_draws", "interpreted", "joined", "over_draws", "scores"]

FloatArray = npt.NDArray[np.float64]


class Half(NamedTuple):
    """Instances with their truth."""

    instances: Instances
    truth: Truth

    @property
    def n(self) -> int:
        return self.instances.n


class Estimate(NamedTuple):
    """A mean over draws of instances, with its 95% t interval."""

    value: float
    low: float
    high: float


def check_draws(n: int) -> None:
    """
    Raises:
        UserError: fewer than two draws, which have no interval.
    """
    if n < 2:
        raise UserError(f"n_draws = {n}: give at least 2, an interval is over draws of instances")


def scores(task: Task, results: Sequence[ArmResult], config: ExecutorConfig) -> dict[str, float]:
    """Of seed 0, by budget."""
    truth = task.truth.values.numpy()[split(task, 0, config)[1]]
    return {result.budget: float(task.family.score(result.predictions, truth)[0]) for result in results}


def over_draws(values: Sequence[float]) -> Estimate:
    """Of as many values as there were draws, at least 2."""
    return Estimate(*(round(value, 4) + 0.0 for value in (statistics.fmean(values), *t_interval(values))))


def joined(family: TaskFamily, target_name: str, calibration: Half, evaluation: Half, config: ExecutorConfig) -> Task:
    """One task whose seed 0 calibrates on the first half and evaluates on the second.

    What all instances share (``shared_*``) is the first half's, so the second half's must be the same.

    Raises:
        UserError: the executor would calibrate on another number of instances.
        ValueError: the halves do not share what is shared.
    """
    parts = [calibration.instances, evaluation.instances]
    arrays = {}
    for name, value in parts[0].arrays.items():
        if not name.startswith("shared_"):
            arrays[name] = torch.cat([part.arrays[name] for part in parts])
        elif not torch.equal(value, parts[1].arrays[name]):
            raise ValueError(f"{family.name}: {name} differs between the halves; draw them together")
        else:
            arrays[name] = value
    both = Instances(arrays, calibration.n + evaluation.n)
    values = torch.cat([calibration.truth.values, evaluation.truth.values])
    chosen, others = split(Task(family, target_name, "train", both, Truth(values)), 0, config)
    if len(chosen) != calibration.n:
        raise UserError(
            f"{family.name}: {calibration.n} instances to calibrate on and {evaluation.n} to evaluate, but the executor"
            f" takes {len(chosen)} of {both.n} (n_calibration in params/execution.yaml, at most 40%)"
        )
    where = torch.empty(both.n, dtype=torch.int64)
    where[torch.from_numpy(chosen)] = torch.arange(calibration.n)
    where[torch.from_numpy(others)] = torch.arange(calibration.n, both.n)
    return Task(family, target_name, "train", both.select(where), Truth(values[where]))


def interpreted(names: Sequence[str], target: Target, config: Config) -> dict[str, tuple[Method, Interpretation]]:
    """Built-in methods with what they froze on a target."""
    methods = {name: built_in(name) for name in names}
    return {name: (method, interpret(method, name, target, config)) for name, method in methods.items()}


def answer(name: str, frozen: tuple[Method, Interpretation], task: Task, target: Target) -> Answered | None:
    """What a method answers; None: it declines."""
    found = ask_in_process(frozen[0], name, frozen[1], task, target)
    return found if found.status == "ok" and found.rows is not None else None


def alone(task: Task, rows: FloatArray, config: ExecutorConfig) -> FloatArray:
    """(E, I) predictions of the executor's calibrator on an answer and nothing else."""
    calibration, evaluation = split(task, 0, config)
    truth, features = task.truth.values.numpy(), assemble(rows)

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    fit = cross_validate(features[calibration], truth[calibration], score, config.folds, config.max_features)
    model = Calibrator(config.max_features).fit(features[calibration], truth[calibration])
    return model.predict(features[evaluation])[fit.kind]
