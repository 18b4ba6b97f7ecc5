"""Wall times of the nodes, as last measured on this machine: .lensmith/times.json. Nothing depends on them."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.environment import state_dir
from flows.outcome import Outcome

__all__ = ["Times", "load_times", "save_times"]


@dataclass
class Times:
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """node -> wall_s, computation_s (None where the stage did not say) and finished_at of its last execution."""
    last_run: dict[str, Any] = field(default_factory=dict)
    """wall_s, jobs, executed, cached, failed and finished_at of the last walk."""


def load_times(root: Path) -> Times:
    path = root / ".lensmith" / "times.json"
    try:
        return Times(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Times()  # a note for people, so a missing or half-written one is simply written again


def save_times(root: Path, outcomes: list[Outcome], wall_s: float, jobs: int) -> Times:
    times, now = load_times(root), datetime.now(UTC).isoformat(timespec="seconds")
    for outcome in outcomes:
        if outcome.state == "executed":
            times.nodes[outcome.node] = {
                "wall_s": round(outcome.wall_s, 2),
                "computation_s": None if outcome.computation_s is None else round(outcome.computation_s, 2),
                "finished_at": now,
            }
    counts = {state: sum(o.state == state for o in outcomes) for state in ("executed", "cached", "failed")}
    times.last_run = {"wall_s": round(wall_s, 2), "jobs": jobs, "finished_at": now} | counts
    path = state_dir(root) / "times.json"
    half = path.with_suffix(".half")
    half.write_text(json.dumps(asdict(times), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    half.replace(path)
    return times
