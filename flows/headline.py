"""Numbers of the metric files under flat names, as a tracker wants them."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["headline"]

IDENTITIES = ("split", "method", "name", "researcher", "family", "target", "hook_point", "architecture")
"""Keys that say which row of a list a row is, in the order in which they are joined."""


def headline(path: Path) -> dict[str, float]:
    """``{"leaderboard.validation.pca.reward_mean": 0.1, ...}`` of a metrics file; {} if it is not there.

    Lists longer than 200 entries are left out: they are curves, not headlines.
    """
    if not path.is_file():
        return {}
    return dict(_numbers(path.stem, json.loads(path.read_text(encoding="utf-8"))))


def _numbers(prefix: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield prefix, float(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _numbers(f"{prefix}.{key}", part)
    elif isinstance(value, list) and len(value) <= 200:
        for position, part in enumerate(value):
            label = [str(part[key]) for key in IDENTITIES if isinstance(part, dict) and isinstance(part.get(key), str)]
            yield from _numbers(f"{prefix}.{'.'.join(label) or position}", part)
