"""Researchers on the table: campaigns that cost milliseconds, against the best of n random programs and the optimum.

A replayed campaign shows a researcher what a real one would: views in batches, train rows in full, validation rounded
as the gate rounds it. What it found is the program with the best value, since the gate's paired draws are not in the
table. Its train reward is compared with the exact null; so is its validation reward, which it was not chosen by alone.
"""

import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.base.intervals import percentile_interval
from stages.contracts.record import Ends, Record
from stages.errors import UserError
from stages.research.campaign import objective
from stages.research.gate import FINEST
from stages.research.programs.exact import Null, best_program, contributions, null_of
from stages.research.programs.grammar import Genome, genome_of, text_of
from stages.research.programs.table import Cell, Column, Table
from stages.research.researcher import Move, Researcher
from stages.research.researchers import make_researcher
from stages.research.view import Pending, Seen, TaskSeen, View
from stages.reward.statements import joint_floor

__all__ = ["CompareRow", "Path", "compare", "marks", "replay", "seen_on_table"]

DRAWS = 2000
"""Resamples of the seeds."""
FloatArray = npt.NDArray[np.float64]
Progress = Callable[[str], None]


class Path(NamedTuple):
    """What one campaign had after each proposal."""

    train: list[float]
    """Best train reward so far."""
    validation: list[float]
    """Validation reward of the program with the best value so far, not rounded."""
    chosen_train: list[float]
    """Train reward of that program."""


class CompareRow(Record):
    """A researcher after n proposals, over its seeds."""

    ESTIMATES: ClassVar[Ends] = {
        name: (name, f"{name}_low", f"{name}_high")
        for name in ("train", "better", "validation", "validation_better", "of_optimum")
    }

    researcher: str
    """Name of the researcher."""
    n: int
    """Proposals."""
    seeds: int
    """Campaigns."""
    train: float
    """Best train reward found, mean over seeds."""
    train_low: float
    """Lower end of its 95% interval: seeds are resampled, tasks and instances are fixed."""
    train_high: float
    """Upper end of its 95% interval."""
    of_optimum: float
    """The same as a share of the best program's."""
    of_optimum_low: float
    """Lower end of its 95% interval."""
    of_optimum_high: float
    """Upper end of its 95% interval."""
    better: float
    """Probability of improvement: that its best train reward exceeds that of the best of n random programs."""
    better_low: float
    """Lower end of its 95% interval."""
    better_high: float
    """Upper end of its 95% interval."""
    random_train: float
    """Expected train reward of the best of n random programs, exactly."""
    validation: float
    """Validation reward of the program with the best value (train and rounded validation)."""
    validation_low: float
    """Lower end of its 95% interval."""
    validation_high: float
    """Upper end of its 95% interval."""
    validation_better: float
    """Probability that this exceeds the validation reward of one random program."""
    validation_better_low: float
    """Lower end of its 95% interval."""
    validation_better_high: float
    """Upper end of its 95% interval."""
    gap: float
    """Train reward of that program less its validation reward: the tasks differ, and it was chosen more by train."""


def seen_on_table(table: Table, slot: int, move: Move) -> tuple[Seen, float, float]:
    """What a campaign would show of a proposal, its train reward and its validation reward.

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
    return seen, reward, held_out


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
    path, seen = Path([], [], []), list[Seen]()
    best_train, best_value, chosen = -math.inf, -math.inf, (0.0, 0.0)  # nothing found: working without a method
    for start in range(0, budget, researcher.batch):
        pending, told = list[Pending](), list[tuple[Seen, float, float]]()
        for slot in range(start, min(budget, start + researcher.batch)):
            move = researcher.propose(View(slot=slot, seen=tuple(seen), pending=tuple(pending)), slot)
            told.append(seen_on_table(table, slot, move))
            entry = told[-1][0]
            pending.append(
                Pending(
                    slot=slot,
                    spec=entry.spec,
                    choices=entry.choices,
                    operator=entry.operator,
                    parents=entry.parents,
                )
            )
        for entry, train, validation in told:
            seen.append(entry)
            researcher.update(entry)
            if entry.value is not None:
                best_train = max(best_train, train)
                if entry.value > best_value:
                    best_value, chosen = entry.value, (train, validation)
            path.train.append(max(best_train, 0.0) if best_train == -math.inf else best_train)
            path.chosen_train.append(chosen[0])
            path.validation.append(chosen[1])
    return path


def marks(budget: int) -> list[int]:
    """Numbers of proposals at which campaigns are compared: powers of two from 8, and the budget."""
    return sorted({*(2**i for i in range(3, 14) if 2**i < budget), budget})


def compare(
    names: Sequence[str], table: Table, budget: int, seeds: int, progress: Progress = print
) -> tuple[CompareRow, ...]:
    """Every researcher at every mark, over the same seeds.

    Args:
        names: researchers by name or path; ``random`` and ``search`` propose programs here.
    """
    nulls = {split: null_of(contributions(table, split)) for split in ("train", "validation")}
    optimum = best_program(table, "train")
    rows: list[CompareRow] = []
    for name in names:
        paths = []
        for seed in range(seeds):
            paths.append(replay(make_researcher(name, seed, "programs"), table, budget))
            progress(f"{name}: campaign {seed + 1} of {seeds}")
        who = make_researcher(name, 0, "programs").name
        rows += [_row(who, n, paths, nulls["train"], nulls["validation"], optimum) for n in marks(budget)]
    return tuple(rows)


def _row(who: str, n: int, paths: Sequence[Path], train: Null, validation: Null, optimum: float) -> CompareRow:
    found = np.array([path.train[n - 1] for path in paths])
    chosen = np.array([path.validation[n - 1] for path in paths])
    gaps = np.array([path.chosen_train[n - 1] - path.validation[n - 1] for path in paths])
    beats = np.array([train.beats(value, n) for value in found])
    above = np.array([validation.beats(value, 1) for value in chosen])
    numbers = (
        _over_seeds("train", found)
        | _over_seeds("better", beats)
        | _over_seeds("validation", chosen)
        | _over_seeds("validation_better", above)
        | _over_seeds("of_optimum", found / optimum if optimum > 0 else np.zeros(len(found)))
    )
    return CompareRow(
        researcher=who, n=n, seeds=len(paths), random_train=train.best_of(n), gap=float(gaps.mean()), **numbers
    ).rounded()


def _over_seeds(name: str, values: FloatArray) -> dict[str, float]:
    """The mean over seeds and its percentile interval; the same resamples for every researcher."""
    drawn = np.random.default_rng(0).integers(0, len(values), size=(DRAWS, len(values)))
    low, high = percentile_interval(values[drawn].mean(1))
    return {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
