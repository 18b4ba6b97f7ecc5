"""Results too good to be true are put aside for a person: a tripwire behind everything else, not a limit.

An answer cannot hold more than its instances' worth of computing. One that was charged less than a FLOP for each number
it returns has computed nothing: at most it handed on what the question says, which the executor knows. So where such an
answer explains much more than the baseline does, something told it the truth.
"""

import numpy as np

from stages.contracts.arms import Answered, ArmResult, Baseline, MethodArms
from stages.tasks.storage import Task

__all__ = ["MAX_FREE_GAIN", "too_good"]

MAX_FREE_GAIN = 0.1
"""Share of the truth's variance: larger than what cross-validation picks up by luck on 120 instances."""


def too_good(task: Task, baseline: Baseline, arms: MethodArms, answered: Answered) -> str:
    """Why a result is void for review; empty: it is not."""
    if answered.rows is None or not any(result.used_answer for result in arms.assisted):
        return ""
    numbers = answered.rows.size / len(answered.rows)
    if answered.flops >= numbers:
        return ""
    gain = _mean(task, arms.assisted) - _mean(task, baseline.first)
    if gain <= MAX_FREE_GAIN:
        return ""
    return (
        f"an answer of {numbers:g} numbers an instance that cost {answered.flops:g} FLOPs explains {gain:.2f} more of"
        " the truth than the baseline: that is above what can be had for nothing, so look at the method"
    )


def _mean(task: Task, results: list[ArmResult]) -> float:
    truth = task.truth.values.numpy()
    return float(np.mean([float(task.family.score(one.predictions, truth[one.index])[0]) for one in results]))
