"""The finding at a glance: reward of every method on every task, with what the tasks are filtered by."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stages.contracts.reward_rows import StatementRow, TaskRow
from stages.report.wording import DASH, change, flops, score, sentence, signed

__all__ = ["SPLITS", "KindMatrix", "Matrix", "kind_matrix", "kind_of", "matrix", "ordered_tasks"]

SPLITS = {"validation": 0, "test": 1, "train": 2}
"""In the order in which they are shown: what neither a method nor its maker has seen comes first."""
LAST = float("-inf")
"""Sorted by where there is no mean."""
FULL = 0.15
"""A reward that has the full colour, at least; a larger one sets it where there is one."""


class MatrixColumn(NamedTuple):
    """A task."""

    split: str
    family: str
    target: str
    kind: str
    """What kind of question is asked."""
    help: str
    """What the baseline does, on how much."""
    edge: bool = False
    """Whether another split begins here."""


class MatrixCell(NamedTuple):
    text: str
    key: str
    """The reward, for means and sorting; empty where there is none."""
    heat: int
    """Percent of the full colour."""
    verdict: str
    """Class of the style sheet: better, worse, same or none."""
    title: str


class MatrixRow(NamedTuple):
    method: str
    mean: str
    mean_key: float
    cells: list[MatrixCell]


class Matrix(NamedTuple):
    columns: list[MatrixColumn]
    rows: list[MatrixRow]
    targets: list[str]
    kinds: list[str]
    splits: list[str]
    n_better: int
    n_worse: int
    n: int
    """Cells with a reward."""


def kind_of(family: str, kinds: Mapping[str, str]) -> str:
    """The kind of question of a family; its own name where no file says it."""
    return kinds.get(family, family.replace("_", " "))


def ordered_tasks(rows: Sequence[TaskRow]) -> list[tuple[str, str, str]]:
    """(split, family, target): validation first; within a split, tasks on which a method helps most come first."""
    best: dict[tuple[str, str, str], float] = {}
    for row in rows:
        key = row.split, row.family, row.target
        best[key] = max(best.get(key, float("-inf")), row.reward_mean)
    return sorted(best, key=lambda key: (SPLITS.get(key[0], 9), key[0], -best[key], key))


def matrix(rows: Sequence[TaskRow], kinds: Mapping[str, str]) -> Matrix | None:
    """None if there is no task.

    Args:
        rows: every method on every task, without the oracle.
        kinds: what each family asks, where known.
    """
    if not rows:
        return None
    tasks = ordered_tasks(rows)
    cells = {(row.method, row.split, row.family, row.target): row for row in rows}
    full = max([FULL, *(abs(row.reward_mean) for row in rows if row.verdict != "not distinguishable")])
    columns = [_column(next(row for row in rows if _key(row) == task), kinds) for task in tasks]
    columns = [column._replace(edge=i > 0 and columns[i - 1].split != column.split) for i, column in enumerate(columns)]
    made = []
    for method in {row.method for row in rows}:
        mine = [cells.get((method, *task)) for task in tasks]
        # Only over the first split, which has every method: means over other tasks would not compare.
        first = [row.reward_mean for row in mine if row is not None and row.split == tasks[0][0]]
        mean = sum(first) / len(first) if first else None
        made.append(
            MatrixRow(method, signed(mean, 2), LAST if mean is None else mean, [_cell(row, full) for row in mine])
        )
    made.sort(key=lambda row: (-row.mean_key, row.method))
    return Matrix(
        columns,
        made,
        sorted({column.target for column in columns}),
        sorted({column.kind for column in columns}),
        list(dict.fromkeys(column.split for column in columns)),
        sum(row.verdict == "better" for row in rows),
        sum(row.verdict == "worse" for row in rows),
        len(rows),
    )


def _key(row: TaskRow) -> tuple[str, str, str]:
    return row.split, row.family, row.target


def _column(row: TaskRow, kinds: Mapping[str, str]) -> MatrixColumn:
    note = f"baseline {score(row.estimate('baseline_score'))}, {row.n_instances} instances, {row.n_seeds} seeds"
    return MatrixColumn(row.split, row.family.replace("_", " "), row.target, kind_of(row.family, kinds), note)


def _cell(row: TaskRow | None, full: float) -> MatrixCell:
    if row is None:
        return MatrixCell(DASH, "", 0, "none", "not measured")
    what = f"{row.method} on {row.family}, {row.target}"
    if row.status != "ok":
        why = f": {row.reason}" if row.reason else ""
        return MatrixCell(
            {"declined": "decl."}.get(row.status, row.status),
            f"{row.reward_mean:.6f}",
            0,
            "none",
            f"{what}: {row.status}{why}",
        )
    verdict = {"better": "better", "worse": "worse"}.get(row.verdict, "same")
    heat = round(100 * min(1.0, abs(row.reward_mean) / full)) if verdict != "same" else 0
    title = (
        f"{what}: reward {change(row.estimate('reward'))}, {row.verdict}; score {score(row.estimate('assisted_score'))}"
        f" instead of {score(row.estimate('baseline_score'))}, {flops(row.flops_assisted)} instead of"
        f" {flops(row.flops_baseline)}"
    )
    return MatrixCell(signed(row.reward_mean, 2), f"{row.reward_mean:.6f}", heat, verdict, title)


class KindColumn(NamedTuple):
    """Questions of one kind, or all families alike."""

    split: str
    kind: str
    n: str
    edge: bool


class KindRow(NamedTuple):
    method: str
    cells: list[MatrixCell]


class KindMatrix(NamedTuple):
    columns: list[KindColumn]
    rows: list[KindRow]


def kind_matrix(said: Sequence[StatementRow]) -> KindMatrix | None:
    """Methods by kinds of question, over as many families as have been opened: validation and test, train and
    validation. The last column of each block is all families. None where nothing has been said.
    """
    splits = [split for split in ("validation+test", "train+validation") if any(row.split == split for row in said)]
    cells = {(row.split, row.kind, row.method): row for row in said if row.scope != "tasks" and row.split in splits}
    if not cells:
        return None
    keys = []
    for split in splits:
        keys += [
            (split, kind) for kind in sorted({row.kind for row in cells.values() if row.split == split and row.kind})
        ]
        keys.append((split, ""))
    columns = []
    for i, (split, kind) in enumerate(keys):
        counts = sorted({row.n for row in cells.values() if (row.split, row.kind) == (split, kind)})
        n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        edge = i > 0 and keys[i - 1][0] != split
        columns.append(KindColumn(split.replace("+", " + "), kind or "all families", n, edge))
    order: dict[str, float] = {}
    for row in cells.values():
        if row.split == splits[0] and not row.kind:
            order[row.method] = row.value
    methods = sorted({row.method for row in cells.values()}, key=lambda method: (-order.get(method, LAST), method))
    rows = [KindRow(method, [_said(cells.get((*key, method))) for key in keys]) for method in methods]
    return KindMatrix(columns, rows)


def _said(row: StatementRow | None) -> MatrixCell:
    if row is None:
        return MatrixCell(DASH, "", 0, "none", "it answers no question of this kind")
    verdict = {"better": "better", "worse": "worse"}.get(row.verdict, "same")
    heat = round(100 * min(1.0, abs(row.value) / (2 * FULL))) if verdict != "same" else 0
    return MatrixCell(signed(row.value, 2), f"{row.value:.6f}", heat, verdict, sentence(row))
