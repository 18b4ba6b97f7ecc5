"""A method's null: its reward on a twin of each target, the same architecture with the weights it had before training.

There is nothing learned in a twin that an interpretation could find. What a method earns there it earns by other means:
by computing on the weights and the inputs as they are, by what the question tells, by luck. So its reward on the
trained target means little unless it is above this one (the sanity check of Adebayo et al. 2018, "Sanity Checks for
Saliency Maps", section 3, made a number). A twin has the dictionaries of the trained target: none is trained on it.

Stage ``twins`` has it for the built-in methods and the campaign's best; `lensmith score --null` for a user's own.
"""

import pickle
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from joblib import Parallel, delayed

from stages.base.processes import process_pool
from stages.contracts.measurement_rows import NULL, NullRow
from stages.contracts.reward_rows import LeaderboardRow
from stages.contracts.target import TWIN
from stages.errors import MethodError
from stages.execution.answering import asked_of
from stages.execution.runs import arms_of, baseline_of
from stages.reward.judging import Judged, judge, leaderboard_row
from stages.reward.statements import noise_floor
from stages.scoring.cached import INFRA, cached_target, cached_task, jobs
from stages.scoring.candidate import Candidate, Frozen, Host
from stages.scoring.evaluate import TaskName
from stages.scoring.in_process import InProcess
from stages.scoring.proposals import contenders
from stages.scoring.settings import Settings, settings
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.storage import Task, dearest_first, list_tasks

__all__ = ["main", "null_rows", "run"]

N_INSTANCES = 120


def null_rows(
    candidates: Sequence[Candidate],
    host: Host,
    splits: Mapping[str, Sequence[TaskName]],
    chosen: Settings,
    pool: Parallel,
) -> tuple[NullRow, ...]:
    """Rewards on the twin of each task's target, one seed each, and over the tasks of each split (task "all").

    A method that declines gets the baseline, as on the leaderboard. A task that the twin cannot pose says why, and is
    not in the mean.
    """
    tasks = dearest_first(task for split in splits.values() for task in split)
    done = pool(delayed(_on_task)(candidates, host, task, chosen) for task in tasks)
    flat = [one for of_task in done for one in of_task]
    rows = [row for row, _ in flat]
    for split in splits:
        for one in candidates:
            judged = [of for row, of in flat if (row.method, row.split) == (one.name, split) and of is not None]
            if judged:
                rows.append(_over_all(leaderboard_row(one.name, split, judged)))
    return tuple(sorted(rows, key=lambda row: (row.task != "all", row.split, row.task, row.method)))


def _over_all(row: LeaderboardRow) -> NullRow:
    same = row.model_dump(include={"method", "split", "reward_low", "reward_high", "noise_floor", "n_tasks"})
    return NullRow(task="all", outcome=row.status, reward=row.reward_mean, **same)


def _on_task(
    candidates: Sequence[Candidate], host: Host, name: TaskName, chosen: Settings
) -> list[tuple[NullRow, Judged | None]]:
    """All methods on one task: the question is posed once, and the baseline computed once."""
    torch.set_num_threads(1)
    known, twin = cached_task(*name), cached_target(f"{name[1]}{TWIN}")
    row = NullRow(method="", split=known.split, task=known.name, outcome="declined")
    try:
        task = _posed(known, twin.name)
    except (RuntimeError, ValueError) as error:
        why = f"the twin poses no {known.family.name}: {error}"
        return [(row.model_copy(update={"method": one.name, "reason": why}), None) for one in candidates]
    config = chosen.execution.model_copy(update={"n_seeds": 1})
    baseline = baseline_of(task, twin, config)
    found: list[tuple[NullRow, Judged | None]] = []
    for one in candidates:
        judged, outcome, reason = None, "ok", ""
        try:
            frozen = _frozen(host, one, task, twin.name)
            answered = host.ask(one, frozen, task, twin)
            outcome, reason = answered.status, answered.reason
            if outcome not in {"void", "infra"}:
                judged = judge(task, baseline, arms_of(task, baseline, answered, config, placebo=False), chosen.reward)
        except MethodError as error:
            outcome, reason = "failed", error.cause
        except INFRA as error:
            outcome, reason = "infra", str(error)
        said = {"method": one.name, "outcome": outcome, "reason": reason}
        found.append((row.model_copy(update=said | (_numbers(judged) if judged else {})), judged))
    return found


def _frozen(host: Host, one: Candidate, task: Task, twin: str) -> Frozen:
    """I(M) on a twin. Reviewed code is the same for every task: a worker computes it once."""
    if not isinstance(host, InProcess) or not one.reviewed:
        return host.freeze(one, [twin], {twin: [asked_of(task)]})[twin]
    try:
        return _frozen_once(host, one.name, pickle.dumps(one.what), twin)
    except (pickle.PicklingError, AttributeError, TypeError):  # a class of a notebook
        return host.freeze_one(one, twin)


@lru_cache(maxsize=64)
def _frozen_once(host: InProcess, name: str, method: bytes, twin: str) -> Frozen:
    return host.freeze_one(Candidate(name, pickle.loads(method)), twin)  # pickled above, in this process


def _numbers(judged: Judged) -> dict[str, float]:
    found = judged.estimate(judged.reward)
    low, high = found.interval()
    floor = noise_floor(judged.aa_reward)
    numbers = {"reward": found.value, "reward_low": low, "reward_high": high, "noise_floor": floor}
    return {key: round(float(value), 6) + 0.0 for key, value in numbers.items()}


def _posed(like: Task, twin: str) -> Task:
    """The same family about the twin."""
    n = min(N_INSTANCES, like.instances.n)
    made = make(like.family, cached_target(twin), like.split, n, 0, "null", read_secret())
    if float(made.truth.values.std()) < 1e-6:
        raise ValueError("its truth does not vary")
    return Task(like.family, twin, like.split, made.instances.public(), made.truth)


def run() -> tuple[NullRow, ...]:
    """Stage ``twins``: rows of metrics/null.json, of every built-in method and of the campaign's best."""
    chosen = settings()
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    with process_pool(jobs()) as pool:
        rows = null_rows(contenders(), InProcess(chosen.interpretation), splits, chosen, pool)
    NULL.save(rows)
    return rows


def main() -> None:
    for row in run():
        if row.task == "all":
            print(
                f"{row.method}: {row.reward:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}] on untrained twins,"
                f" {row.n_tasks} {row.split} tasks",
                flush=True,
            )
