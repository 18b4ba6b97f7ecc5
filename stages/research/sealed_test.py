"""The sealed test split: opened once a campaign, for I*, every built-in method and every control; each opening is an
event."""

from collections.abc import Sequence

from joblib import delayed

from stages.base import paths
from stages.base.processes import processes
from stages.contracts.journal import Result, TestOpened, TestResult
from stages.contracts.reward_rows import TestRow
from stages.execution.answering import Answered, ask_in_process
from stages.execution.results import Baseline, MethodArms
from stages.execution.runs import arms_of, baseline_of
from stages.interpretation.artifact import load_interpretation, unpack
from stages.research.campaign import Campaign
from stages.reward.judging import judge, leaderboard_row, task_row
from stages.scoring.proposals import (
    Proposal,
    Source,
    from_json,
    shown,
)
from stages.scoring.settings import Settings, cached_target, cached_task
from stages.scoring.trial import ask_source, freeze_spec, method_of

__all__ = ["best_found", "open_test"]

ORACLE = "oracle"


def best_found(campaign: Campaign) -> Result | None:
    """I*: the incumbent, else the proposal with the best feedback (marked as not accepted); None where all failed."""
    incumbent = campaign.incumbent()
    if incumbent is not None:
        return incumbent
    fine = [result for result in campaign.journal.of(Result) if result.status == "ok"]
    return max(fine, key=lambda result: (result.feedback or 0.0, result.objective or 0.0), default=None)


def _baseline(family: str, target: str, settings: Settings) -> Baseline:
    return baseline_of(cached_task(family, target), cached_target(target), settings.execution)


def _arms(
    method: Proposal | str, name: str, baseline: Baseline, family: str, target: str, settings: Settings
) -> MethodArms:
    task, model = cached_task(family, target), cached_target(target)
    if method == ORACLE:
        answered = Answered("ok", task.truth.values.numpy()[..., None], 0.0, 0.0)
    elif isinstance(method, Source):
        answered = ask_source(method, name, task, model, settings)
    else:
        if isinstance(method, str):
            interpretation = load_interpretation(paths.interpretation_dir(method), target)
        else:
            interpretation = unpack(*freeze_spec(method, name, target, settings.interpretation))
        answered = ask_in_process(method_of(method, name), name, interpretation, task, model)
    return arms_of(task, baseline, answered, settings.execution)


def open_test(
    campaign: Campaign, methods: Sequence[str], tasks: Sequence[tuple[str, str]], settings: Settings
) -> TestResult:
    """Rows of the test split, computed once and written into the journal."""
    done = campaign.journal.first(TestResult)
    if done is not None:
        return done
    star = best_found(campaign)
    contenders: dict[str, Proposal | str] = {name: name for name in (*methods, ORACLE)}
    if star is not None:
        contenders[star.name] = from_json(star.spec)
    # An opening that was cut short goes on with the same contenders; other contenders are a second opening.
    asked = TestOpened(methods=tuple(sorted(contenders)), found=None if star is None else shown(star.spec))
    opened = campaign.journal.of(TestOpened)
    if not opened or (opened[-1].methods, opened[-1].found) != (asked.methods, asked.found):
        campaign.journal.append(asked)
    campaign.progress(f"opening the test split for {len(contenders)} methods on {len(tasks)} tasks")
    with processes(campaign.jobs) as pool:
        baselines = pool(delayed(_baseline)(family, target, settings) for family, target in tasks)
        work = [(name, i) for name in contenders for i in range(len(tasks))]
        found = pool(delayed(_arms)(contenders[name], name, baselines[i], *tasks[i], settings) for name, i in work)
    arms = dict(zip(work, found, strict=True))
    rows, per_task = [], []
    for name in contenders:
        judged = [
            judge(cached_task(*task), baselines[i], arms[name, i], settings.reward) for i, task in enumerate(tasks)
        ]
        row = leaderboard_row(name, "test", judged, settings.reward.seed)
        openings = len(campaign.journal.of(TestOpened))
        rows.append(TestRow(**dict(row), opening=openings, found=star is not None and name == star.name).voided())
        per_task += [task_row(name, j) for j in judged]
    rows.sort(key=lambda row: (-row.reward_mean, row.method))
    return campaign.journal.append(TestResult(rows=tuple(rows), per_task=tuple(per_task)))
