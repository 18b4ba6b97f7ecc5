"""What became of one node: what its stage noted, and where it could note nothing, what DVC says."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stages.errors import explain_os, os_said

__all__ = ["NodeStatus", "Outcome", "StageFailed", "infer_cause", "outcome_of", "read_status"]

EXITED = re.compile(r"exited with (-?\d+)$")
DVC_ERROR = "ERROR: "


class StageFailed(RuntimeError):
    """Nodes failed by a fault of ours; the message says which, why, and what to do."""


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


@dataclass(frozen=True)
class NodeStatus:
    """What a stage leaves behind in .lensmith/status/<node>.json (``stages.errors.run_stage``)."""

    state: Literal["done", "failed"]
    computation_s: float | None
    cause: str
    """One line: what went wrong and what to do."""
    users_fault: bool


def read_status(path: Path) -> NodeStatus | None:
    """None if the stage was not run, or was killed before it could write."""
    try:
        return NodeStatus(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def outcome_of(node: str, wall_s: float, code: int, status: NodeStatus | None, output: Sequence[str]) -> Outcome:
    """The outcome of a ``dvc repro`` that ended.

    Args:
        node: the node.
        wall_s: how long it took.
        code: exit status of DVC.
        status: what the stage noted.
        output: the lines that DVC and the stage printed.
    """
    if code == 0:
        computation_s = status.computation_s if status else None
        return Outcome(node, "executed" if status else "cached", wall_s, computation_s)
    if status is not None and status.state == "failed":
        return Outcome(node, "failed", wall_s, None, status.cause, status.users_fault)
    return Outcome(node, "failed", wall_s, None, infer_cause(code, output), False)


def infer_cause(code: int, output: Sequence[str]) -> str:
    """What went wrong where no stage could say so: it was killed, or DVC refused."""
    lines = [line.strip() for line in output if line.strip()]
    errors = [line.removeprefix(DVC_ERROR) for line in lines if line.startswith(DVC_ERROR)]
    exited = next((int(match[1]) for line in errors if (match := EXITED.search(line))), code)
    # Of what was printed only the end: further up a refusal may be one that was dealt with.
    refused = next(filter(None, map(os_said, [*errors, *lines[:-4:-1]])), None)
    if refused is not None and exited not in {-9, 137}:
        return explain_os(refused)[0]
    if exited in {-9, 137}:
        return "the stage was killed, most likely for memory: close other programs or use --jobs 1, then run again"
    if errors and not EXITED.search(errors[0]):
        return errors[0]
    # The command ended before the stage began: what it printed last says why.
    printed = [line for line in lines if not line.startswith(DVC_ERROR)]
    message = printed[-1] if printed else "it printed nothing"
    return f"{message} (exit status {exited})"
