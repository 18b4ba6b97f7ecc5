"""From a method to arms, in one place: freeze I(M), ask each task's query, run the assisted and placebo arms.

Stages, `lensmith score`, campaigns, the sealed test, fresh instances and the red team all come through here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

from joblib import Parallel, delayed

from stages.base import paths
from stages.contracts.arms import Answered, Baseline, MethodArms
from stages.contracts.outcomes import SCORELESS, Outcome, worst
from stages.contracts.target import Target
from stages.errors import MethodError
from stages.execution.answering import Asked, asked_of
from stages.execution.runs import arms_of
from stages.execution.settings import ExecutorConfig
from stages.scoring.cached import INFRA, cached_baseline, cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen, Host
from stages.scoring.review import too_good
from stages.tasks.storage import Task, dearest_first

__all__ = ["Evaluation", "TaskName", "TaskResult", "evaluate", "questions", "stage_baseline"]

TaskName = tuple[str, str]
"""(family, target)."""
ExtraT = TypeVar("ExtraT")


@dataclass(frozen=True)
class TaskResult(Generic[ExtraT]):
    """One method on one task."""

    task: str
    answered: Answered
    arms: MethodArms | None
    """None where there is no score: void or infra."""
    extra: ExtraT | None = None
    """What the caller wanted to know of the answer beside the arms."""


@dataclass(frozen=True)
class Evaluation(Generic[ExtraT]):
    """One method on all tasks."""

    outcome: Outcome
    """The worst over the tasks; ``failed`` on all where interpret failed."""
    reason: str
    layer: str
    results: Sequence[TaskResult[ExtraT]]
    """In the order of the tasks; empty where the machinery failed before there were any."""
    frozen: Mapping[str, Frozen] = field(default_factory=dict)
    error: MethodError | None = None
    """What interpret failed with."""

    @property
    def arms(self) -> dict[str, MethodArms]:
        """By task name; only where every task has arms."""
        return {result.task: result.arms for result in self.results if result.arms is not None}

    @property
    def n_bytes(self) -> int:
        return sum(frozen.n_bytes for frozen in self.frozen.values())

    @property
    def scored(self) -> bool:
        return self.outcome not in SCORELESS


Extra = Callable[[Host, Candidate, Frozen, Answered, Task, Target], ExtraT | None]
"""Called beside the arms, in the worker that has the answer."""


def stage_baseline(task: str) -> Baseline:
    """The baseline arm of a train or validation task, as stage ``baseline`` left it."""
    return cached_baseline(paths.execution_dir("baseline"), task)


def evaluate(
    candidate: Candidate,
    tasks: Sequence[TaskName],
    host: Host,
    config: ExecutorConfig,
    *,
    pool: Parallel | None = None,
    frozen: Mapping[str, Frozen] | None = None,
    baseline: Callable[[str], Baseline] = stage_baseline,
    placebo: bool = True,
    extra: Extra[ExtraT] | None = None,
    review: bool = True,
) -> Evaluation[ExtraT]:
    """Everything one method does, on all tasks. What the method does wrong is in the result; nothing of it is raised.

    Args:
        host: runs the method, in this process or in processes of its own.
        pool: workers for the tasks; None: one after the other, here.
        frozen: I(M) by target where it is known; None: it is computed.
        baseline: the baseline arm by task name.
        placebo: run the placebo arm; without it that arm is the baseline.
        extra: computed from each answer beside the arms.
        review: make a result void that is too good to be true; the oracle's is meant to be.
    """
    names = [f"{family}.{target}" for family, target in tasks]
    if frozen is None:
        try:
            frozen = _freeze(candidate, tasks, host, pool)
        except MethodError as error:
            answered = Answered("failed", None, 0.0, 0.0, "interpret failed", error.layer)
            failed: list[TaskResult[ExtraT]] = [
                TaskResult(name, answered, arms_of(cached_task(*task), baseline(name), answered, config))
                for name, task in zip(names, tasks, strict=True)
            ]
            return Evaluation("failed", str(error), error.layer, failed, {}, error)
        except INFRA as error:
            return Evaluation("infra", _words(error), "infra", [])
    order = tasks if pool is None else dearest_first(tasks)
    jobs = [(candidate, frozen[target], family, target) for family, target in order]
    try:
        if pool is None:
            results = [_on_task(*job, host, config, baseline, placebo, extra, review) for job in jobs]
        else:
            done = pool(delayed(_on_task)(*job, host, config, baseline, placebo, extra, review) for job in jobs)
            by_task = dict(zip(order, done, strict=True))
            results = [by_task[task] for task in tasks]
    except INFRA as error:  # a worker was killed
        return Evaluation("infra", _words(error), "infra", [], frozen)
    outcome = worst(result.answered.status for result in results)
    told = next((result for result in results if result.answered.status == outcome != "ok"), None)
    reason = "" if told is None else f"{told.task}: {told.answered.reason}"
    return Evaluation(outcome, reason, told.answered.layer if told else "", results, frozen)


def questions(tasks: Sequence[TaskName], n_fresh: Callable[[Task], int] | None = None) -> dict[str, list[Asked]]:
    """What is asked on each target, so that a method that is at hand once can record all its answers.

    Args:
        n_fresh: the same questions about as many instances of a task as well.
    """
    found: dict[str, list[Asked]] = {}
    for family, target in tasks:
        task = cached_task(family, target)
        found.setdefault(target, []).append(asked_of(task))
        if n_fresh is not None:
            found[target].append(asked_of(task, n_fresh(task)))
    return found


def _freeze(candidate: Candidate, tasks: Sequence[TaskName], host: Host, pool: Parallel | None) -> Mapping[str, Frozen]:
    targets = sorted({target for _, target in tasks})
    if pool is None or not candidate.reviewed:
        # Unreviewed source: one process for all targets and questions, which ends with it.
        return host.freeze(candidate, targets, None if candidate.reviewed else questions(tasks))
    made = pool(delayed(host.freeze)(candidate, [target]) for target in targets)
    return {target: one[target] for target, one in zip(targets, made, strict=True)}


def _on_task(
    candidate: Candidate,
    frozen: Frozen,
    family: str,
    target: str,
    host: Host,
    config: ExecutorConfig,
    baseline: Callable[[str], Baseline],
    placebo: bool,
    extra: Extra[ExtraT] | None,
    review: bool,
) -> TaskResult[ExtraT]:
    name = f"{family}.{target}"
    try:
        task, model = cached_task(family, target), cached_target(target)
        answered = host.ask(candidate, frozen, task, model)
        if answered.status in SCORELESS:
            return TaskResult(name, answered, None)
        found = None if extra is None else extra(host, candidate, frozen, answered, task, model)
        arms = arms_of(task, baseline(name), answered, config, placebo=placebo)
        said = too_good(task, baseline(name), arms, answered) if review else ""
        if said:
            void = replace(answered, status="void", rows=None, reason=said, layer="review")
            return TaskResult(name, void, None)
        return TaskResult(name, answered, arms, found)
    except INFRA as error:
        return TaskResult(name, Answered("infra", None, 0.0, 0.0, _words(error), "infra"), None)


def _words(error: BaseException) -> str:
    return f"the machinery failed: {type(error).__name__}: {' '.join(str(error).split())}"[:500]
