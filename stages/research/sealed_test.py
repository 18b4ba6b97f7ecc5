"""The sealed test split: scored once a campaign, for the best method found, every built-in one and every control.

Each opening of the seal is an event of the journal.
"""

from collections.abc import Sequence
from functools import cache, partial

from joblib import delayed

from stages.base.processes import process_pool
from stages.contracts.arms import Answered, Baseline, MethodArms
from stages.contracts.journal import Ended, Result, TestOpened, TestResult
from stages.contracts.reward_rows import TestRow
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


def best_found(campaign: Campaign) -> Result | None:
    """I*: the incumbent, else the proposal with the best feedback (marked as not accepted); None where all failed."""
    incumbent = campaign.incumbent()
    if incumbent is not None:
        return incumbent
    fine = [result for result in campaign.journal.of(Result) if result.status == "ok"]
    return max(fine, key=lambda result: (result.feedback or 0.0, result.objective or 0.0), default=None)


@cache
def _baseline(name: str, settings: Settings) -> Baseline:
    """The baseline arm of a test task: no stage writes it. Workers find it in the store."""
    family, _, target = name.partition(".")
    return baseline_of(cached_task(family, target), cached_target(target), settings.execution)


class _Truth:
    """The host of the control that is given the truth."""

    def freeze(self, candidate: Candidate, targets: list[str]) -> dict[str, Frozen]:
        return dict.fromkeys(targets, Frozen(b"", b""))

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        return oracle(task)


def score_test_split(
    campaign: Campaign, methods: Sequence[str], tasks: Sequence[TaskName], settings: Settings
) -> TestResult:
    """Rows of the test split, computed once and written into the journal."""
    done = campaign.journal.first(TestResult)
    if done is not None:
        return done
    star = best_found(campaign)
    contenders = {name: Candidate(name, name) for name in (*methods, ORACLE)}
    if star is not None:
        contenders[star.name] = candidate_of(from_json(star.spec), star.name)
    # An opening that was cut short goes on with the same contenders; other contenders are a second opening.
    asked = TestOpened(methods=tuple(sorted(contenders)), found=None if star is None else shown(star.spec))
    opened = campaign.journal.of(TestOpened)
    if not opened or (opened[-1].methods, opened[-1].found) != (asked.methods, asked.found):
        campaign.journal.append(asked)
    campaign.progress(f"scoring {len(contenders)} methods on the sealed test split, {len(tasks)} tasks")
    names, targets = [f"{family}.{target}" for family, target in tasks], sorted({target for _, target in tasks})
    arms: dict[str, dict[str, MethodArms]] = {}
    ended: dict[str, Ended] = {}
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
                baseline=partial(_baseline, settings=settings),
            )
            if found.scored:
                arms[name] = found.arms
            else:
                ended[name] = Ended(status=found.outcome, reason=found.reason)
                campaign.progress(f"{name} is {found.outcome} on the test split: {found.reason}")
    rows, per_task = [], []
    openings = len(campaign.journal.of(TestOpened))
    for name, of_method in arms.items():
        judged = [
            judge(cached_task(*task), _baseline(task_name, settings), of_method[task_name], settings.reward)
            for task_name, task in zip(names, tasks, strict=True)
        ]
        row = leaderboard_row(name, "test", judged, settings.reward.seed)
        rows.append(TestRow(**dict(row), opening=openings, found=star is not None and name == star.name).voided())
        per_task += [task_row(name, j) for j in judged]
    rows.sort(key=lambda row: (-row.reward_mean, row.method))
    return campaign.journal.append(TestResult(rows=tuple(rows), per_task=tuple(per_task), unscored=ended))
