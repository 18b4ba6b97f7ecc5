"""Whole arms of whole tasks: the baseline once, then a method's assisted and placebo arms against it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from threadpoolctl import threadpool_limits

from stages.contracts.target import Target
from stages.execution.answering import Answered
from stages.execution.arms import ArmResult, climb, deal_out, solve
from stages.execution.results import Baseline, MethodArms
from stages.execution.settings import ExecutorConfig
from stages.tasks.storage import Task

__all__ = ["arms_of", "baseline_of"]


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread in torch, BLAS and OpenMP: small models want many processes. Set once per arm, since it takes longer
    than fitting a ridge regression."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield


def baseline_of(task: Task, target: Target, config: ExecutorConfig) -> Baseline:
    """The baseline arm, twice: only the second one's black-box draws differ."""
    with one_thread():
        return _baseline_of(task, target, config)


def _baseline_of(task: Task, target: Target, config: ExecutorConfig) -> Baseline:
    first: list[ArmResult] = []
    second: list[ArmResult] = []
    all_rungs, all_fits = [], []
    for seed in range(config.n_seeds):
        # The features are stored in float32; what every later arm reads back must be what this arm used.
        rungs = [replace(r, features=r.features.astype("f4").astype("f8")) for r in climb(task, target, seed, 0)]
        results, fits = solve(task, rungs, None, 0.0, seed, config)
        again, _ = solve(task, climb(task, target, seed, 1), None, 0.0, seed, config)
        first += results
        second += again
        all_rungs.append(rungs)
        all_fits.append(fits)
    return Baseline(first, second, all_rungs, all_fits)


def arms_of(
    task: Task, baseline: Baseline, answered: Answered, config: ExecutorConfig, *, placebo: bool = True
) -> MethodArms:
    """Assisted and placebo arms, from what a method answered.

    A method that declines gets the baseline. One that fails gets the baseline's predictions and pays for what it used.
    Without ``placebo`` that arm is the baseline as well, in half the time.
    """
    with one_thread():
        return _arms_of(task, baseline, answered, config, placebo)


def _arms_of(
    task: Task, baseline: Baseline, answered: Answered, config: ExecutorConfig, with_placebo: bool
) -> MethodArms:
    rows = answered.rows
    if answered.status != "ok" or rows is None:
        spent = answered.flops if answered.status == "failed" else 0.0
        arm = [replace(result, flops=result.flops + spent) for result in baseline.first]
        return _arms(answered, arm, arm)
    assisted: list[ArmResult] = []
    placebo: list[ArmResult] = []
    for seed in range(config.n_seeds):
        for results, answer in ((assisted, rows), (placebo, deal_out(rows, task.name, seed))):
            if results is placebo and not with_placebo:
                results += [result for result in baseline.first if result.seed == seed]
                continue
            results += solve(task, baseline.rungs[seed], answer, answered.flops, seed, config, baseline.fits[seed])[0]
    return _arms(answered, assisted, placebo)


def _arms(answered: Answered, assisted: Sequence[ArmResult], placebo: Sequence[ArmResult]) -> MethodArms:
    return MethodArms(
        answered.status, answered.reason, answered.target_flops, answered.own_flops, list(assisted), list(placebo)
    )
