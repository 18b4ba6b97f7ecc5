"""events.jsonl: the append-only truth of a campaign. Everything else is rebuilt from it."""

import hashlib
import json
import os
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue, ValidationError

from stages.contracts.journal import (
    EVENT,
    Asked,
    Event,
    Fingerprint,
    Infra,
    Proposed,
    Replied,
    Result,
    Started,
    Stopped,
    TestOpened,
    TestResult,
)
from stages.errors import UserError

__all__ = ["Journal", "best_found", "incumbent"]

EventT = TypeVar(
    "EventT", Fingerprint, Started, Asked, Replied, Stopped, Proposed, Result, Infra, TestOpened, TestResult
)


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
        self.events: list[Event] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            return
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            self.events.append(self._read(number, line))
        if len(whole) < len(raw):
            with path.open("r+b") as file:
                file.truncate(len(whole))

    def _read(self, number: int, line: bytes) -> Event:
        remedy = "restore the file, or delete it to start over"
        try:
            facts: dict[str, JsonValue] = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{self.path} line {number} is damaged ({error.msg}): {remedy}") from error
        if facts.pop("chain", None) != (link := self._link(facts)):
            raise UserError(
                f"{self.path} line {number} does not follow from the lines before it: the journal was edited, so its"
                f" campaign is void; {remedy}"
            )
        try:
            return EVENT.validate_json(json.dumps(facts | {"chain": link}), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise UserError(f"{self.path} line {number} is no event ({place}: {first['msg']}): {remedy}") from error

    def append(self, event: EventT) -> EventT:
        """Write an event; returns it with its digest."""
        facts = event.facts() | {"event": event.event}  # the kind is a default, so not among the fields that were set
        link = self._link(facts)
        with self.path.open("ab") as file:
            file.write(json.dumps(facts | {"chain": link}, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        chained = event.model_copy(update={"chain": link})
        self.events.append(chained)
        return chained

    def _link(self, facts: dict[str, JsonValue]) -> str:
        before = self.events[-1].chain if self.events else ""
        text = before + json.dumps(facts, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def of(self, kind: type[EventT]) -> list[EventT]:
        """Events of a kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def first(self, kind: type[EventT]) -> EventT | None:
        return next(iter(self.of(kind)), None)


def incumbent(journal: Journal) -> Result | None:
    """The result that last passed the gate."""
    accepted = [result for result in journal.of(Result) if result.accepted]
    return accepted[-1] if accepted else None


def best_found(journal: Journal) -> Result | None:
    """I*: the incumbent, else the proposal with the best feedback (marked as not accepted); None where all failed."""
    best = incumbent(journal)
    if best is not None:
        return best
    fine = [result for result in journal.of(Result) if result.status == "ok"]
    return max(fine, key=lambda result: (result.feedback or 0.0, result.objective or 0.0), default=None)
