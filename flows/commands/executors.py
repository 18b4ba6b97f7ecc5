"""`lensmith score --executor`: a method in the hands of another M2."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from stages.scoring.agent import AgentScore

__all__ = ["score_with"]


def score_with(
    console: "Console",
    executor: str,
    method: Path,
    targets: list[str] | None,
    timeout: float,
    trust: bool,
    out: Path | None,
) -> None:
    """What the method is worth to the executor's rule and to another M2."""
    from flows.progress import telling
    from flows.terminal import print_json, to_json
    from stages.base.users_code import given_by_the_user
    from stages.scoring.agent import policy_named, score_by

    policy = policy_named(executor)
    with telling(console, "scoring") as tell, given_by_the_user(f"{policy.name} fails"):
        score = score_by(policy, method, targets=targets, timeout_s=timeout, trust=trust, progress=tell)
    show_agent(console, score)
    if out is not None and str(out) == "-":
        print_json(score)
    elif out is not None:
        out.write_text(to_json(score) + "\n", encoding="utf-8")


def show_agent(console: "Console", score: "AgentScore") -> None:
    """One line a task, then what may be said with this M2."""
    from flows.tables import print_table
    from flows.terminal import print_statements, slim

    for split in dict.fromkeys(row.split for row in score.rows):
        right = ("rule", "this M2", "95% interval", "its placebo", "offered", "promised", "used", "by rule")
        table = slim(f"{score.method} with {score.executor}, {split} families", ("task",), right, ())
        for row in [row for row in score.rows if row.split == split]:
            table.add_row(
                row.task.replace(".", " "),
                f"{row.rule:+.3f}",
                f"{row.agent:+.3f}",
                f"{row.agent_low:+.3f}..{row.agent_high:+.3f}",
                f"{row.placebo:+.3f}",
                *(f"{share:.0%}" for share in (row.offered, row.promised, row.used, row.used_by_rule)),
            )
        print_table(console, table)
        print_statements(console, score.statements, split)
    console.print(
        "rule: the reward with the executor's own rule; offered, promised, used: shares of the choices in which the\n"
        "answer could be paid for, promised .02 more than anything without it, and was bought",
        highlight=False,
    )
