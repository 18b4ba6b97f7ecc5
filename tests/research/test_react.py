"""A language model that works step by step: what it can see, what it pays, what is taken from it."""

import json
from decimal import Decimal

import numpy as np
import pytest
import torch

from stages.contracts.arms import Answered, LadderStep
from stages.contracts.task import Truth
from stages.errors import UserError
from stages.execution import runs
from stages.execution.settings import ExecutorConfig
from stages.research.react import ARMS, MAX_TURNS, N_ASKED, N_KNOWN, Session, most_usd, run_react
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.storage import Task

CONFIG = ExecutorConfig(n_calibration=20, n_seeds=2)


@pytest.fixture(scope="module")
def posed(mlp):
    made = make(family("noise_flip"), mlp, "train", 60, 0, "a", b"key")
    task = Task(family("noise_flip"), mlp.name, "train", made.instances.public(), made.truth)
    return task, runs.baseline_of(task, mlp, CONFIG).rungs[0]


def session(posed, **given) -> Session:
    task, rungs = posed
    rows = task.truth.values.numpy()[..., None]
    return Session(**({"task": task, "arm": "with", "rungs": rungs, "answer": rows, "answer_flops": 7.0, "seed": 0,
                       "config": CONFIG} | given))  # fmt: skip


def test_truths_of_what_is_asked_are_nowhere_it_can_look(posed) -> None:
    task, rungs = posed
    blank = session(posed)
    values = task.truth.values.clone()
    values[torch.from_numpy(blank.asked)] = 0.8765432198765
    marked = Task(task.family, task.target_name, "train", task.instances, Truth(values))
    one = session((marked, rungs), answer=np.zeros((60, 1, 3)))
    said = [one.question(), one.ladder(0), one.ask_method(), repr(one.steps), one.submit([0.0] * N_ASKED, [])]
    assert "0.8765" not in " ".join(said) and len(one.known) == N_KNOWN and len(one.asked) == N_ASKED
    assert not set(one.known) & set(one.asked)
    known = task.truth.values.numpy()[one.known[0], 0]
    assert f"{one.known[0]}: {known:.4g}" in one.question()


def test_what_it_asks_for_is_charged_and_what_is_too_dear_is_refused(posed) -> None:
    task, rungs = posed
    one = session(posed)
    first = one.ladder(0)
    assert one.flops == rungs[0].flops and len(first.splitlines()) == N_KNOWN + N_ASKED
    one.ask_method()
    assert one.flops == rungs[0].flops + 7.0 and one.steps == ["ladder 0", "method"]
    dear = [LadderStep(0, rungs[0].features, 10.0), LadderStep(1, rungs[0].features, 1000.0)]
    poor = session((task, dear), answer_flops=1e9)
    assert "refused" in poor.ask_method() and "refused" in poor.ladder(1) and "no step 2" in poor.ladder(2)
    assert poor.flops == 0.0 and poor.steps == []
    assert "no answer" in session(posed, answer=None).ask_method()


@pytest.mark.parametrize("values", [[], [0.0] * (N_ASKED - 1), [0.0] * (N_ASKED + 1), [float("nan")] * N_ASKED])
def test_predictions_must_be_as_many_finite_numbers(posed, values) -> None:
    one = session(posed)
    with pytest.raises(ValueError, match=f"{N_ASKED} finite numbers"):
        one.submit(values, [])
    assert one.score() == 0.0, "nothing submitted scores what the average scores"
    truth = posed[0].truth.values.numpy()[one.asked, 0]
    assert json.loads(one.submit(truth.tolist(), ["method"])) == truth.tolist()
    assert one.score() == pytest.approx(1.0) and one.used == ("method",)


def scripted(talks: bool = True):
    """A model that asks the method where it can, else the first step, and submits the first column."""
    model = pytest.importorskip("inspect_ai.model", reason="the extra `llm` is not installed")
    offered: list[set[str]] = []

    def call(name: str, given: dict) -> object:
        out = model.ModelOutput.for_tool_call("mockllm", name, given)
        out.usage = model.ModelUsage(input_tokens=10, output_tokens=5, total_tokens=15)
        return out

    def says(messages, tools, choice, config):
        names = {one.name for one in tools}
        offered.append(names)
        results = [one for one in messages if one.role == "tool"]
        first = ("ask_method", {}) if "ask_method" in names else ("ladder", {"step": 0})
        if not talks or not results:
            return call(*first)
        told = next(one.text for one in messages if "Asked instances: " in one.text)
        asked = [number.strip() for number in told.split("Asked instances: ")[1].split(",")]
        table = dict(line.split(": ") for line in results[-1].text.splitlines())
        values = [float(table[number].split()[0]) for number in asked]
        return call("submit", {"predictions": values, "used": ["method" if "ask_method" in names else "ladder 0"]})

    return model.get_model("mockllm/model", custom_outputs=says), offered


def test_an_agent_with_the_truth_for_a_method_is_right_and_its_placebo_is_not(posed, tmp_path) -> None:
    task, rungs = posed
    model, offered = scripted()
    rows = task.truth.values.numpy()[..., None]
    (row,) = run_react(model, [(task, rungs, Answered("ok", rows, 7.0, 0.0))], CONFIG, tmp_path, tell=lambda s: None)
    assert row.with_method > 0.99 > row.placebo and row.alone < 0.99
    assert row.asked and row.read and row.used and row.submitted and row.tokens == 6 * 15 and row.reason == ""
    saved = 0.1 * (rungs[0].flops - 7.0) / session(posed).amount
    assert row.reward == pytest.approx(row.with_method - row.alone + saved, abs=1e-4)
    assert offered[0] == {"ladder", "submit"} and {"ask_method"} <= offered[2]
    logs = "".join(path.name for path in tmp_path.glob("*.eval"))
    assert all(arm in logs for arm in ARMS)


def test_who_never_submits_is_stopped_and_scores_nothing(posed, tmp_path) -> None:
    task, rungs = posed
    model, offered = scripted(talks=False)
    (row,) = run_react(model, [(task, rungs, Answered("declined", None, 0.0, 0.0))], CONFIG, tmp_path,
                       tell=lambda s: None)  # fmt: skip
    assert not row.submitted and row.with_method == row.alone == row.reward == 0.0
    assert len(offered) <= len(ARMS) * MAX_TURNS and "limit" in row.reason


def test_several_items_are_refused_and_the_most_it_may_cost_is_a_bound(posed, tmp_path) -> None:
    pytest.importorskip("inspect_ai", reason="the extra `llm` is not installed")
    task, rungs = posed
    many = Task(task.family, task.target_name, "train", task.instances, Truth(task.truth.values.expand(-1, 3)))
    with pytest.raises(UserError, match="3 items"):
        run_react(None, [(many, rungs, Answered("declined", None, 0.0, 0.0))], CONFIG, tmp_path)
    prices = dict.fromkeys(("input", "output", "cache_read", "cache_write"), Decimal(1))
    assert most_usd(prices, 2, 1000) == Decimal(2 * 3 * MAX_TURNS * 41_000) / 1_000_000 and most_usd({}, 2, 1000) == 0
