"""How results look on a terminal. Reads result files and JSON-able rows; computes nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.durations import Durations
from flows.graph import stage_of
from flows.outcome import Outcome
from stages import paths
from stages.errors import UserError

__all__ = [
    "leaderboard_rows",
    "print_durations",
    "print_iterations",
    "print_json",
    "print_leaderboard",
    "print_per_task",
    "print_rows",
    "read_rows",
]

Row = Mapping[str, Any]


def print_json(value: Any) -> None:
    """JSON on stdout and nothing else, for other programs."""
    print(json.dumps(value, indent=1, sort_keys=True, allow_nan=False, default=str))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Leaderboard rows of a metrics file: a list, or an object with the list under ``rows`` or
    ``leaderboard``.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: no run has come that far; make it with `lensmith run`")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); restore it with `dvc checkout {path.name}`"
        ) from error
    if isinstance(value, dict):
        value = value.get("rows", value.get("leaderboard", []))
    return [dict(row) for row in value]


def leaderboard_rows(split: str) -> list[dict[str, Any]]:
    """Rows of one split, from whichever result file holds them, best first."""
    seen: set[str] = set()
    rows = []
    for name in ("leaderboard", "train", "test"):
        path = paths.metrics_file(name)
        if name != "leaderboard" and not path.is_file():
            continue
        for row in read_rows(path):
            seen.add(str(row.get("split")))
            if row.get("split") == split:
                rows.append(row)
    if not rows:
        raise UserError(
            f"no row of split {split!r} in {paths.metrics_file('leaderboard').parent}: it has"
            f" {', '.join(sorted(seen))}; run `lensmith run` to make what is missing"
        )
    return sorted(rows, key=lambda row: (-_number(row.get("reward_mean")), str(row.get("method"))))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and value == value else float("-inf")


def print_leaderboard(console: Console, rows: Sequence[Row], title: str) -> None:
    """One line a method, at most 100 columns; what all rows share stands below the table."""
    table = _slim(title, ("method",), ("Reward", "95% interval", "gain", "FLOPs", "placebo"), ("",))
    for row in rows:
        status = str(row.get("status", ""))
        table.add_row(
            str(row.get("method")),
            _signed(row.get("reward_mean")),
            _interval(row),
            _signed(row.get("performance_gain")),
            f"x{_number(row.get('flop_ratio')):.2f}",
            _signed(row.get("placebo_reward")),
            _verdict(row) if status in ("", "ok") else f"{status}: {_verdict(row)}",
        )
    console.print(table)
    counts = {
        tuple(row.get(name, "?") for name in ("n_tasks", "n_seeds", "n_instances")) for row in rows
    }
    floors = {_plain(row.get("noise_floor")) for row in rows}
    for tasks, seeds, instances in sorted(counts, key=str):
        console.print(
            f"n = {tasks} tasks x {seeds} seeds, {instances} instances; noise floor"
            f" {', '.join(sorted(floors))}",
            highlight=False,
        )


def print_per_task(console: Console, rows: Sequence[Row], title: str) -> None:
    """One table a split, one line a task: the three arms' scores, the reward with its interval, and
    the verdict.
    """
    for split in dict.fromkeys(str(row.get("split")) for row in rows):
        right = ("base", "with", "placebo", "Reward", "95% interval", "FLOPs")
        table = _slim(f"{title}, {split} families", ("task",), right, ("",))
        for row in rows:
            if str(row.get("split")) != split:
                continue
            status = str(row.get("status", "ok"))
            table.add_row(
                f"{row.get('family')} {row.get('target')}",  # wraps between the two where it must
                f"{_number(row.get('baseline_score_mean')):.2f}",
                f"{_number(row.get('assisted_score_mean')):.2f}",
                f"{_number(row.get('placebo_score_mean')):.2f}",
                f"{_number(row.get('reward_mean')):+.2f}",
                f"{_number(row.get('reward_low')):+.2f}..{_number(row.get('reward_high')):+.2f}",
                f"x{_number(row.get('flop_ratio')):.2f}",
                _verdict(row)
                if status == "ok"
                else f"{status} {str(row.get('reason', ''))[:60]}".strip(),
            )
        console.print(table)


def print_iterations(console: Console, rows: Sequence[Row], title: str) -> None:
    """A campaign, one line an iteration: what was proposed and what it was worth."""
    right = ("train", "valid.", "95% interval", "FLOPs")
    table = _slim(title, ("proposal",), right, ("proposed", ""))
    for row in rows:
        spec: Mapping[str, Any] = row.get("spec") or {}
        first = spec.get("file") or spec.get("representation")
        parts = [str(first)] + [str(key) for key, value in spec.items() if value is True]
        low, high = _signed(row.get("validation_low")), _signed(row.get("validation_high"))
        status = str(row.get("status", ""))
        table.add_row(
            str(row.get("name")),
            _signed(row.get("train_reward")),
            _signed(row.get("validation_reward")),
            f"{low}..{high}",
            "-" if row.get("flop_ratio") is None else f"x{_number(row['flop_ratio']):.2f}",
            "+".join(part for part in parts if part != "none"),
            "accepted"
            if row.get("accepted")
            else ""
            if status == "ok"
            else f"{status} {row.get('reason', '')}"[:60],
        )
    console.print(table)


def _slim(title: str, left: Sequence[str], right: Sequence[str], last: Sequence[str]) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for name in left:
        table.add_column(name, no_wrap=name != "task", min_width=18 if name == "task" else None)
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    for name in last:
        table.add_column(name, min_width=10, overflow="fold")
    return table


def _verdict(row: Row) -> str:
    """ "not distinguishable" is too long for a column."""
    return str(row.get("verdict", "")).replace("not distinguishable", "~ baseline")


def _interval(row: Row) -> str:
    return f"{_signed(row.get('reward_low'))}..{_signed(row.get('reward_high'))}"


def print_rows(console: Console, rows: Sequence[Row], title: str = "") -> None:
    """Any list of flat rows; nested values are left to --json."""
    if not rows:
        console.print(f"{title}: none" if title else "none")
        return
    names = [name for name in rows[0] if not isinstance(rows[0][name], dict | list)]
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in names:
        table.add_column(name, no_wrap=name == names[0], overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    console.print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _signed(value: Any) -> str:
    return f"{value:+.3f}" if isinstance(value, int | float) else "-"


def _plain(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else "-"


def print_durations(console: Console, outcomes: Sequence[Outcome], durations: Durations) -> None:
    """Time per stage: of this run where the stage was executed, else of the run that last executed
    it.
    """
    nodes = [outcome.node for outcome in outcomes] or sorted(durations.nodes)
    state = {outcome.node: outcome.state for outcome in outcomes}
    stages: dict[str, list[str]] = {}
    for node in nodes:
        stages.setdefault(stage_of(node), []).append(node)
    table = Table(
        title="time per stage", title_justify="left", title_style="bold", show_footer=True
    )
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
    console.print(table)


def _sums(nodes: Sequence[str], durations: Durations) -> tuple[str, str]:
    """(wall time, computation) of nodes."""
    known = [durations.nodes[node] for node in nodes if node in durations.nodes]
    computed = [node.computation_s for node in known if node.computation_s is not None]
    wall_s = f"{sum(node.wall_s for node in known):.1f} s" if known else "-"
    return wall_s, f"{sum(computed):.1f} s" if computed else "-"
