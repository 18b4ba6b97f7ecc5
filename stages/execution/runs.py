"""Whole arms of whole tasks: the baseline once, then a method's assisted and placebo arms against it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from stages.contracts.arms import Answered, ArmResult, Baseline, LadderStep, MethodArms
from stages.contracts.outcomes import SCORELESS
from stages.contracts.target import Target
from stages.execution.arms import FloatArray, run_ladder, shuffle_rows, solve, split, stream
from stages.execution.calibrator import assemble, cross_validate
from stages.execution.policies import Policy
from stages.execution.public import plain_outputs, public_features
from stages.execution.settings import ExecutorConfig
from stages.execution.store import arms_key, baseline_key, kept
from stages.tasks.storage import Task

__all__ = ["arms_by", "arms_of", "baseline_of"]

N_EMPTY = 16
"""Numbers per item in the answer that says nothing: as many as the control ``random_features`` gives."""


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in torch, BLAS and OpenMP: small models want many processes. Set once per arm, since it takes longer
    than fitting a ridge regression."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


def baseline_of(task: Task, target: Target, config: ExecutorConfig) -> Baseline:
    """The baseline arm, twice: the second is handed, for nothing, an answer that says nothing. Seeds that are in the
    store are read.

    So the second arm is what a method that adds nothing makes of the first. It has the first one's split, labels and
    black-box draws, as every assisted arm has: what cancels in a reward cancels here as well.
    """
    fixed: dict[int, LadderStep] = {}
    with one_thread():
        seeds = [
            kept(
                baseline_key(task, target.digest, config, seed),
                Baseline,
                partial(_baseline_of, task, target, config, seed, fixed),
            )
            for seed in range(config.n_seeds)
        ]
    return Baseline(
        [result for one in seeds for result in one.first],
        [result for one in seeds for result in one.second],
        [one.rungs[0] for one in seeds],
        [one.fits[0] for one in seeds],
    )


def _baseline_of(
    task: Task, target: Target, config: ExecutorConfig, seed: int, fixed: dict[int, LadderStep]
) -> Baseline:
    # The features are stored in float32; what every later arm reads back must be what this arm used.
    public, (outputs, price) = public_features(task), plain_outputs(task, target)
    rungs = [
        _informed(task, step, [public, outputs if step.flops >= price * (1 - 1e-9) else None], seed, config)
        for step in run_ladder(task, target, seed, fixed)
    ]
    results, fits = solve(task, rungs, None, 0.0, seed, config, public=public)
    shape = (*task.truth.values.shape, N_EMPTY)
    empty = torch.randn(shape, generator=stream("empty answer", task.name, seed), dtype=torch.float64).numpy()
    again, _ = solve(task, rungs, empty, 0.0, seed, config, fits, public)
    return Baseline(results, again, [rungs], [fits])


def _informed(
    task: Task, step: LadderStep, beside: Sequence[FloatArray | None], seed: int, config: ExecutorConfig
) -> LadderStep:
    """A rung with what is known beside it, where that predicts held-out calibration instances better."""
    blocks = [block for block in beside if block is not None]
    alone = step.features.astype("f4").astype("f8")
    if not blocks:
        return replace(step, features=alone)
    both = np.concatenate([alone, *blocks], axis=-1)
    calibration, _ = split(task, seed, config)
    truth = task.truth.values.numpy()[calibration]

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    found = [
        cross_validate(assemble(features)[calibration], truth, score, config.folds, config.max_features).score
        for features in (alone, both)
    ]
    return replace(step, features=both if found[1] > found[0] else alone)


def arms_of(
    task: Task, baseline: Baseline, answered: Answered, config: ExecutorConfig, *, placebo: bool = True
) -> MethodArms:
    """Assisted and placebo arms, from what a method answered. Seeds that are in the store are read.

    A method that declines gets the baseline. One that fails gets the baseline's predictions and pays for what it used.
    Without ``placebo`` that arm is the baseline as well, in half the time.

    Raises:
        ValueError: the answer is void or the machinery failed: that is no score, so there are no arms.
    """
    if answered.status in SCORELESS:
        raise ValueError(f"{task.name}: an answer that is {answered.status} has no arms: {answered.reason}")
    if answered.status != "ok" or answered.rows is None:
        spent = answered.flops if answered.status == "failed" else 0.0
        arm = [replace(result, flops=result.flops + spent) for result in baseline.first]
        return _arms(answered, arm, arm)
    seeds = []
    with one_thread():
        for seed in range(config.n_seeds):
            alone = seed_of(baseline, seed)
            key = arms_key(task, alone, answered, config, seed, placebo)
            seeds.append(kept(key, MethodArms, partial(_arms_of, task, alone, answered, config, seed, placebo)))
    assisted = [result for one in seeds for result in one.assisted]
    return _arms(answered, assisted, [result for one in seeds for result in one.placebo])


def seed_of(baseline: Baseline, seed: int) -> Baseline:
    """The part of a baseline arm that belongs to one seed."""
    first, second = ([result for result in arm if result.seed == seed] for arm in (baseline.first, baseline.second))
    return Baseline(first, second, [baseline.rungs[seed]], [baseline.fits[seed]])


def _arms_of(
    task: Task, baseline: Baseline, answered: Answered, config: ExecutorConfig, seed: int, with_placebo: bool
) -> MethodArms:
    assert answered.rows is not None
    public = public_features(task)

    def arm(rows: FloatArray) -> list[ArmResult]:
        return solve(task, baseline.rungs[0], rows, answered.flops, seed, config, baseline.fits[0], public)[0]

    assisted = arm(answered.rows)
    placebo = arm(shuffle_rows(answered.rows, task.name, seed)) if with_placebo else baseline.first
    return _arms(answered, assisted, placebo)


def arms_by(
    policy: Policy, task: Task, baseline: Baseline, answered: Answered, config: ExecutorConfig
) -> tuple[Baseline, MethodArms]:
    """The baseline, assisted and placebo arms of an M2 that chooses by ``policy`` and not by the rule; none is stored.

    Args:
        baseline: that of the rule, whose rungs and fits are used.

    Raises:
        ValueError: the answer has no arms (see ``arms_of``), or the policy chose what is not on the menu.
    """
    public, first, assisted, placebo = public_features(task), [], [], []
    for seed in range(config.n_seeds):
        alone = seed_of(baseline, seed)

        def arm(rows: FloatArray | None, price: float, seed: int = seed, alone: Baseline = alone) -> list[ArmResult]:
            return solve(task, alone.rungs[0], rows, price, seed, config, alone.fits[0], public, policy)[0]

        mine = arm(None, 0.0)
        first += mine
        if answered.rows is not None and answered.status == "ok":
            assisted += arm(answered.rows, answered.flops)
            placebo += arm(shuffle_rows(answered.rows, task.name, seed), answered.flops)
    own = replace(baseline, first=first)
    if not assisted:
        return own, arms_of(task, own, answered, config)
    return own, _arms(answered, assisted, placebo)


def _arms(answered: Answered, assisted: Sequence[ArmResult], placebo: Sequence[ArmResult]) -> MethodArms:
    return MethodArms(
        answered.status,
        answered.reason,
        answered.target_flops,
        answered.own_flops,
        answered.unseen_flops,
        list(assisted),
        list(placebo),
    )
