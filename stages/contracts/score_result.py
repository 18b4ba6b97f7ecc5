"""What `lensmith score` says: of one method, its rows beside the built-in ones and what its answers were charged; of
several, their table."""

from typing import Literal

from stages.contracts.measurement_rows import FreshRow, NullRow
from stages.contracts.outcomes import Outcome
from stages.contracts.record import Record
from stages.contracts.reward_rows import LeaderboardRow, StatementRow, TaskRow

__all__ = ["Entry", "Meters", "ScoreResult", "ScoreTable"]


class Meters(Record):
    """What one answer was charged, over all instances of a task."""

    task: str
    """<family>.<target>."""
    outcome: Outcome
    """What came of the query."""
    flops_target: float
    """FLOPs of the target that it asked for."""
    flops_own: float
    """FLOPs of its own operations: priced before they ran, or what its CPU time could have computed where the method is
    adaptive."""
    exact: bool
    """Whether that is a price, the same on every machine; else it is CPU time, which varies."""
    flops_unseen: float
    """FLOPs that could have gone unseen; 0 where it is exact."""


class ScoreResult(Record):
    """One method, scored."""

    method: str
    """Its name; <name>_of_yours where a built-in method has the same."""
    outcome: Outcome
    """The worst over the tasks; void and infra are no score, and have no rows."""
    reason: str
    """Why it is not ok; empty otherwise."""
    layer: str
    """Which limit or check stopped it; empty where none did."""
    verdict: str
    """better, not distinguishable or worse on the validation tasks; the outcome where there is no score."""
    verdict_text: str
    """What may be said of it in plain sentences: on these tasks, on each kind of question, on families like these."""
    rows: tuple[LeaderboardRow, ...]
    """Its row and those of the built-in methods, per split, best first."""
    statements: tuple[StatementRow, ...]
    """The same in numbers, of it and of the built-in methods, corrected for the number of methods in the table."""
    against: tuple[StatementRow, ...] = ()
    """The same of its reward less that of one built-in method, task by task, where that was asked for."""
    per_task: tuple[TaskRow, ...]
    """Its row on each task."""
    fresh_gap: tuple[FreshRow, ...]
    """Its scores on instances drawn just now, per task."""
    null: tuple[NullRow, ...]
    """Its reward on untrained twins of the tasks' targets, where that was asked for."""
    meters: tuple[Meters, ...]
    """What its answer to each task was charged."""
    interpret_bytes: int
    """Size of I(M) on all targets."""
    interpret_cpu_s: float
    """CPU seconds of computing it."""


class Entry(Record):
    """One method of a table."""

    method: str
    """Its name."""
    origin: Literal["file", "built in", "campaign"]
    """Where it comes from; campaign: the best that a search found."""
    outcome: Outcome
    """The worst over the tasks; void and infra are no score, and have no rows."""
    reason: str
    """Why it is not ok; empty otherwise."""


class ScoreTable(Record):
    """Several methods, scored together."""

    methods: tuple[Entry, ...]
    """Every method of the table."""
    rows: tuple[LeaderboardRow, ...]
    """Their rows per split, best first."""
    statements: tuple[StatementRow, ...]
    """What may be said of each, corrected for the number of methods in the table."""
    against: tuple[StatementRow, ...]
    """The same of the difference from one of them, where that was asked for."""
    per_task: tuple[TaskRow, ...]
    """Rows per task of the methods that were scored for this table."""
    notes: tuple[str, ...]
    """What a reader should know beside the numbers."""
