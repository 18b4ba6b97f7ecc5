"""The journal survives being killed at any byte."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import UserError
from stages.research.journal import Journal


@given(st.integers(0, 200))
def test_cut_at_any_byte_only_whole_events_remain(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "events.jsonl"
    written = Journal(path)
    for number in range(5):
        written.append("result", iteration=number, text="é" * number)
    raw = path.read_bytes()
    path.write_bytes(raw[:cut])
    events = Journal(path).events
    assert events == [e for e in written.events if e in events]
    assert len(events) == raw[:cut].count(b"\n")
    again = Journal(path)
    again.append("result", iteration=99)
    assert [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] == [*events, again.events[-1]]


def test_damage_in_the_middle_is_an_error_not_a_loss(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "started"}\n{"eve\n{"event": "result"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2 is damaged.*restore"):
        Journal(path)
    assert path.read_text(encoding="utf-8").count("\n") == 3
