"""One method on many tasks: interpret, freeze, ask, run the arms, judge.

A spec is settings of our own code and runs in this process; source runs in the sandbox, where CPU time is a meter too.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from stages.base import paths
from stages.contracts.method import Interpretation, Method
from stages.contracts.target import Target
from stages.errors import MethodError
from stages.execution.answering import Answered, ask_in_process
from stages.execution.results import MethodArms, save_arms
from stages.execution.runs import arms_of
from stages.interpretation.artifact import pack, unpack
from stages.interpretation.loading import built_in
from stages.interpretation.stage import Config as InterpretationConfig
from stages.interpretation.stage import interpret
from stages.metering.cpu_time import Calibration, calibrate
from stages.reward.judging import Judged, judge
from stages.reward.settings import RewardConfig
from stages.scoring.composed import Composed, Spec
from stages.scoring.isolated import (
    Frozen,
    Outcome,
    answer_apart,
    interpret_apart,
)
from stages.scoring.proposals import Proposal, Source
from stages.scoring.settings import (
    Settings,
    cached_baseline,
    cached_target,
    cached_task,
)
from stages.tasks.storage import Task

__all__ = ["Trial", "ask_source", "freeze_spec", "judge_arms", "method_of", "run_trial"]

TIMEOUT_S = 120.0
"""Wall limit of one call of a method in the sandbox."""
RANK: dict[str, int] = {"ok": 0, "declined": 0, "failed": 1, "infra": 2, "void": 3}
"""Of several outcomes of one method the last of these is the method's."""


@dataclass(frozen=True)
class Trial:
    """What came of a proposal, before judging."""

    status: Outcome
    """ok, failed, void or infra."""
    reason: str
    n_bytes: int
    arms: Mapping[str, MethodArms]
    """By task name."""
    meters: list[dict[str, Any]] = field(default_factory=list)
    """FLOPs of each task by layer, where it ran in the sandbox. (c) varies from run to run: for MLflow alone."""


def method_of(spec: Spec | str, name: str) -> Method:
    """A composed method from a spec, or a built-in one by name."""
    return built_in(spec) if isinstance(spec, str) else Composed(spec, name)


def freeze_spec(spec: Spec | str, name: str, target: str, config: InterpretationConfig) -> tuple[bytes, bytes]:
    """I(M) on one target as bytes: what leaves the free phase is data only."""
    made = interpret(method_of(spec, name), name, cached_target(target), config)
    return pack(made, name, f"interpret on {target}", config.max_bytes)


def _arms(
    spec: Spec | str, name: str, made: tuple[bytes, bytes], family: str, target: str, settings: Settings
) -> tuple[Outcome, MethodArms, dict[str, Any]]:
    interpretation: Interpretation = unpack(*made)
    task = cached_task(family, target)
    answered = ask_in_process(method_of(spec, name), name, interpretation, task, cached_target(target))
    return answered.status, _of(answered, family, target, settings), {}


def _arms_apart(
    file: Path, name: str, frozen: Frozen, family: str, target: str, settings: Settings, rates: Calibration
) -> tuple[Outcome, MethodArms, dict[str, Any]]:
    task, model = cached_task(family, target), cached_target(target)
    apart = answer_apart(file, name, frozen, task, model, TIMEOUT_S, False, rates)
    return apart.outcome, _of(apart.answered, family, target, settings), apart.facts


def ask_source(source: Source, name: str, task: Task, target: Target, settings: Settings) -> Answered:
    """One answer of a method given as source, from file to rows, in the sandbox."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "method.py"
        file.write_text(source.text, encoding="utf-8")
        try:
            frozen = interpret_apart(file, name, [task.target_name], settings, TIMEOUT_S, False)[task.target_name]
        except MethodError as error:
            return Answered("failed", None, 0.0, 0.0, str(error))
        return answer_apart(file, name, frozen, task, target, TIMEOUT_S, False, calibrate()).answered


def _of(answered: Answered, family: str, target: str, settings: Settings) -> MethodArms:
    task = cached_task(family, target)
    return arms_of(task, cached_baseline(paths.execution_dir("baseline"), task.name), answered, settings.execution)


def run_trial(
    proposal: Proposal, name: str, tasks: Sequence[tuple[str, str]], settings: Settings, pool: Parallel, folder: Path
) -> Trial:
    """All arms of a proposal on all tasks, over the pool's processes; arms are saved under ``folder``."""
    targets = sorted({target for _, target in tasks})
    folder.mkdir(parents=True, exist_ok=True)
    status: Outcome
    try:
        if isinstance(proposal, Source):
            file = folder / "method.py"
            file.write_text(proposal.text, encoding="utf-8")
            apart = interpret_apart(file, name, targets, settings, TIMEOUT_S, False)
            n_bytes = sum(frozen.n_bytes for frozen in apart.values())
            rates = calibrate()
            found = pool(
                delayed(_arms_apart)(file, name, apart[target], family, target, settings, rates)
                for family, target in tasks
            )
        else:
            frozen = pool(delayed(freeze_spec)(proposal, name, target, settings.interpretation) for target in targets)
            made = dict(zip(targets, frozen, strict=True))
            n_bytes = sum(len(a) + len(b) for a, b in made.values())
            found = pool(
                delayed(_arms)(proposal, name, made[target], family, target, settings) for family, target in tasks
            )
    except MethodError as error:
        failed = Answered("failed", None, 0.0, 0.0, "interpret failed")
        n_bytes, found = 0, [("failed", _of(failed, *task, settings), {}) for task in tasks]
        status, reason = "failed", str(error)
    else:
        worst = max(range(len(tasks)), key=lambda i: (RANK[found[i][0]], -i))
        status = found[worst][0] if RANK[found[worst][0]] else "ok"
        reason = "" if status == "ok" else f"{'.'.join(tasks[worst])}: {found[worst][1].reason}"
    arms = {f"{family}.{target}": of for (family, target), (_, of, _) in zip(tasks, found, strict=True)}
    for task_name, of_task in arms.items():
        save_arms(of_task, folder, task_name)
    return Trial(status, reason, n_bytes, arms, [facts for _, _, facts in found if facts])


def judge_arms(arms: Mapping[str, MethodArms], tasks: Sequence[tuple[str, str]], config: RewardConfig) -> list[Judged]:
    """Judged arms, in the order of ``tasks``."""
    judged = []
    for family, target in tasks:
        task = cached_task(family, target)
        judged.append(judge(task, cached_baseline(paths.execution_dir("baseline"), task.name), arms[task.name], config))
    return judged
