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
)
"""Keys that say which row of a list a row is, in the order in which they are joined."""

ESTIMATE = {"value", "low", "high", "null"}
"""Keys of an estimate with its interval; the headline is its value."""

LONGEST = 100
"""Rows of a list that still are headlines. MLflow writes 200 ms for a thousand numbers, and the 184
rows of metrics/dictionaries.json have twenty thousand.
"""


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
    elif isinstance(value, list) and len(value) <= LONGEST:
        for position, part in enumerate(value):
            row = part if isinstance(part, dict) else {}
            label = [row[key] for key in IDENTITIES if isinstance(row.get(key), str)]
            yield from _numbers(f"{prefix}.{'.'.join(label) or position}", part)
