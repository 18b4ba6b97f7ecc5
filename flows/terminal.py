"""How results look on a terminal. Reads result files and JSON-able rows; computes nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.durations import Durations
from flows.graph import stage_of
from flows.outcome import Outcome
from flows.tables import print_table
from stages.contracts.journal import Iteration
from stages.contracts.measurement_rows import NULL, NullRow
from stages.contracts.record import Record, ResultFile, Verdict
from stages.contracts.reward_rows import (
    LEADERBOARD,
    ON_TASKS,
    STATEMENTS,
    TEST,
    TEST_STATEMENTS,
    TRAIN,
    LeaderboardRow,
    StatementRow,
    TaskRow,
    TestRow,
)
from stages.errors import UserError
from stages.report.wording import strongest

if TYPE_CHECKING:
    from stages.reward.beside import BesideRow

__all__ = [
    "leaderboard_rows",
    "print_beside",
    "print_difference",
    "print_durations",
    "print_iterations",
    "print_json",
    "print_leaderboard",
    "print_per_task",
    "print_rows",
    "print_statements",
    "slim",
    "statement_rows",
    "to_json",
]


def print_json(value: object) -> None:
    """JSON on stdout and nothing else, for other programs."""
    print(to_json(value))


def to_json(value: object) -> str:
    """JSON of rows and of what holds them."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return value.facts() if isinstance(value, Record) else str(value)


def leaderboard_rows(split: str) -> list[LeaderboardRow]:
    """Rows of one split, best first.

    Raises:
        UserError: the file is missing or damaged; says how to make it.
    """
    files: dict[str, ResultFile[tuple[LeaderboardRow, ...]] | ResultFile[tuple[TestRow, ...]]]
    files = {"validation": LEADERBOARD, "train": TRAIN, "test": TEST}
    if split not in files:
        raise UserError(f"split {split!r} is unknown: use {', '.join(files)}")
    if not files[split].path().is_file():
        raise UserError(f"{files[split].path()} is missing: no run has come that far; make it with `lensmith run`")
    return sorted(files[split].load(), key=lambda row: (-row.reward_mean, row.method))


def statement_rows(split: str) -> list[StatementRow]:
    """What may be said of the methods of one split, and of it with another; none where no run has come that far."""
    rows = [row for file in (STATEMENTS, TEST_STATEMENTS) if file.path().is_file() for row in file.load()]
    return [row for row in rows if split in row.split.split("+")]


def print_leaderboard(
    console: Console,
    rows: Sequence[LeaderboardRow],
    title: str,
    nulls: Sequence[NullRow] = (),
    said: Sequence[StatementRow] = (),
) -> None:
    """One line a method, at most 100 columns; what all rows share stands below the table.

    Args:
        nulls: rewards of methods on untrained twins, beside those in metrics/null.json.
        said: what may be said of the methods, where it is known.
    """
    visible = {(row.method, row.split): row.visible for row in said if row.scope == ON_TASKS}
    known = [*(NULL.load() if NULL.path().is_file() else ()), *nulls]
    untrained = {(row.method, row.split): row.reward for row in known if row.task == "all"}
    table = slim(
        title, ("method",), ("Reward", "95% interval", "visible", "gain", "FLOPs", "placebo", "untrained"), ("",)
    )
    for row in rows:
        table.add_row(
            row.method,
            _signed(row.reward_mean),
            f"{_signed(row.reward_low)}..{_signed(row.reward_high)}",
            _plainly(visible.get((row.method, row.split))),
            _signed(row.performance_gain),
            f"x{row.flop_ratio:.2f}",
            _signed(row.placebo_reward),
            _signed(untrained.get((row.method, row.split))),
            _verdict(row.verdict) if row.status == "ok" else f"{row.status}: {_verdict(row.verdict)}",
        )
    print_table(console, table)
    floors = ", ".join(sorted({f"{row.noise_floor:.3f}" for row in rows}))
    for tasks, seeds, instances in sorted({(row.n_tasks, row.n_seeds, row.n_instances) for row in rows}):
        console.print(
            f"n = these {tasks} tasks x {seeds} seeds, {instances} instances; noise floor {floors}", highlight=False
        )


