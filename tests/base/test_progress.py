"""How far a stage has come, as lines."""

import time

import pytest

from stages import errors
from stages.base.progress import counted, listening, now_and_then, report
from stages.tasks.families import FAMILIES
from stages.tasks.generation import make


def test_every_item_is_handed_out_and_counted():
    said = []
    with listening(lambda *step: said.append(step)):
        assert list(counted("steps", "abc")) == ["a", "b", "c"]
    assert said == [("steps", 0, 3), ("steps", 1, 3), ("steps", 2, 3)]
    assert list(counted("steps", range(2))) == [0, 1], "nobody has to listen"


def test_lines_come_now_and_then(monkeypatch):
    clock, said = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    listen = now_and_then(said.append, 15.0)
    for second in range(0, 41, 4):
        clock[0] = 100.0 + second
        listen("rows", 1000 * second, 40_000)
    assert said == ["rows, 16,000 of 40,000", "rows, 32,000 of 40,000"]


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_stage_says_how_far_it_is(monkeypatch, capsys, seconds):
    monkeypatch.setattr(errors, "SAYS_EVERY", seconds)
    errors.run_stage(lambda: lambda: report("passes", 3, 7))
    assert ("passes, 3 of 7" in capsys.readouterr().out) == (seconds == 0)


@pytest.mark.parametrize("name", ["few_shot_shapley", "order_sensitivity", "prompt_optimum", "minimal_context"])
def test_truths_that_take_long_count_their_instances(few_shot, name):
    said = []
    with listening(lambda *step: said.append(step)):
        make(FAMILIES.find(name)(), few_shot, "train", 5, 0, "stage", b"key")
    assert [step for step in said if step[0] == "instances"] == [("instances", i, 5) for i in range(5)]
