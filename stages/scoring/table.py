"""Several methods in one table: files of people, the built-in methods, and the one that the campaign found.

They have the same tasks, splits and black-box draws, one judge and one correction for the number of methods. A file
that fails is a row that says so, and loses nothing of the others.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from joblib import Parallel

from stages.base import paths
from stages.base.params import names
from stages.contracts.journal import CAMPAIGN
from stages.contracts.outcomes import SCORELESS
from stages.contracts.reward_rows import PER_TASK, LeaderboardRow, StatementRow, TaskRow
from stages.contracts.score_result import Entry, ScoreTable
from stages.errors import UserError
from stages.interpretation.methods import METHODS
from stages.reward.against import judged_arms, paired
from stages.reward.judging import Judged, leaderboard_row, task_row
from stages.reward.statements import BOTH, Effect, stated, statements
from stages.scoring.candidate import Candidate, Host
from stages.scoring.evaluate import evaluate
from stages.scoring.in_process import InProcess
from stages.scoring.isolated import Isolated
from stages.scoring.judge import judge_arms
from stages.scoring.proposals import contenders
from stages.scoring.score import about, built_in_rows, candidate_of
from stages.scoring.settings import Settings, settings
from stages.tasks.storage import list_tasks, load_task

__all__ = ["candidates_in", "score_table", "splits_said"]

Progress = Callable[[str], None]
ByTask = dict[str, Judged]
"""One method, judged, by task name."""


def candidates_in(given: Sequence[Path]) -> list[Candidate]:
    """The methods of files and of folders of files, in the order given; a folder's by name.

    Raises:
        UserError: nothing is there, or two have one name.
    """
    files: list[Path] = []
    for path in given:
        found = sorted(path.glob("*.py")) if path.is_dir() else [path]
        if not found:
            raise UserError(f"{path} holds no Python file: give a folder with one method per file")
        files += found
    found_here = [candidate_of(file) for file in files]
    named = [Candidate(f"{one.name}_of_yours" if one.name in METHODS else one.name, one.what) for one in found_here]
    twice = {one.name for one in named if [other.name for other in named].count(one.name) > 1}
    if twice:
        raise UserError(f"two files are called {min(twice)!r}: a table names a method by its file, so rename one")
    return named


def score_table(
    candidates: Sequence[Candidate],
    *,
    against: str = "",
    timeout_s: float = 120.0,
    trust: bool = False,
    targets: Sequence[str] | None = None,
    placebo: bool = True,
    pool: Parallel | None = None,
    progress: Progress = print,
) -> tuple[ScoreTable, dict[str, ByTask]]:
    """Score methods together, beside the built-in ones and the best that the campaign found.

    Args:
        against: a method of the table; it is also said how far every other one is above it.
        timeout_s: wall limit of one call of a method from a file.
        trust: run files without the sandbox.
        targets: on the tasks about these targets alone, without the built-in methods, whose rows are over all.
        placebo: run the placebo arms; without them the rows of what is scored here show the baseline's.
        pool: workers for the tasks; None: one after the other, here.

    Returns:
        The table, and the methods that were scored here, judged, by name.

    Raises:
        UserError: the graph has not been run, or ``against`` is none of the methods.
    """
    chosen = settings()
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    if targets is not None:
        splits = about(targets, splits)
    splits = {split: tasks for split, tasks in splits.items() if tasks}
    paths.require(paths.execution_dir("baseline"), "baseline")
    built_in = list(names("reward", "methods")) if targets is None else []
    found = [one for one in contenders() if one.name not in METHODS] if CAMPAIGN.path().is_file() else []
    mine = [*candidates, *found]
    known = [*(one.name for one in mine), *built_in]
    if against and against not in known:
        raise UserError(f"--against {against!r} is none of the methods in this table: use {', '.join(known)}")
    entries, judged = [], {}
    for number, one in enumerate(mine, 1):
        progress(f"{number} of {len(mine)}: {one.name}")
        host: Host = InProcess(chosen.interpretation)
        if not one.reviewed:
            host = Isolated(chosen.interpretation, timeout_s, trust)
        tasks = [task for of in splits.values() for task in of]
        done = evaluate(one, tasks, host, chosen.execution, pool=pool, placebo=placebo)  # type: ignore[var-annotated]
        entries.append(
            Entry(
                method=one.name,
                origin="campaign" if one in found else "file",
                outcome=done.outcome,
                reason=done.reason,
            )
        )
        if done.results and done.outcome not in SCORELESS:
            judged[one.name] = {
                one.task.name: one for of in splits.values() for one in judge_arms(done.arms, of, chosen.reward)
            }
    entries += [Entry(method=name, origin="built in", outcome="ok", reason="") for name in built_in]
    rows, said, per_task = _rows(judged, built_in)
    differences = _over(against, judged, built_in, chosen) if against else ()
    table = ScoreTable(
        methods=tuple(entries),
        rows=rows,
        statements=said,
        against=differences,
        per_task=per_task,
        notes=_notes(found, bool(built_in)),
    )
    return table, judged


def splits_said(rows: Sequence[TaskRow]) -> list[tuple[str, list[TaskRow]]]:
    """Rows by split, and of all splits where there are several."""
    parts = [(split, [row for row in rows if row.split == split]) for split in dict.fromkeys(row.split for row in rows)]
    return [*parts, (BOTH, list(rows))] if len(parts) > 1 else parts


def _rows(
    judged: dict[str, ByTask], built_in: Sequence[str]
) -> tuple[tuple[LeaderboardRow, ...], tuple[StatementRow, ...], tuple[TaskRow, ...]]:
    mine = [task_row(name, one) for name, of in judged.items() for one in of.values()]
    others = [row for row in PER_TASK.load() if row.method in built_in] if built_in else []
    said = [row for split, of in splits_said([*mine, *others]) for row in statements(of, split)]
    here = {(row.split, row.method): row for row in said if row.scope == "tasks"}
    rows = [
        leaderboard_row(name, split, [one for one in of.values() if one.task.split == split], here[split, name])
        for name, of in judged.items()
        for split in dict.fromkeys(one.task.split for one in of.values())
    ]
    if built_in:
        rows += built_in_rows(here)
    rows.sort(key=lambda row: (row.split, -row.reward_mean, row.method))
    return tuple(rows), tuple(said), tuple(mine)


def _over(rival: str, judged: dict[str, ByTask], built_in: Sequence[str], chosen: Settings) -> tuple[StatementRow, ...]:
    """How far every method is above the rival, of draws that they share."""

    def of(method: str, task: str) -> Judged:
        if method in judged:
            return judged[method][task]
        return judged_arms(load_task(*task.split(".")), method, chosen.reward)

    if rival not in judged and rival not in built_in:
        return ()  # it has no score
    tasks = [f"{family}.{target}" for split in ("train", "validation") for family, target in list_tasks(split)]
    tasks = [task for task in tasks if not judged or task in next(iter(judged.values()))]
    effects: dict[str, list[Effect]] = {}
    for task in tasks:
        other = of(rival, task)
        for method in [*judged, *built_in]:
            if method != rival:
                effects.setdefault(other.task.split, []).append(paired(method, of(method, task), rival, other))
    parts = list(effects.items())
    if len(parts) > 1:
        parts.append((BOTH, [one for _, of in parts for one in of]))
    return tuple(row for split, members in parts for row in stated(members, split))


def _notes(found: Sequence[Candidate], beside: bool) -> tuple[str, ...]:
    files = "Methods from files" + (" and built-in ones" if beside else "")
    notes = [f"{files} have one row each and were chosen by nothing in this table: there is no best-of-n in them."]
    if found:
        campaign = CAMPAIGN.load()
        notes.append(
            f"{found[0].name} is the best of {len(campaign.iterations)} proposals of campaign {campaign.campaign}"
            f" ({campaign.researcher}), chosen on these train tasks and, through the gate, on these validation tasks:"
            " its rows hold the luck of that choice. Test families are the place to compare it (`lensmith leaderboard"
            " --split test`)."
        )
    return tuple(notes)