def print_statements(console: Console, said: Sequence[StatementRow], split: str) -> None:
    """One line a method: what may be said of families like these, and of each kind of question; then the strongest
    sentences in words.

    Args:
        said: of one split, and of it with others.
        split: the one that the tables are about.
    """
    rows = [row for row in said if row.split == split]
    wide = [row for row in rows if row.scope == "families"]
    if not wide:
        return
    rival = wide[0].against
    against = f", against {rival}" if rival else ""
    table = slim(
        f"on families like these {wide[0].n} {split} families{against}",
        ("method",),
        ("Reward", "95% interval", "visible", "needed", "P(better)", "p (Holm)"),
        ("",),
    )
    for row in wide:
        value, ends, seen, *rest = _said(row)
        table.add_row(row.method, value, ends, seen, "-" if row.needed is None else f"{row.needed:,}", *rest)
    print_table(console, table)
    kinds = sorted({row.kind for row in rows if row.kind})
    by_kind = {(row.method, row.kind): row for row in rows if row.kind}
    table = slim(f"by kind of question{against} (families)", ("method",), kinds, ())
    for row in wide:
        if any((row.method, kind) in by_kind for kind in kinds):
            table.add_row(row.method, *(_of_kind(by_kind.get((row.method, kind))) for kind in kinds))
    print_table(console, table)
    console.print(
        "visible: the reward that would have been seen in 80% of repetitions\n"
        "needed: families that would have shown this reward, spread as here, corrected for as many methods\n"
        "better (>), worse (<): at the 5% level, corrected by Holm, beyond the noise floor",
        highlight=False,
    )
    for row in strongest(said)[:4]:
        console.print(f"{row.sentence[0].upper()}{row.sentence[1:]}.", highlight=False, soft_wrap=True, markup=False)


def _said(row: StatementRow) -> tuple[str, ...]:
    """Reward, interval, smallest visible, probability of improvement, p, and the verdict."""
    return (
        _signed(row.value),
        "-" if row.low is None else f"{_signed(row.low)}..{_signed(row.high)}",
        _plainly(row.visible),
        f"{row.improvement:.2f}",
        _plainly(row.p_holm),
        _verdict(row.verdict, row.against),
    )


def print_difference(console: Console, said: Sequence[StatementRow], split: str) -> None:
    """How far each method is above another one: on these tasks, on families like these, by kind of question."""
    here = [row for row in said if row.scope == ON_TASKS]
    table = slim(
        f"reward over that of {here[0].against}, on these {here[0].n} {split} tasks",
        ("method",),
        ("Reward", "95% interval", "visible", "P(better)", "p (Holm)"),
        ("",),
    )
    for row in here:
        table.add_row(row.method, *_said(row))
    print_table(console, table)
    if split == "test":
        console.print(
            "on these tasks the errors of the two are added up: the sealed test keeps no draws that they share",
            highlight=False,
        )
    print_statements(console, said, split)


def print_beside(console: Console, rows: Sequence["BesideRow"], title: str) -> None:
    """One line a sentence that is a verdict here or there."""
    if not rows:
        console.print(f"{title}: neither run tells a method from the agent alone", highlight=False)
        return
    table = slim(title, ("method", "on"), ("here", "95% interval", "there", "95% interval "), ("",))
    for row in rows:
        on = f"{row.split.replace('+', ' and ')} {row.kind or row.scope}"
        ends = ((row.here, row.here_low, row.here_high), (row.there, row.there_low, row.there_high))
        cells = [cell for value, low, high in ends for cell in (_signed(value), _interval(low, high))]
        fate = f"{row.verdict_here}, {row.fate}" if row.fate == "holds" else row.fate
        table.add_row(row.method, on, *cells, fate)
    print_table(console, table)


