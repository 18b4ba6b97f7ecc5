"""What became of one node, read from what DVC and the stage printed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Outcome", "cause_of", "state_of"]

COMPUTATION = re.compile(r"^computation_s=([0-9.]+)$")
EXITED = re.compile(r"exited with (-?\d+)$")
USER_ERROR = re.compile(r"^stages\.errors\.\w+: (.*)$")
LAST_OF_TRACEBACK = re.compile(r"^[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit): .*$")


@dataclass(frozen=True)
class Outcome:
    node: str
    state: Literal["executed", "cached", "failed", "blocked", "interrupted"]
    """blocked: a node it depends on failed, so it was not tried."""
    wall_s: float = 0.0
    computation_s: float | None = None
    """Seconds the stage says it computed: without start-up, imports and hashing."""
    cause: str = ""
    users_fault: bool = False


def state_of(lines: Sequence[str]) -> Literal["executed", "cached"]:
    """From the output of a ``dvc repro`` that went well."""
    return "executed" if any(line.startswith("Running stage ") for line in lines) else "cached"


def computation_of(lines: Sequence[str]) -> float | None:
    told = [float(match[1]) for line in lines if (match := COMPUTATION.match(line.strip()))]
    return sum(told) if told else None


def cause_of(lines: Sequence[str]) -> tuple[str, bool]:
    """(one line: what went wrong, whether the user can mend it), from the output of a failed ``dvc repro``."""
    text = [line.strip() for line in lines if line.strip()]
    if any("No space left on device" in line for line in text):
        return "no space left on the disk: free some (`dvc gc --workspace` drops old results), then run again", False
    exited = [int(match[1]) for line in text if (match := EXITED.search(line))]
    users = bool(exited) and exited[-1] == 2
    for line in reversed(text):
        if match := USER_ERROR.match(line):
            return match[1], True
        if line.startswith("error: "):
            return line.removeprefix("error: "), users
    if exited and exited[-1] in {-9, 137}:
        return (
            "the stage was killed, most likely for memory: close other programs or use --jobs 1, then run again",
            False,
        )
    for line in reversed(text):
        if LAST_OF_TRACEBACK.match(line):
            return line, users
    for line in text:
        if line.startswith("ERROR: "):
            return line.removeprefix("ERROR: "), users
    return (text[-1] if text else "it printed nothing"), users
