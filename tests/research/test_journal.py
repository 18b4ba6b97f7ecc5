"""The journal survives being killed at any byte."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.journal import Fingerprint, Infra, Proposed, Result, Started, TestOpened
from stages.errors import UserError
from stages.research.journal import Journal


@given(st.integers(0, 200))
def test_cut_at_any_byte_only_whole_events_remain(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    written = Journal(path)
    for number in range(5):
        written.append(Infra(iteration=number, reason="é" * number))
    raw = path.read_bytes()
    path.write_bytes(raw[:cut])
    events = Journal(path).events
    assert events == [e for e in written.events if e in events]
    assert len(events) == raw[:cut].count(b"\n")
    again = Journal(path)
    again.append(Infra(iteration=99, reason=""))
    assert Journal(path).events == [*events, again.events[-1]]


def test_damage_in_the_middle_is_an_error_not_a_loss(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    for number in range(2):
        journal.append(Infra(iteration=number, reason="a full disk"))
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f'{first}\n{{"eve\n{second}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 is damaged.*restore"):
        Journal(path)
    assert path.read_text(encoding="utf-8").count("\n") == 3


def test_an_event_that_was_edited_or_is_none_is_refused(tmp_path):
    path = tmp_path / "events.jsonl"
    event = Journal(path).append(Infra(iteration=0, reason="a full disk"))
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("full", "fine"), encoding="utf-8")
    with pytest.raises(UserError, match="line 1 does not follow"):
        Journal(path)
    facts = {"event": "infra", "iteration": "0", "reason": "a full disk"}
    link = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path.write_text(json.dumps(facts | {"chain": link}) + "\n", encoding="utf-8")
    assert link != event.chain
    with pytest.raises(UserError, match=r"line 1 is no event \(infra\.iteration"):
        Journal(path)


def test_a_journal_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append(Fingerprint(key="k"))
    journal.append(Started(researcher="search", seed=0))
    journal.append(
        Proposed(
            iteration=0,
            name="search-00",
            spec={"k": 4, "x": 1.5},
            choices={"k": 4, "x": 1.5},
            operator="draw",
            parents=(),
            diff="",
        )
    )
    journal.append(TestOpened(methods=("a", "b"), found=None))
    again = Journal(path)
    assert again.events == journal.events and again.first(Started).researcher == "search"
    assert [event.iteration for event in again.of(Proposed)] == [0] and again.first(Result) is None
    assert json.loads(path.read_text(encoding="utf-8").splitlines()[3])["found"] is None
