"""The table of what every fragment earns on every train and validation task, measured once.

A task sees one fragment, so the rewards of all programs of the grammar are sums of these cells. Cells are appended to a
file as they are measured: begun again, the work goes on.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import delayed
from pydantic import ValidationError

from stages.base import paths
from stages.base.code import code_digest
from stages.base.processes import process_pool
from stages.contracts.method_file import from_file
from stages.contracts.outcomes import SCORELESS, Outcome
from stages.contracts.record import Record
from stages.errors import UserError
from stages.research.programs.emitting import alone, emit
from stages.research.programs.grammar import KINDS, Fragment, Genome, every_fragment, text_of
from stages.reward.judging import task_row
from stages.scoring.cached import cached_task, jobs
from stages.scoring.candidate import Candidate
from stages.scoring.evaluate import Evaluation, TaskName, evaluate
from stages.scoring.in_process import InProcess
from stages.scoring.judge import judge_arms
from stages.scoring.settings import Settings, settings
from stages.tasks.storage import Split, list_tasks

__all__ = ["SPLITS", "Cell", "Column", "Table", "columns_here", "load_table", "table_file", "tabulate"]

SPLITS: tuple[Split, ...] = ("train", "validation")
"""Splits that are tabulated. The test split stays sealed."""
Progress = Callable[[str], None]


class Cell(Record):
    """One fragment on one task of its kind."""

    fragment: str
    """See ``text_of``."""
    task: str
    """<family>.<target>."""
    status: Outcome
    """ok, declined, failed or void."""
    reason: str
    """Why it is not ok; empty otherwise."""
    reward: float
    """Mean over seeds and budgets; 0 where void."""
    low: float
    """Lower end of its 95% interval."""
    high: float
    """Upper end of its 95% interval."""
    noise_floor: float
    """Size that a reward which means nothing stays below."""
    gain: float
    """Score with the fragment minus score without it."""
    flops: float
    """FLOPs per answer."""
    used_answer: float
    """Share of seeds in which the agent preferred the answer."""
    n_seeds: int
    """Seeds that were judged."""
    cpu_s: float
    """CPU seconds of this process: the fragment's total over its tasks, divided by their number."""


class Column(Record):
    """One task."""

    task: str
    """<family>.<target>."""
    split: str
    """train or validation."""
    kind: str
    """Kind of question."""


class _Head(Record):
    """First line of the file: what the cells depend on."""

    key: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Table:
    """Cells by fragment and task."""

    columns: tuple[Column, ...]
    cells: Mapping[tuple[str, str], Cell]

    def of(self, split: str) -> tuple[Column, ...]:
        return tuple(column for column in self.columns if column.split == split)

    def row(self, genome: Genome, split: str) -> list[Cell]:
        """A program on the tasks of a split, in the order of the columns."""
        return [self.cells[text_of(genome[column.kind]), column.task] for column in self.of(split)]

    def missing(self) -> list[tuple[Fragment, str]]:
        """(fragment, task) that were not measured yet."""
        return [
            (fragment, column.task)
            for column in self.columns
            for fragment in every_fragment(column.kind)
            if (text_of(fragment), column.task) not in self.cells
        ]


def table_file() -> Path:
    """data/tables/programs.jsonl."""
    return paths.root() / "data" / "tables" / "programs.jsonl"


def columns_here() -> tuple[Column, ...]:
    """Tasks that there are, train first."""
    return tuple(
        Column(task=f"{family}.{target}", split=split, kind=cached_task(family, target).family.query_kind)
        for split in SPLITS
        for family, target in list_tasks(split)
    )


def _key(columns: Sequence[Column], chosen: Settings) -> str:
    """What the cells depend on: settings, tasks, baseline arms, the text of every fragment, code that judges it."""
    sha = hashlib.sha256()
    for part in (chosen.interpretation, chosen.execution, chosen.reward):
        sha.update(part.model_dump_json().encode())
    for column in columns:
        family, _, target = column.task.partition(".")
        sha.update(f"{column.task} {cached_task(family, target).digest}".encode())
    for file in sorted(paths.require(paths.execution_dir("baseline"), "baseline").glob("*.json")):
        sha.update(file.read_bytes())
    for kind in KINDS:
        for fragment in every_fragment(kind):
            sha.update(emit(alone(fragment)).encode())
    sha.update(code_digest("stages.scoring.judge").encode())
    return sha.hexdigest()


def load_table(*, whole: bool = True) -> Table:
    """The table as far as it was measured.

    Args:
        whole: refuse one that is not complete.

    Raises:
        UserError: there is none, it was measured with other settings, tasks or code, or it is not complete.
    """
    file, columns = table_file(), columns_here()
    if not file.is_file():
        raise UserError(f"{file} is missing: make it with `lensmith tabulate`")
    head, cells = _read(file)
    if head.key != _key(columns, settings()):
        raise UserError(
            f"{file} was measured with other settings, tasks or code: delete it and run `lensmith tabulate`"
        )
    table = Table(columns, cells)
    if whole and (left := len(table.missing())):
        raise UserError(f"{file} lacks {left} of its cells: `lensmith tabulate` measures them")
    return table


