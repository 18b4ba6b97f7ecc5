"""Numbers of the metric files under flat names, as a tracker wants them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

__all__ = ["headline"]

IDENTITIES = (
    "split",
    "method",
    "name",
    "researcher",
    "family",
    "target",
    "hook_point",
    "architecture",
    "card",
    "control",
    "metric",
)
"""Keys that say which row of a list a row is, in the order in which they are joined."""

ESTIMATE = {"value", "low", "high", "null"}
"""Keys of an estimate with its interval; the headline is its value."""

PRIMARY = (
    "reward_mean",
    "validation_reward",
    "gap",
    "exact_recovery",
    "spearman",
    "kendall_tau",
)
"""What a row is about: where it has one of these, the rest of the row is left to the file."""

LONGEST = 30
"""Rows of a list that still are headlines: a page with hundreds of numbers is read by nobody, and the 184 rows of
metrics/dictionaries.json have twenty thousand.
"""

WHOLE = "all"
"""Where rows are about single tasks or about all of them, the latter are the headlines."""


def headline(path: Path) -> dict[str, float]:
    """``{"leaderboard.validation.pca.reward_mean": 0.1, ...}`` of a metrics file; {} if it is not
    there.

    Longer lists than ``LONGEST`` and the bounds of intervals are left out: the file has them.
    """
    if not path.is_file():
        return {}
    return dict(_numbers(path.stem, json.loads(path.read_text(encoding="utf-8"))))


def _numbers(prefix: str, value: object) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield prefix, float(value)
    elif isinstance(value, dict):
        if "value" in value and set(value) <= ESTIMATE:
            yield from _numbers(prefix, value["value"])
            return
        for key, part in value.items():
            yield from _numbers(f"{prefix}.{key}", part)
    elif isinstance(value, list):
        rows = [part for part in value if not isinstance(part, dict) or part.get("task", WHOLE) == WHOLE]
        if len(rows) > LONGEST:
            return
        for position, part in enumerate(rows):
            row = part if isinstance(part, dict) else {}
            label = ".".join(row[key] for key in IDENTITIES if isinstance(row.get(key), str)) or str(position)
            known = [key for key in PRIMARY if key in row]
            yield from _numbers(f"{prefix}.{label}", {known[0]: row[known[0]]} if known else part)
