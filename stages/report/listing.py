"""The tables of the page: which columns, in which words. Titles and hints are those of the fields."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from stages.contracts.dictionary_rows import DictionaryRow
from stages.contracts.journal import CampaignSummary, Iteration
from stages.contracts.measurement_rows import ControlRow, FreshRow, NullRow
from stages.contracts.outcomes import Outcome
from stages.contracts.record import Estimate, Record, Verdict
from stages.contracts.reward_rows import LeaderboardRow, StatementRow, TaskRow
from stages.report.matrix import kind_of
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import (
    DASH,
    change,
    flops,
    number,
    placebo_note,
    ratio,
    score,
    signed,
    spec_text,
    spread,
    task,
)

__all__ = [
    "Failure",
    "campaign_table",
    "controls_table",
    "dictionary_table",
    "failures",
    "fresh_table",
    "leaderboard_table",
    "statement_table",
    "task_table",
]

RowT = TypeVar("RowT", bound=Record)
BoardT = TypeVar("BoardT", bound=LeaderboardRow)
VERDICTS: dict[Verdict, str] = {"better": "good", "worse": "bad"}
UNTRAINED = "Its null: the reward for the same questions about targets before training, where nothing is to be found."
LAST = float("-inf")
"""Sorted by where there is no number."""


def _column(
    model: type[RowT], field: str, cell: Callable[[RowT], Cell | str], numeric: bool = False, interval: bool = False
) -> Column[RowT]:
    """A column about one field."""
    return Column(model.label(field) + (" [95%]" if interval else ""), cell, numeric, model.hint(field))


def _text(model: type[RowT], field: str, kind: str = "") -> Column[RowT]:
    def cell(row: RowT) -> Cell:
        text = str(getattr(row, field))
        return Cell(text, text if kind else "", kind)

    return _column(model, field, cell)


def _change(model: type[RowT], field: str, name: str = "") -> Column[RowT]:
    """A number with a sign and its interval."""

    def cell(row: RowT) -> Cell:
        value = row.estimate(name or field)
        return Cell(DASH, LAST) if value.value is None else Cell(change(value), value.value)

    return _column(model, field, cell, True, True)


def _status(status: Outcome, reason: str = "") -> Cell:
    kind = {"ok": "", "declined": "quiet"}.get(status, "bad")
    return Cell(f"{status}: {reason}" if reason else status, status, kind)


def _verdict(verdict: Verdict) -> Cell:
    return Cell(verdict, verdict, VERDICTS.get(verdict, "quiet"))


def leaderboard_table(
    rows: Sequence[BoardT], caption: str, last: Sequence[Column[BoardT]] = (), nulls: Sequence[NullRow] = ()
) -> Table:
    """Everything a leaderboard row says, and the method's reward on untrained twins, where there is one."""
    untrained = {(row.method, row.split): row for row in nulls if row.task == "all"}
    place = {id(row): i + 1 for i, row in enumerate(rows)}
    model = LeaderboardRow

    def outcome(row: LeaderboardRow) -> Cell:
        counts = ((row.n_declined, "declined"), (row.n_failed, "failed"))
        parts = [f"{n} {word}" for n, word in counts if n]
        return _status(row.status, f"{', '.join(parts)} of {row.n_tasks} tasks" if parts else "")

    def size(row: LeaderboardRow) -> Cell:
        rest = f"{row.n_seeds} seeds, {row.n_instances} instances"
        return Cell(f"{row.n_tasks} tasks", row.n_instances, "", rest)

    def worst(row: LeaderboardRow) -> Cell:
        return Cell(signed(row.worst_task_reward), row.worst_task_reward, "", task(row.worst_task))

    def against(row: LeaderboardRow) -> Cell:
        return Cell(placebo_note(row) if row.verdict == "better" else DASH, "", "quiet")

    def null(row: LeaderboardRow) -> Cell:
        found = untrained.get((row.method, row.split))
        if found is None or found.reward is None:
            return Cell(DASH, LAST)
        return Cell(change(found.estimate("reward")), found.reward)

    columns: list[Column[LeaderboardRow]] = [
        Column("#", lambda row: Cell(str(place[id(row)]), place[id(row)]), True),
        _text(model, "method", "name"),
        _change(model, "reward_mean", "reward"),
        _column(model, "verdict", lambda row: _verdict(row.verdict)),
        _change(model, "performance_gain"),
        _column(model, "flop_ratio", lambda row: Cell(ratio(row.flop_ratio), row.flop_ratio), True),
        _change(model, "placebo_reward"),
        *([Column("untrained [95%]", null, True, UNTRAINED)] if untrained else []),
        _column(model, "worst_task", worst, True),
        _column(model, "noise_floor", lambda row: Cell(number(row.noise_floor), row.noise_floor), True),
        Column("against its placebo", against),
        Column("n", size, True, model.hint("n_instances")),
        _column(model, "status", outcome),
    ]
    return table(caption, [*columns, *last], rows)


