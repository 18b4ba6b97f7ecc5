"""Stage ``sealed_test``: the test split, for the incumbents of the campaign, every built-in method and the oracle.

Writes data/research/sealed_test/events.jsonl, which is the campaign's journal and each opening of the seal, and
metrics/test.json, test_statements.json, test_per_task.json and test_path.json. Cut short and run again, it goes on with
the same opening.

Of the incumbents the last is what the campaign found, and is claimed something of. Those before it are scored in the
same opening to say what the search did to its own yardstick; they stand in test_path.json alone.
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from joblib import delayed

from stages.base import paths
from stages.base.files import save_bytes
from stages.base.params import names
from stages.base.processes import process_pool
from stages.contracts.arms import Answered, Baseline, MethodArms
from stages.contracts.journal import Ended, Fingerprint, TestOpened, TestResult
from stages.contracts.research_rows import TEST_PATH
from stages.contracts.reward_rows import PER_TASK, TEST, TEST_PER_TASK, TEST_STATEMENTS, StatementRow, TaskRow, TestRow
from stages.contracts.target import Target
from stages.execution.answering import Asked
from stages.execution.runs import baseline_of
from stages.execution.stage import oracle
from stages.interpretation.loading import built_in
from stages.research.journal import Journal, best_found
from stages.research.path import incumbents, noise_of, path_rows
from stages.research.projection import Projection
from stages.reward.judging import Judged, judge, leaderboard_row, task_row
from stages.reward.statements import statements
from stages.scoring.cached import cached_target, cached_task, jobs
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.evaluate import Evaluation, TaskName, evaluate
from stages.scoring.judge import host_of
from stages.scoring.proposals import candidate_of, from_json, shown
from stages.scoring.settings import Settings, settings
from stages.scoring.stage import stage_frozen
from stages.tasks.storage import Task, list_tasks

__all__ = ["main", "run", "score_test_split"]

ORACLE = "oracle"
Progress = Callable[[str], None]


@cache
def _baseline(name: str, settings: Settings) -> Baseline:
    """The baseline arm of a test task: no stage writes it. Workers find it in the store."""
    family, _, target = name.partition(".")
    return baseline_of(cached_task(family, target), cached_target(target), settings.execution)


class _Truth:
    """The host of the control that is given the truth."""

    def freeze(
        self, candidate: Candidate, targets: list[str], asked: Mapping[str, Sequence[Asked]] | None = None
    ) -> dict[str, Frozen]:
        return dict.fromkeys(targets, Frozen(b"", b""))

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        return oracle(task)


def score_test_split(
    journal: Journal, methods: Sequence[str], tasks: Sequence[TaskName], settings: Settings, progress: Progress
) -> TestResult:
    """Rows of the test split, computed once and written into the journal."""
    star = best_found(journal)
    contenders = {name: Candidate(name, built_in(name)) for name in methods}
    contenders |= {one.name: candidate_of(from_json(one.spec), one.name) for one in incumbents(journal)}
    # An opening that was cut short goes on with the same contenders; other contenders are a second opening.
    asked = TestOpened(methods=tuple(sorted([*contenders, ORACLE])), found=None if star is None else shown(star.spec))
    opened, done = journal.of(TestOpened), journal.of(TestResult)
    if not opened or (opened[-1].methods, opened[-1].found) != (asked.methods, asked.found):
        journal.append(asked)
    elif done and len(done) == len(opened):
        return done[-1]
    earlier = _earlier(journal)
    progress(f"scoring {len(contenders) + 1} methods on the sealed test split, {len(tasks)} tasks")
    names, targets = [f"{family}.{target}" for family, target in tasks], sorted({target for _, target in tasks})
    arms: dict[str, dict[str, MethodArms]] = {}
    ended: dict[str, Ended] = {}
    with process_pool(jobs()) as pool:
        pool(delayed(_baseline)(name, settings) for name in names)  # into the store, on every core
        run = partial(
            evaluate, tasks=tasks, config=settings.execution, pool=pool, baseline=partial(_baseline, settings=settings)
        )
        for name, candidate in contenders.items():
            frozen = stage_frozen(name, targets) if name in methods else None
            found: Evaluation[None] = run(candidate, host=host_of(candidate, settings), frozen=frozen)
            if found.scored:
                arms[name] = found.arms
            else:
                ended[name] = Ended(status=found.outcome, reason=found.reason)
                progress(f"{name} is {found.outcome} on the test split: {found.reason}")
        truth: Evaluation[None] = run(Candidate(ORACLE, built_in("nothing")), host=_Truth(), review=False)
        arms[ORACLE] = truth.arms
    judged: dict[str, list[Judged]] = {
        name: [
            judge(cached_task(*task), _baseline(task_name, settings), of_method[task_name], settings.reward)
            for task_name, task in zip(names, tasks, strict=True)
        ]
        for name, of_method in arms.items()
    }
    per_task = [task_row(name, one) for name, of in judged.items() for one in of]
    # Earlier incumbents claim nothing, so nobody's p-value is corrected for them.
    groups = [[row for row in per_task if row.method not in earlier]]
    groups += [[row for row in per_task if row.method == name] for name in earlier]
    here = {row.method: row for of in groups for row in statements(of, "test") if row.scope == "tasks"}
    rows = []
    openings = len(journal.of(TestOpened))
    for name, of in judged.items():
        row = leaderboard_row(name, "test", of, here[name])
        rows.append(TestRow(**dict(row), opening=openings, found=star is not None and name == star.name).voided())
    rows.sort(key=lambda row: (-row.reward_mean, row.method))
    return journal.append(TestResult(rows=tuple(rows), per_task=tuple(per_task), unscored=ended))


def _earlier(journal: Journal) -> tuple[str, ...]:
    """Incumbents that were overtaken."""
    star = best_found(journal)
    return tuple(one.name for one in incumbents(journal) if star is None or one.name != star.name)


def _said(result: TestResult, before: Sequence[TaskRow]) -> tuple[StatementRow, ...]:
    """The sentences of the test split, and of validation and test together; none of a split opened twice.

    What the campaign found is said nothing of over both: it was chosen by its validation rewards.
    """
    if any(row.status == "void" for row in result.rows):
        return ()
    methods = {row.method for row in result.per_task}
    validation = [row for row in before if row.split == "validation" and row.method in methods]
    known = {row.method for row in validation}
    both = [*validation, *(row for row in result.per_task if row.method in known)]
    return statements(result.per_task, "test") + (statements(both, "validation+test") if both else ())


def run(progress: Progress = print) -> TestResult:
    """Open the test split for the campaign of the graph."""
    campaign = paths.require(paths.campaign_dir("campaign") / "events.jsonl", "research")
    facts = campaign.read_bytes()
    folder = paths.work_dir() / "sealed" / hashlib.sha256(facts).hexdigest()[:16]
    if not (folder / "events.jsonl").exists():
        save_bytes(folder / "events.jsonl", facts)
    journal = Journal(folder / "events.jsonl")
    every = score_test_split(journal, names("reward", "methods"), list_tasks("test"), settings(), progress)
    earlier, known = _earlier(journal), PER_TASK.load()
    result = every.model_copy(
        update={
            "rows": tuple(row for row in every.rows if row.method not in earlier),
            "per_task": tuple(row for row in every.per_task if row.method not in earlier),
        }
    )
    fingerprint = journal.first(Fingerprint)
    assert fingerprint is not None, "a campaign begins with its fingerprint"
    Projection(fingerprint.key, {"campaign": "campaign"}).test(result.rows)
    out = paths.campaign_dir("sealed_test")
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(journal.path, out / "events.jsonl")
    TEST.save(result.rows)
    TEST_PER_TASK.save(result.per_task)
    TEST_STATEMENTS.save(_said(result, known))
    TEST_PATH.save(path_rows(journal, every, noise_of([row for row in known if row.split == "validation"])))
    shutil.rmtree(folder)
    return result


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run()
