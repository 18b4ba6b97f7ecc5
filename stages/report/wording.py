"""How numbers and verdicts are said: signed, with interval and n, in words a reader can repeat."""

import re
from collections.abc import Sequence

from pydantic import JsonValue

from stages.contracts.record import Estimate
from stages.contracts.reward_rows import LeaderboardRow, StatementRow

__all__ = [
    "change",
    "count",
    "flops",
    "interval",
    "number",
    "placebo_note",
    "ratio",
    "sample",
    "score",
    "sentence",
    "shorten",
    "signed",
    "spec_text",
    "spread",
    "strongest",
    "summary",
    "task",
]

MINUS_SIGN = re.compile(r"(?<!\w)-(?=\d)")
REACH = ("validation+test", "validation", "test", "train+validation", "train")
"""Splits in the order in which they are quoted: together they say most, and what is not train was seen by fewest."""
MINUS, DASH, TIMES = "\u2212", "\u2013", "\u00d7"


def number(value: float | None, places: int = 3) -> str:
    """Unsigned by default; a dash where there is no number."""
    if value is None or value != value:
        return DASH
    text = f"{value:.{places}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def signed(value: float | None, places: int = 3) -> str:
    text = number(value, places)
    return f"+{text}" if text[0] not in (MINUS, DASH) and float(text) != 0 else text


def interval(low: float | None, high: float | None, places: int = 3) -> str:
    return f"[{signed(low, places)}, {signed(high, places)}]"


def spread(low: float | None, high: float | None, places: int = 3) -> str:
    """An interval of something that has no sign."""
    return f"[{number(low, places)}, {number(high, places)}]"


def score(value: Estimate) -> str:
    """``0.512 [0.471, 0.550]``: a number without a sign and its interval."""
    return f"{number(value.value)} {spread(value.low, value.high)}"


def change(value: Estimate, places: int = 3) -> str:
    """``+0.051 [+0.020, +0.080]``: a number with a sign and its interval."""
    return f"{signed(value.value, places)} {interval(value.low, value.high, places)}"


def ratio(value: float | None) -> str:
    """A FLOP ratio to three significant digits."""
    if value is None:
        return DASH
    return f"{TIMES}{value:.3g}" if 0.001 <= value < 100 else f"{TIMES}{value:.1e}"


def flops(value: float | None) -> str:
    """With a unit: 12.3 MFLOP."""
    if value is None:
        return DASH
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}FLOP"
    return f"{value:.3g} FLOP"


def task(name: str) -> str:
    """``backdoor detection on digits_mlp`` from ``backdoor_detection.digits_mlp``."""
    family, dot, target = name.partition(".")
    return f"{family.replace('_', ' ')} on {target}" if dot else family


def count(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def sample(row: LeaderboardRow) -> str:
    """What a leaderboard number rests on."""
    tasks, seeds = count(row.n_tasks, "task"), count(row.n_seeds, "seed")
    return f"n = {tasks} {TIMES} {seeds}, {count(row.n_instances, 'instance')}"


def placebo_note(row: LeaderboardRow) -> str:
    """Whether the same interface with its information destroyed did as well."""
    if row.placebo_high >= row.reward_mean and row.reward_mean != 0:
        return "its placebo did as well"
    if row.placebo_high >= row.reward_low:
        return "its placebo is not clearly below it"
    return "its placebo is clearly below it"


def sentence(row: StatementRow) -> str:
    """What may be said, as a sentence of the page."""
    text = MINUS_SIGN.sub(MINUS, row.sentence)
    return f"{text[0].upper()}{text[1:]}."


def strongest(said: Sequence[StatementRow]) -> list[StatementRow]:
    """The sentences that call a method better, of the widest reach first: families, kinds of question, tasks.

    Of each the method whose interval begins highest, on the splits that fewest have seen. Controls claim nothing.
    """
    found: dict[tuple[str, str], StatementRow] = {}
    for split in REACH:
        for row in sorted(said, key=lambda row: -(row.low or 0.0)):
            if row.split == split and row.verdict == "better" and not row.is_control:
                found.setdefault((row.scope, row.kind), row)
    order = {"families": 0, "kind": 1, "tasks": 2}
    return sorted(found.values(), key=lambda row: (order[row.scope], -(row.low or 0.0)))


def summary(rows: Sequence[LeaderboardRow], said: Sequence[StatementRow]) -> tuple[str, str]:
    """The strongest true sentence, and what else may be said.

    Args:
        rows: a leaderboard.
        said: the sentences of its methods.
    """
    best = max(rows, key=lambda row: (row.status != "failed", row.reward_mean))
    found = strongest(said)
    said_of_best = [row for row in said if (row.method, row.split) == (best.method, best.split)]
    rest = [*found[1:4], *(row for row in said_of_best if row.scope != "kind" and row not in found)]
    numbers = f"{best.method} has the highest reward on {best.split} tasks, {change(best.estimate('reward'))}"
    placebo = f"{placebo_note(best)} at {signed(best.placebo_reward)} {interval(best.placebo_low, best.placebo_high)}"
    floor = f"an answer that says nothing earns up to {number(best.noise_floor)}"
    detail = " ".join([*map(sentence, rest), f"{numbers} ({sample(best)}); {placebo}; {floor}."])
    if found:
        return sentence(found[0]), detail
    here = next((row for row in said_of_best if row.scope == "tasks" and row.visible is not None), None)
    if here is None:
        return "What may be said of the methods has not been worked out yet.", detail
    return (
        f"No method is told apart from the agent alone {here.where}; a reward of {number(here.visible)} would have"
        " been seen.",
        detail,
    )


def spec_text(spec: dict[str, JsonValue]) -> str:
    """A method's spec on one line."""
    return ", ".join(
        f"{key} = {spec_text(value) if isinstance(value, dict) else value}" for key, value in sorted(spec.items())
    )


def shorten(text: str, n: int) -> str:
    return text if len(text) <= n else text[: n - 1] + "\u2026"
