"""Is one method better than another? The three sentences about the difference of their rewards, task by task.

The two share instances, splits and black-box draws, so what they have in common cancels: far smaller differences are
seen than two intervals side by side suggest. What was judged is read again from its arms; the sealed test keeps none,
so there the error is the largest that it can be.
"""

from collections.abc import Sequence

from stages.base import paths
from stages.base.params import load
from stages.contracts.reward_rows import TEST_PER_TASK, StatementRow, TaskRow
from stages.errors import UserError
from stages.execution.results import load_arms, load_baseline
from stages.reward.judging import Judged, judge, task_row
from stages.reward.settings import Config, RewardConfig
from stages.reward.statements import Effect, above_zero, difference, stated
from stages.tasks.storage import Split, Task, list_tasks, load_task

__all__ = ["against", "judged_arms", "over_built_in", "paired"]


def against(rival: str, split: Split) -> tuple[StatementRow, ...]:
    """What may be said of every other method beside ``rival``, corrected for their number.

    Args:
        rival: a method of the leaderboard.
        split: train, validation or test.

    Raises:
        UserError: no such method, or what it takes has not been computed.
    """
    effects = _of_test(rival) if split == "test" else _of_arms(rival, split)
    return stated(effects, split)


def over_built_in(method: str, judged: Sequence[Judged], rival: str, split: str) -> tuple[StatementRow, ...]:
    """What may be said of a method that was judged just now beside a built-in one, on the same tasks.

    Raises:
        UserError: no such method, or what it takes has not been computed.
    """
    config = load("reward", Config)
    if rival not in config.methods:
        raise _unknown(rival, config.methods)
    return stated([paired(method, one, rival, judged_arms(one.task, rival, config)) for one in judged], split)


def _of_arms(rival: str, split: Split) -> list[Effect]:
    config = load("reward", Config)
    if rival not in config.methods:
        raise _unknown(rival, config.methods)
    effects: list[Effect] = []
    for task in (load_task(*one) for one in list_tasks(split)):
        other = judged_arms(task, rival, config)
        for method in config.methods:
            if method != rival:
                effects.append(paired(method, judged_arms(task, method, config), rival, other))
    return effects


def judged_arms(task: Task, method: str, config: RewardConfig) -> Judged:
    """A built-in method on one task, judged again from the arms that were kept."""
    baseline = load_baseline(paths.execution_dir("baseline"), task.name)
    return judge(task, baseline, load_arms(paths.execution_dir(method), task.name), config)


def paired(method: str, judged: Judged, rival: str, other: Judged) -> Effect:
    """How far a method is above its rival on one task, from draws that both share."""
    draws = judged.reward - other.reward
    rows = task_row(method, judged), task_row(rival, other)
    return difference(*rows, judged.estimate(draws), above_zero(draws[0]))


def _of_test(rival: str) -> list[Effect]:
    rows = {(row.method, row.task): row for row in TEST_PER_TASK.load()}
    methods = sorted({method for method, _ in rows})
    if rival not in methods:
        raise _unknown(rival, methods)
    pairs: list[tuple[TaskRow, TaskRow]] = [
        (row, rows[rival, task]) for (method, task), row in rows.items() if method != rival
    ]
    return [difference(row, other) for row, other in pairs]


def _unknown(rival: str, known: Sequence[str]) -> UserError:
    return UserError(f"no method {rival!r} is on this leaderboard: use {', '.join(known)}")
