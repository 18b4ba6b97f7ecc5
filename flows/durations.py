"""How long the nodes took, as last measured on this machine: .lensmith/durations.json. Nothing
depends on it.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from flows.environment import state_dir
from flows.outcome import Outcome
from stages.base.files import save_json

__all__ = ["Durations", "LastRun", "NodeDuration", "load_durations", "save_durations"]


@dataclass(frozen=True)
class NodeDuration:
    """The last execution of a node."""

    wall_s: float
    computation_s: float | None
    """None where the stage did not say."""
    finished_at: str


@dataclass(frozen=True)
class LastRun:
    """The last run in which something was stale."""

    wall_s: float
    jobs: int
    executed: int
    cached: int
    failed: int
    finished_at: str


@dataclass
class Durations:
    nodes: dict[str, NodeDuration] = field(default_factory=dict)
    last_run: LastRun | None = None


def load_durations(root: Path) -> Durations:
    path = root / ".lensmith" / "durations.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        nodes = {node: NodeDuration(**entry) for node, entry in saved["nodes"].items()}
        return Durations(nodes, LastRun(**saved["last_run"]) if saved["last_run"] else None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Durations()  # a note for people, so a missing or half-written one is simply written again


def save_durations(root: Path, outcomes: Sequence[Outcome], wall_s: float, jobs: int) -> Durations:
    durations, now = load_durations(root), datetime.now(UTC).isoformat(timespec="milliseconds")
    for outcome in outcomes:
        if outcome.state == "executed":
            computed = outcome.computation_s
            durations.nodes[outcome.node] = NodeDuration(
                round(outcome.wall_s, 2), None if computed is None else round(computed, 2), now
            )
    states = [outcome.state for outcome in outcomes]
    durations.last_run = LastRun(
        wall_s=round(wall_s, 2),
        jobs=jobs,
        executed=states.count("executed"),
        cached=states.count("cached"),
        failed=states.count("failed"),
        finished_at=now,
    )
    save_json(state_dir(root) / "durations.json", asdict(durations))
    return durations
