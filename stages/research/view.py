"""What a researcher is shown: one pure function of the journal, and the archive that is a fold over it.

A view holds sources, lineage, the rows of train tasks, one line on what failed, feedback as the gate let it through,
and costs. It holds no validation row, no truth and no name of a family that is held out: the journal has none of them.

Slots are asked in batches of a fixed size. A slot sees the results of the batches before its own, and of its own batch
what was proposed before it: so what is proposed hangs on seed and journal alone, not on how many workers judge.
"""

from collections.abc import Sequence

from stages.contracts.journal import Choices, Proposed, Result, SpecFacts
from stages.contracts.outcomes import Outcome
from stages.contracts.record import Record
from stages.contracts.reward_rows import TaskRow
from stages.research.journal import Journal

__all__ = ["Pending", "Seen", "TaskSeen", "View", "batch_start", "one_line", "seen_of", "view_of"]

MAX_REASON = 400
"""Characters of a reason that are shown."""


class TaskSeen(Record):
    """A proposal on one train task."""

    task: str
    """<family>.<target>."""
    kind: str
    """Kind of question."""
    status: Outcome
    """ok, declined or failed."""
    reason: str
    """Why it failed, in one line; empty otherwise."""
    reward: float
    """Mean over seeds and budgets."""
    low: float
    """Lower end of its 95% interval."""
    high: float
    """Upper end of its 95% interval."""
    noise_floor: float
    """Size that a reward which means nothing stays below."""
    gain: float
    """Score with the method minus score without it."""
    flops: float
    """FLOPs per answer."""
    used_answer: float
    """Share of seeds in which the agent preferred the answer."""


class Pending(Record):
    """A proposal of this batch, not judged yet."""

    slot: int
    """Its iteration."""
    spec: SpecFacts
    """The method: settings, or file and source."""
    choices: Choices
    """What was chosen to arrive at it."""
    operator: str
    """What was done to arrive at it."""
    parents: tuple[int, ...]
    """Slots it was made from."""


class Seen(Pending):
    """A proposal and what came of it. Void and infra say nothing of a method, so they have no numbers."""

    name: str
    """<researcher>-<slot>."""
    status: Outcome
    """ok, failed, void or infra."""
    reason: str
    """Why it is not ok, in one line; empty otherwise."""
    feedback: float | None
    """Mean validation reward, rounded by the gate."""
    value: float | None
    """What to learn from: mean of train reward and feedback; null for void and infra."""
    accepted: bool
    """Whether it became the incumbent."""
    tasks: tuple[TaskSeen, ...]
    """On every train task."""
    interpret_bytes: int
    """Size of I(M)."""
    judged: int
    """What it cost: (task, seed) pairs that were judged."""

    @property
    def train(self) -> float | None:
        """Mean reward over train tasks."""
        return sum(one.reward for one in self.tasks) / len(self.tasks) if self.tasks else None


class View(Record):
    """All that one slot is proposed from."""

    slot: int
    """The iteration that is asked for."""
    seen: tuple[Seen, ...]
    """The archive: results of earlier batches, in order."""
    pending: tuple[Pending, ...]
    """Proposals of this batch before this slot."""

    @property
    def tried(self) -> tuple[Pending, ...]:
        """Everything proposed so far."""
        return (*self.seen, *self.pending)

    def scored(self) -> tuple[Seen, ...]:
        """Those with a value, the best first; of equals the earlier."""
        known = [one for one in self.seen if one.value is not None]
        return tuple(sorted(known, key=lambda one: (-(one.value or 0.0), one.slot)))

    def front(self) -> tuple[Seen, ...]:
        """Those that no other is at least as good as on every train task and better on one, in order of slots."""
        known = [one for one in self.scored() if one.tasks]
        rows = {one.slot: tuple(task.reward for task in one.tasks) for one in known}
        kept = [
            one
            for one in known
            if not any(_dominates(rows[other.slot], rows[one.slot]) for other in known if other is not one)
        ]
        return tuple(sorted(kept, key=lambda one: one.slot))

    def best_by_kind(self, kind: str) -> tuple[Seen, ...]:
        """Scored proposals by their mean reward on train tasks of one kind of question, the best first."""

        def mean(one: Seen) -> float:
            rows = [task.reward for task in one.tasks if task.kind == kind]
            return sum(rows) / len(rows) if rows else 0.0

        return tuple(sorted(self.scored(), key=lambda one: (-mean(one), one.slot)))

    def lineage(self, slot: int) -> tuple[int, ...]:
        """Slots that a proposal comes from, nearest first, itself left out."""
        parents = {one.slot: one.parents for one in self.tried}
        found: list[int] = []
        ahead = list(parents.get(slot, ()))
        while ahead:
            at = ahead.pop(0)
            if at not in found:
                found.append(at)
                ahead += parents.get(at, ())
        return tuple(found)


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def batch_start(slot: int, batch: int) -> int:
    """First slot of the batch that ``slot`` lies in."""
    return slot - slot % batch


def one_line(text: str) -> str:
    """What a method said, fit to be shown: one line, no control characters, not too long."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:MAX_REASON]


def _task_seen(row: TaskRow) -> TaskSeen:
    return TaskSeen(
        task=row.task,
        kind=row.kind,
        status=row.status,
        reason=one_line(row.reason),
        reward=row.reward_mean,
        low=row.reward_low,
        high=row.reward_high,
        noise_floor=row.noise_floor,
        gain=row.gain_mean,
        flops=row.flops_answer_target + row.flops_answer_own,
        used_answer=row.used_answer,
    )


def seen_of(proposed: Proposed, result: Result) -> Seen:
    """One entry of the archive. Rows of train tasks alone are taken, whatever else a result may hold."""
    rows = [row for row in result.per_task if row.split == "train"]
    return Seen(
        slot=proposed.iteration,
        name=proposed.name,
        spec=proposed.spec,
        choices=proposed.choices,
        operator=proposed.operator,
        parents=proposed.parents,
        status=result.status,
        reason=one_line(result.reason),
        feedback=result.feedback,
        value=result.objective,
        accepted=result.accepted,
        tasks=tuple(map(_task_seen, rows)),
        interpret_bytes=result.interpret_bytes,
        judged=sum(row.n_seeds for row in rows),
    )


def view_of(journal: Journal, slot: int, batch: int) -> View:
    """What the researcher is shown for one slot.

    Args:
        batch: slots that are asked for from the same results.
    """
    start = batch_start(slot, batch)
    results = {one.iteration: one for one in journal.of(Result)}
    proposals = [one for one in journal.of(Proposed) if one.iteration < slot]
    return View(
        slot=slot,
        seen=tuple(seen_of(one, results[one.iteration]) for one in proposals if one.iteration < start),
        pending=tuple(
            Pending(
                slot=one.iteration,
                spec=one.spec,
                choices=one.choices,
                operator=one.operator,
                parents=one.parents,
            )
            for one in proposals
            if one.iteration >= start
        ),
    )
