"""``lensmith.score``: what is a method worth? The result shows itself in a terminal and in a notebook."""

import html
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.contracts.method import Method
from stages.contracts.reward_rows import LeaderboardRow, TaskRow
from stages.contracts.score_result import ScoreResult

__all__ = ["Score", "score"]

HEADS = ("method", "reward [95%]", "gain", "FLOP ratio", "placebo", "verdict")
ROW, LEFT, WIDTH = 22, 190, 720
"""Pixels of the plot: height of a row, room for names, width in all."""


@dataclass(frozen=True)
class Score:
    """One method beside the built-in ones: ``print`` it, or leave it as the last line of a notebook's cell."""

    method: str
    outcome: str
    """ok, failed, void (it broke a rule) or infra (the machinery failed); the last two are no score."""
    verdict: str
    """better, not distinguishable or worse on held-out families."""
    verdict_text: str
    """The verdict in plain sentences, with its interval, noise floor and placebo."""
    facts: ScoreResult
    """Everything `lensmith score --out -` prints: leaderboard rows, rows per task, meters, fresh-instance gaps."""

    @property
    def rows(self) -> list[LeaderboardRow]:
        """Validation rows of this method and the built-in ones, best first."""
        return [row for row in self.facts.rows if row.split == "validation"]

    @property
    def per_task(self) -> list[TaskRow]:
        return list(self.facts.per_task)

    def table(self) -> Table:
        table = Table(*HEADS, title="held-out families")
        for row in self.rows:
            table.add_row(*_cells(row), style="bold" if row.method == self.method else "")
        return table

    def __str__(self) -> str:
        out = io.StringIO()
        console = Console(file=out, width=100, force_terminal=False)
        if self.rows:
            console.print(self.table())
        console.print(self.verdict_text, soft_wrap=True, highlight=False, markup=False)
        return out.getvalue().rstrip()

    def _repr_html_(self) -> str:
        body = []
        for row in self.rows:
            weight = ' style="font-weight:bold"' if row.method == self.method else ""
            body.append(f"<tr{weight}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(row)) + "</tr>")
        table = "<table><tr>" + "".join(f"<th>{head}</th>" for head in HEADS) + "</tr>" + "".join(body) + "</table>"
        return f"<p>{html.escape(self.verdict_text)}</p>{self.svg()}{table if body else ''}"

    def svg(self) -> str:
        """The rewards with their 95% intervals as an image."""
        rows = self.rows
        if not rows:
            return ""
        ends = [0.0, *(end for row in rows for end in (row.reward_low, row.reward_high))]
        low, high = min(ends), max(ends)
        span = (high - low) or 1.0

        def x(value: float) -> float:
            return float(LEFT + (WIDTH - LEFT - 20) * (value - low) / span)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{ROW * len(rows) + 30}"'
            ' font-family="sans-serif" font-size="12" role="img" aria-label="reward of each method with 95% interval">',
            f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{ROW * len(rows)}" stroke="#999"/>',
            f'<text x="{x(0):.1f}" y="{ROW * len(rows) + 18}" text-anchor="middle" fill="#666">0 = no method</text>',
        ]
        for number, row in enumerate(rows):
            y, colour = ROW * number + ROW / 2, "#c2410c" if row.method == self.method else "#475569"
            parts += [
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end" fill="{colour}">'
                f"{html.escape(row.method)}</text>",
                f'<line x1="{x(row.reward_low):.1f}" x2="{x(row.reward_high):.1f}" y1="{y:.1f}" y2="{y:.1f}"'
                f' stroke="{colour}" stroke-width="2"/>',
                f'<circle cx="{x(row.reward_mean):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
            ]
        return "".join([*parts, "</svg>"])


def _cells(row: LeaderboardRow) -> tuple[str, ...]:
    """One line of the table; see ``HEADS``."""
    return (
        row.method,
        f"{row.reward_mean:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}]",
        f"{row.performance_gain:+.3f}",
        f"{row.flop_ratio:.2f}",
        f"{row.placebo_reward:+.3f}",
        row.verdict,
    )


def score(
    method: str | Path | Method | type[Method],
    *,
    trust: bool = False,
    timeout_s: float = 120.0,
    tasks: Sequence[tuple[str, str]] | None = None,
    fresh: bool = True,
    null: bool = False,
    progress: Callable[[str], None] = print,
) -> Score:
    """Score a method beside the built-in ones, on train and validation task families.

    What is needed and not there yet (targets, tasks, the baseline) is made first, which is said with its time.

    Args:
        method: a Python file with one ``Method``, which runs in the sandbox; or a ``Method`` class or instance of this
            session, which runs here with your rights.
        trust: run a file without the sandbox, in a process of its own with your rights.
        timeout_s: wall limit of one call of a method from a file.
        tasks: (family, target) pairs; None: all of them.
        fresh: also compare with instances drawn now, which no method can have seen.
        null: also score it on untrained twins of the targets, where there is nothing to interpret.
        progress: told what is being done.

    Raises:
        UserError: no such file, or there is no sandbox here and no ``trust``.
        MethodError: the method does not import, or its ``interpret`` fails.
    """
    from flows.needed import make_what_score_needs
    from stages.scoring.score import score_method

    make_what_score_needs(progress)
    facts = score_method(
        method, timeout_s=timeout_s, trust=trust, only=tasks, fresh=fresh, null=null, progress=progress
    )
    return Score(facts.method, facts.outcome, facts.verdict, facts.verdict_text, facts)
