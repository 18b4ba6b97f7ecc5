"""A method's null: its reward on a twin of each target, the same architecture with the weights it had before training.

There is nothing learned in a twin that an interpretation could find. What a method earns there it earns by other means:
by computing on the inputs, by what the question tells, by luck. So its reward on the trained target means little unless
it is above this one (the sanity check of Adebayo et al. 2018, "Sanity Checks for Saliency Maps", section 3, made a
number).
"""

from collections.abc import Sequence

import torch
from joblib import Parallel, delayed

from stages.contracts.score_result import NullRow
from stages.contracts.target import Target
from stages.errors import MethodError
from stages.execution.answering import asked_of
from stages.execution.runs import arms_of, baseline_of
from stages.reward.judging import judge, noise_floor
from stages.reward.resampling import interval
from stages.scoring.cached import INFRA, cached_target, cached_task
from stages.scoring.candidate import Candidate, Host
from stages.scoring.evaluate import TaskName
from stages.scoring.settings import Settings
from stages.targets.storage import TWIN
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.storage import Task

__all__ = ["null_rows"]

N_INSTANCES = 120


def null_rows(
    candidate: Candidate, host: Host, tasks: Sequence[TaskName], chosen: Settings, pool: Parallel
) -> tuple[NullRow, ...]:
    """The method's reward on the twin of each task's target, one seed each; a task that a twin cannot pose says why."""
    return tuple(pool(delayed(_null)(candidate, host, task, chosen) for task in tasks))


def _null(candidate: Candidate, host: Host, name: TaskName, chosen: Settings) -> NullRow:
    torch.set_num_threads(1)
    family, twin = cached_task(*name).family, cached_target(f"{name[1]}{TWIN}")
    row = NullRow(task=f"{name[0]}.{name[1]}", outcome="ok")
    try:
        task = _posed(cached_task(*name), twin)
    except (RuntimeError, ValueError) as error:
        return row.model_copy(update={"outcome": "declined", "reason": f"the twin poses no {family.name}: {error}"})
    try:
        frozen = host.freeze(candidate, [twin.name], {twin.name: [asked_of(task)]})[twin.name]
        answered = host.ask(candidate, frozen, task, twin)
        if answered.status != "ok":
            return row.model_copy(update={"outcome": answered.status, "reason": answered.reason})
        config = chosen.execution.model_copy(update={"n_seeds": 1})
        baseline = baseline_of(task, twin, config)
        judged = judge(task, baseline, arms_of(task, baseline, answered, config, placebo=False), chosen.reward)
    except MethodError as error:
        return row.model_copy(update={"outcome": "failed", "reason": error.cause})
    except INFRA as error:
        return row.model_copy(update={"outcome": "infra", "reason": str(error)})
    point, low, high = interval(judged.reward)
    numbers = {"reward": point, "reward_low": low, "reward_high": high, "noise_floor": noise_floor(judged.aa_reward)}
    return row.model_copy(update={key: round(float(value), 6) for key, value in numbers.items()})


def _posed(like: Task, twin: Target) -> Task:
    """The same family about the twin."""
    n = min(N_INSTANCES, like.instances.n)
    made = make(like.family, twin, like.split, n, 0, "null", read_secret())
    if float(made.truth.values.std()) < 1e-6:
        raise ValueError("its truth does not vary")
    return Task(like.family, twin.name, like.split, made.instances.public(), made.truth)
