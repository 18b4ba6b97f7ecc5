"""events.jsonl: the append-only truth of a campaign. Everything else is rebuilt from it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.errors import UserError

__all__ = ["Journal"]


class Journal:
    """One JSON object a line, synced to disk before the next step begins.

    A process killed while writing leaves a torn last line; opening drops it, since what it said had not happened yet.

    Raises:
        UserError: a line before the last is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                self.events.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path} line {number} is damaged ({error.msg}): restore the file, or delete it to start over"
                ) from error
        if len(whole) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, kind: str, **facts: Any) -> dict[str, Any]:
        event = {"event": kind, **facts}
        with self.path.open("ab") as file:
            file.write(json.dumps(event, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(event)
        return event

    def of(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Events of a kind whose facts match."""
        return [e for e in self.events if e["event"] == kind and all(e.get(k) == v for k, v in wanted.items())]

    def first(self, kind: str, **wanted: Any) -> Mapping[str, Any] | None:
        found = self.of(kind, **wanted)
        return found[0] if found else None