def statement_table(rows: Sequence[StatementRow]) -> Table:
    """Every sentence about every method: how wide it reaches, what it rests on, and what could not have been seen."""
    model = StatementRow

    def value(row: StatementRow) -> Cell:
        known = row.estimate("reward")
        return Cell(signed(row.value) if known.low is None else change(known), row.value)

    def optional(field: str, places: int = 3) -> Column[StatementRow]:
        def cell(row: StatementRow) -> Cell:
            found = getattr(row, field)
            return Cell(number(found, places), LAST if found is None else found)

        return _column(model, field, cell, True)

    def reach(row: StatementRow) -> Cell:
        return Cell({"tasks": "these tasks", "families": "families like these"}.get(row.scope, row.kind), row.scope)

    columns: list[Column[StatementRow]] = [
        _text(model, "method", "name"),
        _column(model, "scope", reach),
        _text(model, "split"),
        Column("reward [95%]", value, True, model.hint("value")),
        _column(model, "verdict", lambda row: _verdict(row.verdict)),
        optional("visible"),
        optional("needed", 0),
        optional("p_holm"),
        optional("improvement", 2),
        optional("noise_floor"),
        Column("n", lambda row: Cell(str(row.n), row.n), True, model.hint("n")),
    ]
    return table("What may be said of each method", columns, rows)


def task_table(rows: Sequence[TaskRow], kinds: Mapping[str, str] | None = None) -> Table:
    """Every method on every task, all three arms.

    Args:
        kinds: what each family asks, where known.
    """
    model = TaskRow

    def arm(field: str) -> Column[TaskRow]:
        def cell(row: TaskRow) -> Cell:
            value = row.estimate(field)
            return Cell(score(value), LAST if value.value is None else value.value)

        return Column(f"{field.removesuffix('_score')} [95%]", cell, True, model.hint(f"{field}_mean"))

    def reward(field: str) -> Column[TaskRow]:
        def cell(row: TaskRow) -> Cell:
            value = row.estimate(field)
            return Cell(change(value), LAST if value.value is None else value.value)

        return Column(f"{field.replace('_', ' ')} [95%]", cell, True, model.hint(f"{field}_mean"))

    def spent(row: TaskRow) -> Cell:
        return Cell(f"{flops(row.flops_assisted)} / {flops(row.flops_baseline)}", row.flop_ratio)

    def size(row: TaskRow) -> Cell:
        return Cell(f"{row.n_instances} instances", row.n_instances, "", f"{row.n_seeds} seeds")

    columns: list[Column[TaskRow]] = [
        _text(model, "method", "name"),
        reward("reward"),
        _column(model, "verdict", lambda row: _verdict(row.verdict)),
        Column("task", lambda row: Cell(f"{row.family} on {row.target}")),
        Column("question", lambda row: kind_of(row.family, kinds or {})),
        _text(model, "split"),
        arm("baseline_score"),
        arm("assisted_score"),
        arm("placebo_score"),
        reward("placebo_reward"),
        Column("FLOPs, assisted / baseline", spent, True, "charged per evaluated instance; sorted by their ratio"),
        _column(model, "used_answer", lambda row: Cell(f"{100 * row.used_answer:.0f}%", row.used_answer), True),
        Column("n", size, True, model.hint("n_instances")),
        _column(model, "status", lambda row: _status(row.status)),
    ]

    def tags(row: TaskRow) -> dict[str, str]:
        return {"split": row.split, "target": row.target, "kind": kind_of(row.family, kinds or {})}

    return table("Every method on every task", columns, rows, tags)


def _bred(row: Iteration) -> str:
    """What was done to arrive at a proposal, and the iterations it was done to."""
    return " ".join([row.operator or DASH, *([f"of {', '.join(map(str, row.parents))}"] if row.parents else [])])


def campaign_table(iterations: Sequence[Iteration]) -> Table:
    model = Iteration

    def validation(row: Iteration) -> Cell:
        known = row.status == "ok" and row.validation_reward is not None
        return Cell(signed(row.validation_reward), row.validation_reward or 0.0) if known else Cell(DASH, LAST)

    def train(row: Iteration) -> Cell:
        known = row.status == "ok" and row.train_reward is not None
        return Cell(signed(row.train_reward), row.train_reward or 0.0) if known else Cell(DASH, LAST)

    columns: list[Column[Iteration]] = [
        Column("#", lambda row: Cell(str(row.iteration), row.iteration), True, model.hint("iteration")),
        _text(model, "name", "name"),
        _column(model, "operator", lambda row: Cell(_bred(row))),
        _column(model, "validation_reward", validation, True, True),
        _column(model, "train_reward", train, True),
        _column(model, "accepted", lambda row: Cell("accepted", "a", "good") if row.accepted else Cell(DASH, "b")),
        _column(model, "flop_ratio", lambda row: Cell(ratio(row.flop_ratio), row.flop_ratio or 0.0), True),
        _column(
            model,
            "interpret_bytes",
            lambda row: Cell(f"{row.interpret_bytes / 1000:,.1f} kB", row.interpret_bytes),
            True,
        ),
        _column(model, "status", lambda row: _status(row.status, row.reason)),
        _column(model, "spec", lambda row: Cell(spec_text(row.spec), "", "spec")),
    ]
    return table("Iterations of the campaign", columns, iterations)