def _interval(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{_signed(low)}..{_signed(high)}"


def _of_kind(row: StatementRow | None) -> str:
    if row is None:
        return "-"
    mark = {"better": ">", "worse": "<"}.get(row.verdict, " ")
    return f"{mark}{_signed(row.value)} ({row.n})"


def print_per_task(console: Console, rows: Sequence[TaskRow], title: str) -> None:
    """One table a split, one line a task: the three arms' scores, the reward with its interval, and the verdict."""
    for split in dict.fromkeys(row.split for row in rows):
        right = ("base", "with", "placebo", "Reward", "95% interval", "FLOPs")
        table = slim(f"{title}, {split} families", ("task",), right, ("",))
        for row in [row for row in rows if row.split == split]:
            table.add_row(
                f"{row.family} {row.target}",  # wraps between the two where it must
                f"{row.baseline_score_mean:.2f}",
                f"{row.assisted_score_mean:.2f}",
                f"{row.placebo_score_mean:.2f}",
                f"{row.reward_mean:+.2f}",
                f"{row.reward_low:+.2f}..{row.reward_high:+.2f}",
                f"x{row.flop_ratio:.2f}",
                _verdict(row.verdict) if row.status == "ok" else escape(f"{row.status} {row.reason[:60]}".strip()),
            )
        print_table(console, table)


def print_iterations(console: Console, rows: Sequence[Iteration], title: str) -> None:
    """A campaign, one line an iteration: what was proposed and what it was worth."""
    right = ("train", "valid.", "FLOPs")
    table = slim(title, ("proposal",), right, ("proposed", ""))
    for row in rows:
        first = row.spec.get("file") or row.spec.get("representation")
        parts = [str(first)] + [key for key, value in row.spec.items() if value is True]
        table.add_row(
            row.name,
            _signed(row.train_reward),
            _signed(row.validation_reward),
            "-" if row.flop_ratio is None else f"x{row.flop_ratio:.2f}",
            escape("+".join(part for part in parts if part != "none")),
            "accepted" if row.accepted else "" if row.status == "ok" else escape(f"{row.status} {row.reason}"[:60]),
        )
    print_table(console, table)


def slim(title: str, left: Sequence[str], right: Sequence[str], last: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in left:
        table.add_column(name, no_wrap=name != "task")
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, overflow="fold")
    return table


def _verdict(verdict: Verdict, rival: str = "") -> str:
    """ "not distinguishable" is too long for a column."""
    return verdict.replace("not distinguishable", f"~ {rival}" if rival else "~ baseline")


def print_rows(console: Console, rows: Sequence[Record | Mapping[str, object]], title: str = "") -> None:
    """Any list of flat rows; nested values are left to --json."""
    if not rows:
        console.print(f"{title}: none" if title else "none")
        return
    flat = [row.facts() if isinstance(row, Record) else row for row in rows]
    names = [name for name, value in flat[0].items() if not isinstance(value, dict | list | tuple)]
    table = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in names:
        table.add_column(name, no_wrap=name == names[0], overflow="fold")
    for row in flat:
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    print_table(console, table)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _plainly(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def print_durations(console: Console, outcomes: Sequence[Outcome], durations: Durations) -> None:
    """Time per stage: of this run where the stage was executed, else of the run that last executed
    it.
    """
    nodes = [outcome.node for outcome in outcomes] or sorted(durations.nodes)
    state = {outcome.node: outcome.state for outcome in outcomes}
    stages: dict[str, list[str]] = {}
    for node in nodes:
        stages.setdefault(stage_of(node), []).append(node)
    table = Table(title="time per stage", title_justify="left", title_style="bold", show_footer=True)
    table.add_column("stage", footer="all")
    counts = [state.get(node, "cached") for node in nodes]
    wall_s, computation_s = _sums(nodes, durations)
    for title, footer in (
        ("executed", str(counts.count("executed"))),
        ("cached", str(counts.count("cached"))),
        ("wall, summed over arms", wall_s),
        ("of it computation", computation_s),
    ):
        table.add_column(title, justify="right", footer=footer)
    for stage, arms in stages.items():
        states = [state.get(node, "cached") for node in arms]
        bad = sum(one in {"failed", "blocked", "interrupted"} for one in states)
        name = stage + (f" ({bad} not done)" if bad else "")
        counted = str(states.count("executed")), str(states.count("cached"))
        table.add_row(name, *counted, *_sums(arms, durations))
    print_table(console, table)


def _sums(nodes: Sequence[str], durations: Durations) -> tuple[str, str]:
    """(wall time, computation) of nodes."""
    known = [durations.nodes[node] for node in nodes if node in durations.nodes]
    computed = [node.computation_s for node in known if node.computation_s is not None]
    wall_s = f"{sum(node.wall_s for node in known):.1f} s" if known else "-"
    return wall_s, f"{sum(computed):.1f} s" if computed else "-"
