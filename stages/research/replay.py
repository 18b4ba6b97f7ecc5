"""Researchers on the table: campaigns that cost milliseconds.

A replayed campaign shows a researcher what a real one would: views in batches, train rows in full, validation rounded
as the gate rounds it. What it found is the program with the best value, since the gate's paired draws are not in the
table.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from stages.errors import UserError
from stages.research.campaign import objective
from stages.research.gate import FINEST
from stages.research.programs.grammar import Genome, genome_of, text_of
from stages.research.programs.table import Cell, Column, Table
from stages.research.researcher import Move, Researcher
from stages.research.view import Pending, Seen, TaskSeen, View
from stages.reward.statements import joint_floor

__all__ = ["OnTable", "Path", "replay", "seen_on_table"]


class Path(NamedTuple):
    """What one campaign had after each proposal."""

    train: list[float]
    """Best train reward so far."""
    validation: list[float]
    """Validation reward of the program with the best value so far, not rounded."""
    chosen_train: list[float]
    """Train reward of that program."""
    chosen_tasks: list[tuple[float, ...]]
    """Its reward on each validation task."""
    cpu_s: list[float]
    """CPU seconds that judging took so far."""


class OnTable(NamedTuple):
    """One proposal, looked up."""

    seen: Seen
    """What a campaign would show of it."""
    train: float
    """Its mean train reward."""
    validation: float
    """Its mean validation reward."""
    tasks: tuple[float, ...]
    """Its reward on each validation task."""
    cpu_s: float
    """CPU seconds that judging it takes on all tasks."""


def seen_on_table(table: Table, slot: int, move: Move) -> OnTable:
    """What the table knows of a proposal.

    Raises:
        UserError: the proposal is no program of the grammar.
    """
    try:
        genome: Genome = genome_of(move.choices)
    except ValueError as error:
        raise UserError(f"the table holds programs of the grammar alone, and this proposal is none: {error}") from error
    train, validation = table.row(genome, "train"), table.row(genome, "validation")
    reward, held_out = _mean(train), _mean(validation)
    step = max(joint_floor([cell.noise_floor for cell in validation]), FINEST)
    void = any(cell.status == "void" for cell in (*train, *validation))
    feedback = round(round(held_out / step) * step, 6)
    columns = {column.task: column for column in table.columns}
    seen = Seen(
        slot=slot,
        name=f"table-{slot:02d}",
        spec={"fragments": [text_of(one) for one in genome.values()]},
        choices=dict(move.choices),
        operator=move.operator,
        parents=move.parents,
        status="void" if void else "ok",
        reason="",
        feedback=None if void else feedback,
        value=None if void else objective(reward, feedback),
        accepted=False,
        tasks=() if void else tuple(_task_seen(cell, columns[cell.task]) for cell in train),
        interpret_bytes=0,
        judged=sum(cell.n_seeds for cell in train),
    )
    rewards, cost = tuple(cell.reward for cell in validation), sum(cell.cpu_s for cell in (*train, *validation))
    return OnTable(seen, reward, held_out, rewards, cost)


def _task_seen(cell: Cell, column: Column) -> TaskSeen:
    return TaskSeen(
        task=cell.task,
        kind=column.kind,
        status=cell.status,
        reason=cell.reason,
        reward=cell.reward,
        low=cell.low,
        high=cell.high,
        noise_floor=cell.noise_floor,
        gain=cell.gain,
        flops=cell.flops,
        used_answer=cell.used_answer,
    )


def _mean(cells: Sequence[Cell]) -> float:
    return sum(cell.reward for cell in cells) / len(cells)


def replay(researcher: Researcher, table: Table, budget: int) -> Path:
    """One campaign on the table."""
    path, seen, spent = Path([], [], [], [], []), list[Seen](), 0.0
    best_train, best_value = -math.inf, -math.inf
    nothing = (0.0,) * len(table.of("validation"))
    chosen: tuple[float, float, tuple[float, ...]] = (0.0, 0.0, nothing)  # nothing found: working without a method
    for start in range(0, budget, researcher.batch):
        pending, told = list[Pending](), list[OnTable]()
        for slot in range(start, min(budget, start + researcher.batch)):
            move = researcher.propose(View(slot=slot, seen=tuple(seen), pending=tuple(pending)), slot)
            told.append(seen_on_table(table, slot, move))
            entry = told[-1].seen
            pending.append(
                Pending(
                    slot=slot,
                    spec=entry.spec,
                    choices=entry.choices,
                    operator=entry.operator,
                    parents=entry.parents,
                )
            )
        for one in told:
            seen.append(one.seen)
            researcher.update(one.seen)
            spent += one.cpu_s
            if one.seen.value is not None:
                best_train = max(best_train, one.train)
                if one.seen.value > best_value:
                    best_value, chosen = one.seen.value, (one.train, one.validation, one.tasks)
            path.train.append(0.0 if best_train == -math.inf else best_train)
            path.chosen_train.append(chosen[0])
            path.validation.append(chosen[1])
            path.chosen_tasks.append(chosen[2])
            path.cpu_s.append(spent)
    return path
