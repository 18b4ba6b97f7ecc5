"""The three arms. The same executor in each; only what it may query differs.

Baseline: the black-box ladder alone. Assisted: the ladder and the method's answers. Placebo: the same call at the same
price, its answers dealt to other rows, so that all they can tell is destroyed while interface, shape and cost remain. (Shuffling
only the arrays of I(M) would not do: a random projection of live activations is still informative.)

M2's rule is the same in every arm: among its options take the cheapest whose cross-validated score is within a margin of
the best. So an answer that adds nothing is not paid for, and a cheap answer replaces dear black-box work.

Shape legend: N = instances, E = evaluation instances, I = items, K = features.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.execution.calibrator import Calibrator, Fit, assemble, cross_validate
from stages.metering import Ledger, MeteredAccess
from stages.params import Params
from stages.targets import Target
from stages.tasks import Task

__all__ = ["ArmResult", "ExecutorConfig", "Rung", "climb", "deal_out", "solve", "split", "stream"]

FloatArray = npt.NDArray[np.float64]


class ExecutorConfig(Params):
    """What the executor is; the same in every arm."""

    n_seeds: int = 3
    """Splits into calibration and evaluation, each with its own black-box draws."""
    n_calibration: int = 80
    """Labelled instances it may learn from; at most 40% of a task's instances."""
    folds: int = 3
    margin: float = 0.02
    """It takes the cheapest option whose cross-validated score is within this of the best."""
    max_features: int = 24
    """Features its calibrator keeps."""


@dataclass(frozen=True)
class Rung:
    """One step of the black-box ladder on all instances of a task."""

    effort: int
    features: FloatArray
    """(N, I, K)."""
    flops: float
    """Per instance."""


@dataclass(frozen=True)
class ArmResult:
    """What one arm did on one task and seed."""

    predictions: FloatArray
    """(E, I)."""
    index: npt.NDArray[np.int64]
    """(E,) which instances were evaluated."""
    flops: float
    """Charged per evaluated instance."""
    effort: int
    """Rung used; -1: none, the method's answer alone."""
    used_answer: bool
    calibrator: str
    cv_score: float
    explored_flops: float
    """Per instance, spent on choosing among the options; the same rule in all arms, reported and not charged."""


def stream(*parts: object) -> torch.Generator:
    """A generator for one purpose: the same parts, the same draws, on every machine."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def split(task: Task, seed: int, config: ExecutorConfig) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Calibration and evaluation instances of one seed: disjoint, together all."""
    n = task.instances.n
    order = torch.randperm(n, generator=stream("split", task.name, seed)).numpy()
    n_calibration = min(config.n_calibration, int(0.4 * n))
    return order[:n_calibration], order[n_calibration:]


def climb(task: Task, target: Target, seed: int, replicate: int) -> list[Rung]:
    """Black-box features at every rung, metered."""
    rungs = []
    for effort in range(task.family.n_efforts):
        ledger = Ledger()
        access = MeteredAccess(target, ledger, variants=task.instances.variants)
        generator = stream("ladder", task.name, seed, replicate)
        features = task.family.behavioural(access, task.instances, effort, generator)
        if ledger.flops <= 0:
            raise ValueError(f"{task.name}: rung {effort} of the ladder never called the target; it must cost something")
        rungs.append(Rung(effort, features.double().numpy(), ledger.flops / task.instances.n))
    return rungs


def solve(
    task: Task,
    rungs: Sequence[Rung],
    answer: FloatArray | None,
    answer_flops: float,
    seed: int,
    config: ExecutorConfig,
    black_box: "Sequence[tuple[Rung, Fit]] | None" = None,
) -> tuple[ArmResult, list[tuple[Rung, Fit]]]:
    """One arm on one task and seed.

    Args:
        answer: (N, I, K) what the method said; None: nothing.
        answer_flops: per instance.
        black_box: the fits without an answer, where they are known from the baseline arm.

    Returns:
        The result, and the fits without an answer.
    """
    calibration, evaluation = split(task, seed, config)
    truth = task.truth.values.numpy()

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    def fit(features: FloatArray) -> Fit:
        return cross_validate(
            features[calibration], truth[calibration], score, config.folds, config.max_features, seed
        )

    if black_box is None:
        black_box = [(rung, fit(assemble(rung.features))) for rung in rungs]
    options: list[tuple[float, Fit, Rung | None, bool]] = [(r.flops, f, r, False) for r, f in black_box]
    explored = sum(rung.flops for rung in rungs)
    if answer is not None:
        alone: list[Rung | None] = [None]
        for rung in [*alone, *_worth_combining(black_box, config.margin)]:
            features = assemble(None if rung is None else rung.features, answer)
            options.append((answer_flops + (rung.flops if rung else 0.0), fit(features), rung, True))
        explored += answer_flops
    best = max(f.score for _, f, _, _ in options)
    flops, chosen, rung, used = min(
        (option for option in options if option[1].score >= best - config.margin),
        key=lambda option: (option[0], -option[1].score),
    )
    features = assemble(None if rung is None else rung.features, answer if used else None)
    model = Calibrator(config.max_features, seed).fit(features[calibration], truth[calibration])
    predictions = model.predict(features[evaluation])[chosen.kind]
    effort = -1 if rung is None else rung.effort
    result = ArmResult(predictions, evaluation, flops, effort, used, chosen.kind, chosen.score, explored)
    return result, list(black_box)


def _worth_combining(black_box: Sequence[tuple[Rung, Fit]], margin: float) -> list[Rung]:
    """Rungs to combine an answer with: the cheapest, the one the baseline would take, and the best."""
    best = max(fit.score for _, fit in black_box)
    taken = next(rung for rung, fit in black_box if fit.score >= best - margin)
    top = max(black_box, key=lambda pair: pair[1].score)[0]
    return sorted({r.effort: r for r in (black_box[0][0], taken, top)}.values(), key=lambda r: r.effort)


def deal_out(answer: FloatArray, name: str, seed: int) -> FloatArray:
    """The placebo: the same rows, dealt to other instances and items at random."""
    rows = answer.reshape(-1, answer.shape[-1])
    order = torch.randperm(len(rows), generator=stream("placebo", name, seed)).numpy()
    return rows[order].reshape(answer.shape)


def as_rows(answer: Tensor, n: int, items: int) -> FloatArray:
    """An answer of shape (n, k), (n, items) or (n, items, k) as (n, items, k).

    Raises:
        ValueError: any other shape.
    """
    if answer.dim() == 3 and tuple(answer.shape[:2]) == (n, items):
        return answer.double().numpy()
    if answer.dim() == 2 and items > 1 and tuple(answer.shape) == (n, items):
        return answer.double().numpy()[..., None]
    if answer.dim() in (1, 2) and items == 1 and answer.shape[0] == n:
        return answer.double().numpy().reshape(n, 1, -1)
    wanted = f"({n}, k)" if items == 1 else f"({n}, {items}) or ({n}, {items}, k)"
    raise ValueError(f"it has shape {tuple(answer.shape)}, the query wants {wanted}")
