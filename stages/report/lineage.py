"""The campaign as a tree: a node per proposal, joined to its first parent; its source, diff, rows and cost."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from stages.contracts.journal import Event, Proposed, Result, SpecFacts
from stages.contracts.reward_rows import TaskRow
from stages.report.drawing import Drawn, Plot
from stages.report.scales import Scale
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import change, count, flops, ratio, signed, task

__all__ = ["Node", "TreeSection", "depths", "tree_section"]

ROW = 46
"""Pixels from a proposal to one that was made from it."""
EACH = 26
"""Pixels that a proposal needs in the width: a wider tree scrolls."""
MOST = 200
"""Proposals whose details are on the page: the accepted ones, then those with the best value."""


class Node(NamedTuple):
    """A proposal as its fold shows it."""

    iteration: int
    name: str
    operator: str
    parents: tuple[int, ...]
    status: str
    accepted: bool
    outcome: str
    cost: str
    source: str
    diff: str
    rows: Table | None


class TreeSection(NamedTuple):
    plot: Drawn
    width: int
    nodes: list[Node]
    n_hidden: int


def depths(proposed: Sequence[Proposed]) -> dict[int, int]:
    """{iteration: steps from the first proposal of its line}, by first parents; 0 where it has none."""
    found: dict[int, int] = {}
    for one in sorted(proposed, key=lambda one: one.iteration):
        found[one.iteration] = next((found[parent] + 1 for parent in one.parents[:1] if parent in found), 0)
    return found


def tree_section(events: Sequence[Event]) -> TreeSection | None:
    """None where nothing was proposed."""
    proposed = [event for event in events if isinstance(event, Proposed)]
    results = {event.iteration: event for event in events if isinstance(event, Result)}
    if not proposed:
        return None
    order = sorted(proposed, key=lambda one: _rank(results.get(one.iteration), one.iteration))
    shown = {one.iteration for one in order[:MOST]}
    nodes = [_node(one, results.get(one.iteration)) for one in proposed if one.iteration in shown]
    plot = tree_plot(proposed, results, shown)
    return TreeSection(Drawn.of(plot), EACH * len(proposed), nodes, len(proposed) - len(nodes))


def _rank(result: Result | None, iteration: int) -> tuple[bool, float, int]:
    value = result.objective if result is not None and result.objective is not None else float("-inf")
    return not (result is not None and result.accepted), -value, iteration


def tree_plot(proposed: Sequence[Proposed], results: Mapping[int, Result], shown: set[int]) -> Plot:
    """Proposals from left to right as they came, each below its first parent: with all parents it is no tree."""
    depth = depths(proposed)
    numbers = [one.iteration for one in proposed]
    step = max(1, -(-len(numbers) // 40))
    x = Scale(min(numbers) - 0.7, max(numbers) + 0.7, tuple(float(n) for n in numbers[::step]))
    plot = Plot(x, ROW * (max(depth.values()) + 1), "Proposals of the campaign, joined to their first parents")
    plot.axis_x("proposal", grid=False)

    def y(iteration: int) -> float:
        return ROW * (depth[iteration] + 0.5)

    for one in proposed:
        for parent in one.parents[:1]:
            if parent in depth:
                plot.line(parent, y(parent), one.iteration, y(one.iteration), "limb")
    for one in proposed:
        result = results.get(one.iteration)
        href = f"#proposal-{one.iteration}" if one.iteration in shown else ""
        said = f"{one.iteration}. {one.name}, {one.operator or 'proposed'}: {_outcome(result)}"
        if result is None or result.status != "ok":
            plot.cross(one.iteration, y(one.iteration), said, href=href)
        else:
            kind = "accepted" if result.accepted else "proposed"
            plot.mark(one.iteration, y(one.iteration), kind, said, radius=7 if result.accepted else 5.5, href=href)
    return plot


def _outcome(result: Result | None) -> str:
    if result is None:
        return "not judged yet"
    if result.train is None:
        return f"{result.status}: {result.reason}"
    parts = [f"train {change(result.train.estimate('reward'))}"]
    parts.append("validation not asked" if result.feedback is None else f"validation {signed(result.feedback)}")
    if result.accepted:
        parts.append("accepted")
    if result.status != "ok":
        parts.append(f"{result.status}: {result.reason}")
    return ", ".join(parts)


def _node(proposed: Proposed, result: Result | None) -> Node:
    rows = [] if result is None else [row for row in result.per_task if row.split == "train"]
    return Node(
        proposed.iteration,
        proposed.name,
        proposed.operator,
        proposed.parents,
        "not judged" if result is None else result.status,
        result is not None and result.accepted,
        _outcome(result),
        _cost(result, rows),
        _source(proposed.spec),
        proposed.diff,
        _rows(rows) if rows else None,
    )


def _cost(result: Result | None, rows: Sequence[TaskRow]) -> str:
    if result is None or not rows:
        return "nothing was judged"
    judged = sum(row.n_seeds for row in rows)
    asked = "and validation once" if result.feedback is not None else "validation was not asked"
    answers = sum(row.flops_answer_target + row.flops_answer_own for row in rows) / len(rows)
    dear = ratio(result.train.flop_ratio) if result.train is not None else "\u2013"
    return (
        f"{count(judged, 'pair')} of train task and seed judged, {asked}; I(M) of {result.interpret_bytes / 1000:,.1f}"
        f" kB; {flops(answers)} an answer, the agent's compute {dear}"
    )


def _source(spec: SpecFacts) -> str:
    """The file as it was written, or the settings."""
    if "source" in spec:
        return str(spec["source"])
    return json.dumps(spec, indent=1, sort_keys=True)


def _rows(rows: Sequence[TaskRow]) -> Table:
    def answer(row: TaskRow) -> Cell:
        spent = row.flops_answer_target + row.flops_answer_own
        return Cell(flops(spent), spent)

    columns: list[Column[TaskRow]] = [
        Column("train task", lambda row: Cell(task(row.task), row.task, "name")),
        Column("question", lambda row: row.kind),
        Column("reward [95%]", lambda row: Cell(change(row.estimate("reward")), row.reward_mean), True),
        Column("score gained", lambda row: Cell(signed(row.gain_mean), row.gain_mean), True),
        Column("answer", answer, True, "FLOPs per answer, in the target and of its own."),
        Column("used", lambda row: Cell(f"{row.used_answer:.0%}", row.used_answer), True, TaskRow.hint("used_answer")),
        Column("outcome", lambda row: f"{row.status} {row.reason}".strip()),
    ]
    return table("Train tasks of the proposal", columns, sorted(rows, key=lambda row: -row.reward_mean))
