"""The sealed test split: scored once a campaign, for the best method found, every built-in one and every control.

Each opening of the seal is an event of the journal.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

from joblib import delayed

from stages.base.processes import process_pool
from stages.contracts.arms import Answered, Baseline, MethodArms
from stages.contracts.target import Target
from stages.execution.runs import baseline_of
from stages.execution.stage import oracle
from stages.research.campaign import Campaign
from stages.reward.judging import judge, leaderboard_row, task_row
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.evaluate import Evaluation, TaskName, evaluate
from stages.scoring.judge import host_of
from stages.scoring.proposals import candidate_of, from_json, shown
from stages.scoring.settings import Settings
from stages.scoring.stage import stage_frozen
from stages.tasks.storage import Task

__all__ = ["best_found", "score_test_split"]

ORACLE = "oracle"


def best_found(campaign: Campaign) -> dict[str, Any] | None:
    """I*: the incumbent, else the proposal with the best feedback (marked as not accepted); None where all failed."""
    incumbent = campaign.incumbent()
    if incumbent is not None:
        return incumbent
    fine = campaign.journal.of("result", status="ok")
    return max(fine, key=lambda result: (result["feedback"], result["objective"]), default=None)


@cache
def _baseline(name: str, settings: Settings) -> Baseline:
    """The baseline arm of a test task: no stage writes it. Workers find it in the store."""
    family, _, target = name.partition(".")
    return baseline_of(cached_task(family, target), cached_target(target), settings.execution)


class _TestBaseline:
    """``_baseline`` with its settings; a class, so that it can be sent to workers."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, name: str) -> Baseline:
        return _baseline(name, self._settings)


class _Truth:
    """The host of the control that is given the truth."""

    def freeze(self, candidate: Candidate, targets: list[str]) -> dict[str, Frozen]:
        return dict.fromkeys(targets, Frozen(b"", b""))

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        return oracle(task)


def score_test_split(
    campaign: Campaign, methods: Sequence[str], tasks: Sequence[TaskName], settings: Settings
) -> dict[str, Any]:
    """Rows of the test split, computed once and written into the journal.

    Returns:
        {"rows": leaderboard rows, "per_task": rows per method and task}.
    """
    done = campaign.journal.first("test_result")
    if done is not None:
        return {"rows": done["rows"], "per_task": done["per_task"]}
    star = best_found(campaign)
    contenders = {name: Candidate(name, name) for name in (*methods, ORACLE)}
    if star is not None:
        contenders[star["name"]] = candidate_of(from_json(star["spec"]), star["name"])
    # An opening that was cut short goes on with the same contenders; other contenders are a second opening.
    asked = {"methods": sorted(contenders), "found": None if star is None else shown(star["spec"])}
    opened = campaign.journal.of("test_opened")
    if not opened or {key: opened[-1].get(key) for key in asked} != asked:
        campaign.journal.append("test_opened", **asked)
    campaign.progress(f"scoring {len(contenders)} methods on the sealed test split, {len(tasks)} tasks")
    names, targets = [f"{family}.{target}" for family, target in tasks], sorted({target for _, target in tasks})
    arms: dict[str, dict[str, MethodArms]] = {}
    ended: dict[str, dict[str, str]] = {}
    with process_pool(campaign.jobs) as pool:
        pool(delayed(_baseline)(name, settings) for name in names)  # into the store, on every core
        for name, candidate in contenders.items():
            frozen = None
            if isinstance(candidate.what, str) and name != ORACLE:
                frozen = stage_frozen(name, targets)
            found: Evaluation[None] = evaluate(
                candidate,
                tasks,
                _Truth() if name == ORACLE else host_of(candidate, settings),
                settings.execution,
                pool=pool,
                frozen=frozen,
                baseline=_TestBaseline(settings),
            )
            if found.scored:
                arms[name] = found.arms
            else:
                ended[name] = {"status": found.outcome, "reason": found.reason}
                campaign.progress(f"{name} is {found.outcome} on the test split: {found.reason}")
    rows, per_task = [], []
    openings = len(campaign.journal.of("test_opened"))
    for name, of_method in arms.items():
        judged = [
            judge(cached_task(*task), _baseline(task_name, settings), of_method[task_name], settings.reward)
            for task_name, task in zip(names, tasks, strict=True)
        ]
        row = leaderboard_row(name, "test", judged, settings.reward.seed)
        if openings > 1:
            row |= {"status": "void", "reason": f"the sealed test split was opened {openings} times in this campaign"}
        rows.append(row | {"opening": openings, "found": star is not None and name == star["name"]})
        per_task += [task_row(name, j) for j in judged]
    rows.sort(key=lambda row: (-row["reward_mean"], row["method"]))
    campaign.journal.append("test_result", rows=rows, per_task=per_task, unscored=ended)
    return {"rows": rows, "per_task": per_task}
