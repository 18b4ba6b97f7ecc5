"""A task family in one file of the user's own: audited like ours, and methods scored on it.

The file runs in this process with the user's rights, as their family would in the graph. A method's file still runs in
the sandbox.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from stages.base.params import load, names
from stages.base.text import safe_name
from stages.contracts.family_file import blamed, family_from_file
from stages.contracts.outcomes import SCORELESS
from stages.contracts.reward_rows import TaskRow
from stages.contracts.target import Target
from stages.contracts.task import TaskFamily
from stages.errors import InfraError, UserError
from stages.execution.answering import asked_of
from stages.execution.runs import arms_of, baseline_of
from stages.reward.judging import judge, task_row
from stages.scoring.candidate import Candidate, Source
from stages.scoring.isolated import Isolated
from stages.scoring.settings import settings
from stages.targets.storage import load_target
from stages.tasks.families import FAMILIES
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.stage import LEAST, Config
from stages.tasks.storage import Split, Task
from stages.tools.audit import AuditRow, audit_family

__all__ = ["audit_file", "score_on_file"]

SPLIT: Split = "train"
"""Whose images instances are drawn from."""


def audit_file(
    path: Path, target: str | None = None, share: float = 1.0, methods: Sequence[str] | None = None
) -> AuditRow:
    """The audit's row of the family in a file.

    Args:
        target: name of a target; None: the one that the file names with ``TARGET``.
        share: of the instances that the stage would make.
        methods: built-in methods to try; None: all of params/reward.yaml.

    Raises:
        UserError: something is wrong with the file, which is named with its line, or there is no such target.
    """
    made, frozen, n, config = _opened(path, target, share)
    tried = names("reward", "methods") if methods is None else tuple(methods)
    with blamed(path.resolve()):
        return audit_family(made, frozen, SPLIT, n, config.seed, tried)


def score_on_file(
    method: Path,
    path: Path,
    target: str | None = None,
    timeout_s: float = 120.0,
    trust: bool = False,
    progress: Callable[[str], None] = print,
) -> TaskRow:
    """One method's row on the family in a file.

    Args:
        method: file of the method; it runs in the sandbox.
        target: name of a target; None: the one that the file names with ``TARGET``.
        timeout_s: wall limit of one call of the method.
        trust: run the method without the sandbox.

    Raises:
        UserError: something is wrong with the family's file, which is named with its line, or there is no such target.
        MethodError: the method's file does not import, or interpret fails.
        InfraError: the machinery failed: there is no score.
    """
    made, frozen, n, config = _opened(path, target, 1.0)
    chosen, candidate = settings(), Candidate(safe_name(method.stem), Source.of(method))
    with blamed(path.resolve()):
        progress(f"{n} instances of {made.name} on {frozen.name}, and their truth")
        result = make(made, frozen, SPLIT, n, config.seed, "own", read_secret())
        task = Task(made, frozen.name, SPLIT, result.instances.public(), result.truth)
        progress("the black box")
        baseline = baseline_of(task, frozen, chosen.execution)
        progress(f"{candidate.name}: interpret, answer")
        host = Isolated(chosen.interpretation, timeout_s, trust)
        known = host.freeze(candidate, [frozen.name], {frozen.name: [asked_of(task)]})
        answered = host.ask(candidate, known[frozen.name], task, frozen)
        if answered.status in SCORELESS:
            raise InfraError(f"no score: {answered.reason}; run it again")
        arms = arms_of(task, baseline, answered, chosen.execution)
        return task_row(candidate.name, judge(task, baseline, arms, chosen.reward))


def _opened(path: Path, target: str | None, share: float) -> tuple[TaskFamily, Target, int, Config]:
    """The family, its target, and how many instances."""
    if not 0 < share <= 1:
        raise UserError(f"share = {share}: use a number above 0 and at most 1")
    own, config = family_from_file(path), load("tasks", Config)
    if own.family.name in FAMILIES:
        raise UserError(f"{path.name}: {own.family.name} is a family of ours: give the file another name")
    chosen = target or own.target
    if not chosen:
        raise UserError(f'{path.name} names no target: add `TARGET = "digits_mlp"` to it, or give --target')
    torch.set_num_threads(1)
    frozen = load_target(chosen)
    return own.family, frozen, max(LEAST, round(share * config.n_instances * own.family.share_on(frozen.spec))), config
