"""events.jsonl: the append-only truth of a campaign. Everything else is rebuilt from it."""

import hashlib
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

    Every event carries a digest of itself and of the digest before it, so that an event which was changed, added or
    taken out by hand is noticed. Somebody who recomputes the digests is not; nor is a cut-off end.

    Raises:
        UserError: a line before the last is damaged, or does not follow from those before it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: list[dict[str, Any]] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        found = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{path} line {number} is damaged ({error.msg}): restore the file, or delete it to start over"
                ) from error
        for number, event in enumerate(found, start=1):
            if event.get("chain") != self._link(event):
                raise UserError(
                    f"{path} line {number} does not follow from the lines before it: the journal was edited, so its"
                    " campaign is void; restore the file, or delete it to start over"
                )
            self.events.append(event)
        if len(whole) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def append(self, kind: str, **facts: Any) -> dict[str, Any]:
        event = {"event": kind, **facts}
        event["chain"] = self._link(event)
        with self.path.open("ab") as file:
            file.write(json.dumps(event, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.events.append(event)
        return event

    def _link(self, event: Mapping[str, Any]) -> str:
        before = self.events[-1]["chain"] if self.events else ""
        facts = {key: value for key, value in event.items() if key != "chain"}
        # There and back once: what is read later is what was written, keys as strings and tuples as lists.
        text = before + json.dumps(json.loads(json.dumps(facts, allow_nan=False)), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def of(self, kind: str, **wanted: Any) -> list[dict[str, Any]]:
        """Events of a kind whose facts match."""
        return [e for e in self.events if e["event"] == kind and all(e.get(k) == v for k, v in wanted.items())]

    def first(self, kind: str, **wanted: Any) -> Mapping[str, Any] | None:
        found = self.of(kind, **wanted)
        return found[0] if found else None
