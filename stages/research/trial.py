"""One method on many tasks: interpret, freeze, ask, run the arms, judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from joblib import Parallel, delayed

from stages import paths
from stages.errors import MethodError
from stages.execution import (
    Answered,
    ExecutorConfig,
    MethodArms,
    arms_of,
    ask_in_process,
    load_baseline,
    save_arms,
)
from stages.execution.results import Baseline
from stages.interpretation import Interpretation, Method, built_in
from stages.interpretation.artifact import pack, unpack
from stages.interpretation.composed import Composed, Spec
from stages.interpretation.stage import Config as InterpretationConfig
from stages.interpretation.stage import interpret
from stages.reward import Judged, RewardConfig, judge
from stages.targets import Target, load_target
from stages.tasks import Task, load_task

__all__ = ["Settings", "Trial", "freeze_spec", "judge_arms", "method_of", "run_trial"]


@dataclass(frozen=True)
class Settings:
    """The configurations of the stages a trial goes through."""

    interpretation: InterpretationConfig
    execution: ExecutorConfig
    reward: RewardConfig


@dataclass(frozen=True)
class Trial:
    """What came of a proposal, before judging."""

    status: str
    reason: str
    n_bytes: int
    arms: Mapping[str, MethodArms]
    """By task name."""


@lru_cache(maxsize=4)
def cached_target(name: str) -> Target:
    return load_target(name)


@lru_cache(maxsize=32)
def cached_task(family: str, target: str) -> Task:
    return load_task(family, target)


@lru_cache(maxsize=32)
def _cached_baseline(folder: Path, task: str) -> Baseline:
    return load_baseline(folder, task)


def method_of(spec: Spec | str, name: str) -> Method:
    """A composed method from a spec, or a built-in one by name."""
    return built_in(spec) if isinstance(spec, str) else Composed(spec, name)


def freeze_spec(spec: Spec | str, name: str, target: str, config: InterpretationConfig) -> tuple[bytes, bytes]:
    """I(M) on one target as bytes: what leaves the free phase is data only."""
    made = interpret(method_of(spec, name), name, cached_target(target), config)
    return pack(made, name, f"interpret on {target}", config.max_bytes)


def _arms(
    spec: Spec | str, name: str, made: tuple[bytes, bytes] | None, family: str, target: str, settings: Settings
) -> tuple[str, MethodArms]:
    task = cached_task(family, target)
    baseline = _cached_baseline(paths.execution_dir("baseline"), task.name)
    if made is None:
        answered = Answered("failed", None, 0.0, 0.0, "interpret failed")
    else:
        interpretation: Interpretation = unpack(*made)
        answered = ask_in_process(method_of(spec, name), name, interpretation, task, cached_target(target))
    return task.name, arms_of(task, baseline, answered, settings.execution)


def run_trial(
    spec: Spec | str, name: str, tasks: Sequence[tuple[str, str]], settings: Settings, pool: Parallel, folder: Path
) -> Trial:
    """All arms of a proposal on all tasks, over the pool's processes; arms are saved under ``folder``."""
    targets = sorted({target for _, target in tasks})
    made: dict[str, tuple[bytes, bytes]] = {}
    status, reason = "ok", ""
    try:
        frozen = pool(delayed(freeze_spec)(spec, name, target, settings.interpretation) for target in targets)
        made = dict(zip(targets, frozen, strict=True))
    except MethodError as error:
        status, reason = "failed", str(error)
    arms = dict(
        pool(delayed(_arms)(spec, name, made.get(target), family, target, settings) for family, target in tasks)
    )
    for task_name, of_task in arms.items():
        save_arms(of_task, folder, task_name)
        if of_task.status == "failed" and status == "ok":
            status, reason = "failed", f"{task_name}: {of_task.reason}"
    return Trial(status, reason, sum(len(a) + len(b) for a, b in made.values()), arms)


def judge_arms(arms: Mapping[str, MethodArms], tasks: Sequence[tuple[str, str]], config: RewardConfig) -> list[Judged]:
    """Judged arms, in the order of ``tasks``."""
    judged = []
    for family, target in tasks:
        task = cached_task(family, target)
        judged.append(
            judge(task, _cached_baseline(paths.execution_dir("baseline"), task.name), arms[task.name], config)
        )
    return judged