def controls_table(rows: Sequence[ControlRow]) -> Table:
    model = ControlRow

    def found(row: ControlRow) -> Cell:
        value = row.estimate("value")
        return Cell(signed(row.value) if value.low is None else change(value), row.value)

    columns: list[Column[ControlRow]] = [
        _text(model, "control", "name"),
        Column(
            "",
            lambda row: Cell("passed", "b", "good") if row.passed else Cell("FAILED", "a", "bad"),
            hint=model.hint("passed"),
        ),
        Column("found [95%]", found, True, model.hint("value")),
        _text(model, "expected"),
        _text(model, "detail"),
    ]
    return table("Controls", columns, rows)


def fresh_table(rows: Sequence[FreshRow], caption: str) -> Table:
    """Scores on the old instances against new ones; the method's worst news is a gap whose interval lies above 0."""
    model = FreshRow

    def gap(row: FreshRow) -> Cell:
        value = row.estimate("gap")
        if value.value is None:
            return Cell(DASH, LAST)
        return Cell(change(value), value.value, "bad" if (value.low or 0.0) > 0 else "")

    columns: list[Column[FreshRow]] = [
        _text(model, "method", "name"),
        _column(model, "gap", gap, True, True),
        _column(model, "old", lambda row: _plain(row.old), True),
        _column(model, "fresh", lambda row: _plain(row.fresh), True),
        _text(model, "task"),
        _column(model, "outcome", lambda row: _status(row.outcome, row.reason or "")),
    ]
    return table(caption, columns, rows)


def _plain(value: float | None) -> Cell:
    return Cell(DASH, LAST) if value is None else Cell(number(value), value)


def dictionary_table(rows: Sequence[DictionaryRow]) -> Table:
    """Metrics of saved dictionaries, the null beside each."""
    model = DictionaryRow

    def metric(field: str, places: int = 3) -> Column[DictionaryRow]:
        def cell(row: DictionaryRow) -> Cell:
            found: Estimate = getattr(row, field)
            if found.value is None:
                return Cell(DASH, LAST, "", (row.undefined or {}).get(field, ""))
            text = number(found.value, places)
            if found.low is not None:
                text += f" {spread(found.low, found.high, places)}"
            if found.null is not None and row.architecture != "random":
                text += f" null\u00a0{number(found.null, places)}"
            return Cell(text, found.value)

        return _column(model, field, cell, True)

    def size(row: DictionaryRow) -> Cell:
        return Cell(f"{row.n_validation_rows} rows", row.n_validation_rows, "", f"{row.n_validation_examples} examples")

    def losses(row: DictionaryRow) -> Cell:
        with_it, without, ablated = (one.value for one in (row.loss_spliced, row.loss_clean, row.loss_ablated))
        if with_it is None or without is None or ablated is None:
            return Cell(DASH, LAST)
        return Cell(f"{number(with_it, 3)} (clean {number(without, 3)}, zeros {number(ablated, 3)})", with_it)

    columns: list[Column[DictionaryRow]] = [
        _text(model, "architecture", "name"),
        metric("explained_variance"),
        metric("l0", 1),
        metric("loss_recovered"),
        Column(
            "loss, nats",
            losses,
            True,
            f"{model.hint('loss_spliced')} Then that of the untouched target, and that with zeros.",
        ),
        _text(model, "target"),
        _text(model, "hook_point"),
        _column(model, "sparsity", lambda row: Cell(f"{row.sparsity:g}", row.sparsity), True),
        _column(model, "seed", lambda row: Cell(str(row.seed), row.seed), True),
        _column(model, "n_latents", lambda row: Cell(str(row.n_latents), row.n_latents), True),
        metric("dead_ratio"),
        metric("monosemanticity"),
        metric("class_purity"),
        metric("probe_1_sparse"),
        metric("probe_5_sparse"),
        metric("probe_full"),
        metric("probe_raw"),
        Column("n", size, True, model.hint("n_validation_rows")),
    ]
    return table("Dictionaries on held-out rows", columns, rows)


class Failure(NamedTuple):
    """What failed, where and why, in one line."""

    what: str
    where: str
    why: str


def failures(
    per_task: Sequence[TaskRow], campaign: CampaignSummary | None, controls: Sequence[ControlRow]
) -> list[Failure]:
    """What failed, where and why, in one line each."""
    out = [
        Failure(f"method {row.method}", f"{row.family} on {row.target}", row.reason or DASH)
        for row in per_task
        if row.status == "failed"
    ]
    if campaign is not None:
        out += [
            Failure(
                f"iteration {row.iteration}, {row.name}",
                f"campaign {campaign.campaign}, {row.status}",
                row.reason or DASH,
            )
            for row in campaign.iterations
            if row.status != "ok"
        ]
    out += [
        Failure(f"control {row.control}", f"expected: {row.expected}", f"found {signed(row.value)}")
        for row in controls
        if not row.passed
    ]
    return out