def _read(file: Path) -> tuple[_Head, dict[tuple[str, str], Cell]]:
    raw = file.read_bytes()
    lines = raw[
        : raw.rfind(b"\n") + 1
    ].splitlines()  # a line that was torn when the process was killed is measured again
    try:
        head = _Head.model_validate_json(lines[0])
        cells = [Cell.model_validate_json(line) for line in lines[1:]]
    except (ValidationError, IndexError) as error:
        raise UserError(f"{file} is damaged: delete it and run `lensmith tabulate`") from error
    return head, {(cell.fragment, cell.task): cell for cell in cells}


def tabulate(progress: Progress, limit: int | None = None) -> Table:
    """Measure what is missing.

    Args:
        progress: told one line for every few fragments.
        limit: at most so many fragments, this time.
    """
    file, columns, chosen = table_file(), columns_here(), settings()
    file.parent.mkdir(parents=True, exist_ok=True)
    if not file.is_file():
        head = _Head(key=_key(columns, chosen), columns=columns)
        file.write_text(head.model_dump_json() + "\n", encoding="utf-8")
    table = load_table(whole=False)
    raw = file.read_bytes()
    if not raw.endswith(b"\n"):
        file.write_bytes(raw[: raw.rfind(b"\n") + 1])
    absent = {text_of(fragment) for fragment, _ in table.missing()}
    work = [fragment for kind in KINDS for fragment in every_fragment(kind) if text_of(fragment) in absent][:limit]
    cells, step = dict(table.cells), 4 * jobs()
    started = time.monotonic()
    with process_pool(jobs()) as pool, file.open("a", encoding="utf-8") as out:
        for start in range(0, len(work), step):
            some = work[start : start + step]
            made = pool(delayed(measure)(fragment, columns, chosen) for fragment in some)
            for cell in (cell for of_fragment in made for cell in of_fragment):
                if (cell.fragment, cell.task) not in cells:
                    cells[cell.fragment, cell.task] = cell
                    out.write(json.dumps(cell.facts(), sort_keys=True) + "\n")
            out.flush()
            done = start + len(some)
            left = (time.monotonic() - started) / done * (len(work) - done)
            progress(f"{done} of {len(work)} fragments, {left:.0f} s left: {text_of(some[-1])}")
    return Table(columns, cells)


def measure(fragment: Fragment, columns: Sequence[Column], chosen: Settings) -> list[Cell]:
    """The cells of one fragment, in this process: what the grammar writes is code of ours.

    Raises:
        RuntimeError: the machinery failed; nothing of the fragment is a score.
    """
    tasks: list[TaskName] = [
        (family, target)
        for column in columns
        if column.kind == fragment.kind
        for family, _, target in [column.task.partition(".")]
    ]
    if not tasks:
        return []
    started = time.process_time()
    with tempfile.TemporaryDirectory(prefix="lensmith-program-") as folder:
        file = Path(folder) / "program.py"
        file.write_text(emit(alone(fragment)), encoding="utf-8")
        candidate = Candidate("program", from_file(file))
    found: Evaluation[None] = evaluate(
        candidate, tasks, InProcess(chosen.interpretation), chosen.execution, placebo=False
    )
    if found.outcome == "infra":
        raise RuntimeError(f"{text_of(fragment)}: {found.reason}; run it again")
    cells = [_cell(fragment, one.task, one.answered.status, one.answered.reason) for one in found.results]
    scored = [task for task, one in zip(tasks, found.results, strict=True) if one.answered.status not in SCORELESS]
    for judged in judge_arms(found.arms, scored, chosen.reward):
        row = task_row("program", judged)
        at = next(i for i, cell in enumerate(cells) if cell.task == row.task)
        cells[at] = cells[at].model_copy(
            update={
                "reward": row.reward_mean,
                "low": row.reward_low,
                "high": row.reward_high,
                "noise_floor": row.noise_floor,
                "gain": row.gain_mean,
                "flops": row.flops_answer_target + row.flops_answer_own,
                "used_answer": row.used_answer,
                "n_seeds": row.n_seeds,
            }
        )
    spent = (time.process_time() - started) / len(tasks)
    return [cell.model_copy(update={"cpu_s": spent}).rounded() for cell in cells]


def _cell(fragment: Fragment, task: str, status: Outcome, reason: str) -> Cell:
    """A cell without a score."""
    return Cell(
        fragment=text_of(fragment),
        task=task,
        status=status,
        reason=reason,
        reward=0.0,
        low=0.0,
        high=0.0,
        noise_floor=0.0,
        gain=0.0,
        flops=0.0,
        used_answer=0.0,
        n_seeds=0,
        cpu_s=0.0,
    )
