"""`lensmith score --executor`: a method in the hands of another M2."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from stages.execution.policies import Policy
    from stages.research.llm_options import LlmOptions
    from stages.research.m2 import LlmPolicy
    from stages.scoring.agent import AgentScore

__all__ = ["Asks", "score_with"]

MAX_TOKENS = 1_000
"""Of a choice, with what a model may think before it."""
REACT_TOKENS = 2_000
"""Of one step."""


@dataclass(frozen=True)
class Asks:
    """What `--executor llm` was given."""

    model: str
    base_url: str
    max_usd: str
    attempt_timeout: int
    price_unknown: bool
    local: bool
    parameters: float


def score_with(
    console: "Console",
    executor: str,
    asks: Asks,
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
    from stages.scoring.agent import AgentScore, policy_named, score_by

    if executor == "react":
        _react(console, asks, method, targets, timeout, trust, out)
        return
    agent = _llm(asks, method) if executor == "llm" else None
    policy: Policy = agent or policy_named(executor)
    with telling(console, "scoring") as tell:

        def work() -> AgentScore:
            return score_by(policy, method, targets=targets, timeout_s=timeout, trust=trust, progress=tell)

        if agent is not None:
            score = _asked(work)
        else:
            with given_by_the_user(f"{policy.name} fails"):
                score = work()
    show_agent(console, score)
    if agent is not None:
        _show_account(console, agent)
    if out is not None and str(out) == "-":
        print_json(score)
    elif out is not None:
        out.write_text(to_json(score) + "\n", encoding="utf-8")


def _react(
    console: "Console",
    asks: Asks,
    method: Path,
    targets: list[str] | None,
    timeout: float,
    trust: bool,
    out: Path | None,
) -> None:
    """The method in the hands of a model that works step by step."""
    from flows.progress import telling
    from flows.terminal import print_json, print_rows, to_json
    from stages.research.llm_options import react_by

    with telling(console, "scoring") as tell:
        rows, logs = react_by(_options(asks, REACT_TOKENS), method, targets, timeout, trust, tell)
    print_rows(console, rows, f"{method.stem} with {asks.model or 'the local model'}, step by step")
    console.print(
        "one sample a task and arm, eight instances to predict: no interval, so read it as a log and not as a score;\n"
        f"every step: inspect view --log-dir {logs}",
        highlight=False,
    )
    if out is not None and str(out) == "-":
        print_json([row.facts() for row in rows])
    elif out is not None:
        out.write_text(to_json([row.facts() for row in rows]) + "\n", encoding="utf-8")


def _llm(asks: Asks, method: Path) -> "LlmPolicy":
    from stages.base.text import safe_name
    from stages.research.llm_options import make_m2

    return make_m2(_options(asks, MAX_TOKENS), f"m2-{safe_name(method.stem)}", asks.parameters)


def _options(asks: Asks, max_tokens: int) -> "LlmOptions":
    from flows.commands.researching import usd
    from stages.research.llm_options import LlmOptions

    return LlmOptions(
        models=(asks.model,) if asks.model else (),
        base_url=asks.base_url,
        max_usd=usd(asks.max_usd),
        max_tokens=max_tokens,
        attempt_timeout=asks.attempt_timeout,
        price_unknown=asks.price_unknown,
        local=asks.local,
    )


def _asked(work: "Callable[[], AgentScore]") -> "AgentScore":
    """What work gives; where nothing more can be asked, one line that says why."""
    from stages.asking.client import Stop
    from stages.errors import UserError

    try:
        return work()
    except Stop as stop:
        raise UserError(f"{stop.reason}; what was replied is kept") from None


def _show_account(console: "Console", policy: "LlmPolicy") -> None:
    account = policy.account()
    own = "unknown (give --parameters)" if account.flops is None else f"{account.flops:.3g}"
    console.print(
        f"the agent's own account: {account.calls} calls, {account.tokens:,} tokens, ${account.usd}, FLOPs {own}"
        f" (not in the reward); {account.unread} of its choices could not be read, and bought nothing",
        highlight=False,
    )


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
