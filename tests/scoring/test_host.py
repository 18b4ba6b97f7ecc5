"""The host of unreviewed code, seen from our side: a stand-in sends what a method's process would."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from stages.contracts.method import Interpretation, Method
from stages.errors import MethodError
from stages.execution.answering import asked_of
from stages.metering.cpu_time import Calibration
from stages.sandbox.host import Reply
from stages.scoring import isolated
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Source
from stages.scoring.evaluate import questions
from stages.scoring.isolated import MAX_RESTARTS, Isolated, TargetGuard
from stages.scoring.settings import settings
from stages.tracing.program import Refused
from stages.tracing.recording import record
from stages.tracing.running import run
from tests.conftest import make_target

CASE = ("active_learning", "digits_mlp")
BIAS = torch.arange(2.0)
MINE = Candidate("mine", Source("mine.py", "its text"))


class Outputs(Method):
    def interpret(self, target, budget):
        return Interpretation({"w": torch.ones(10, 2)}, {"hooks": sorted(target.weights())[:1]})

    def answer(self, query, interpretation, target):
        return target.forward(query.inputs).outputs @ interpretation.arrays["w"] + BIAS


class Process:
    """In place of a process: runs ``method`` here, ends where it is told to, and its clock is a list."""

    made: ClassVar[list] = []
    method: Method = Outputs()
    adaptive = False
    dies: ClassVar[list] = []
    """One per question it is asked to record; whether it ends over it."""

    def __init__(self, source, name, timeout_s, *, shown="", trust=False):
        text = None if source is None else Path(source).read_text(encoding="utf-8")
        self.facts = (text, name, timeout_s, shown, trust)
        self.name, self.timeout_s, self.usage_s, self.closed, self.asked, self.ran = name, timeout_s, 0.0, 0, [], []
        self.now = 0.0
        type(self).made.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.closed += 1
        self.usage_s = self.usage_s or 7.0

    def cpu_seconds(self):
        self.now += 1.5
        return self.now

    def interpret(self, access, max_bytes, seed):
        self.asked.append((access.spec.name, max_bytes, seed, dict(access.dictionaries())))
        return self.method.interpret(access, None)

    def record(self, question, n_variants, interpretation, spec, weights=None):
        self.asked.append((question, self.timeout_s))
        if self.dies and self.dies.pop(0):
            raise MethodError(self.name, "answer", f"end {len(self.made)}", "", "a wall")
        return record(self.method, question, interpretation, spec, n_variants, weights)

    def answer(self, query, interpretation, access):
        return Reply(self.method.answer(query, interpretation, access), 0.0, 1000)

    def run(self, program, plan, inputs, access):
        self.ran.append((self.name, self.timeout_s))
        if self.dies and self.dies.pop(0):
            raise MethodError(self.name, "answer", "it ended", "", "process boundary")
        return run(program, plan, inputs, access)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(isolated, "MethodProcess", Process)
    monkeypatch.setattr(isolated, "_runners", {})
    monkeypatch.setattr(isolated, "dictionaries_of", lambda target: {"of": target})
    for name, value in (("made", []), ("method", Outputs()), ("adaptive", False), ("dies", [])):
        monkeypatch.setattr(Process, name, value)


def host(**options):
    limits = settings().interpretation.model_copy(update={"seed": 5})
    return Isolated(limits, **options)


def frozen_of(of, n_fresh=None):
    return of.freeze(MINE, [CASE[1]], questions([CASE], n_fresh))[CASE[1]]


def test_one_process_interprets_on_every_target_and_records(graph):
    made = host(timeout_s=90.0).freeze(MINE, ["digits_mlp", "digits_few_shot"], questions([CASE]))
    (process,) = Process.made
    assert process.facts == ("its text", "mine", 60, "mine.py", False) and process.closed == 1
    assert process.asked[:2] == [(name, 8_000_000, 5, {"of": name}) for name in ("digits_mlp", "digits_few_shot")]
    assert process.asked[2][1] == 90.0 and len(process.asked) == 3  # an answer has the whole limit
    assert [one.cpu_s for one in made.values()] == [1.5, 1.5] and not any(one.adaptive for one in made.values())
    assert torch.equal(made["digits_mlp"].interpretation().arrays["w"], torch.ones(10, 2))
    assert [len(one.programs) for one in made.values()] == [1, 0]
    Process.made.clear()
    host(timeout_s=3.0, trust=True).freeze(MINE, ["digits_mlp"])
    (process,) = Process.made
    assert process.facts[2:] == (3.0, "mine.py", True) and len(process.asked) == 1


def test_an_adaptive_method_is_not_recorded(graph, monkeypatch):
    monkeypatch.setattr(Process, "adaptive", True)
    frozen = frozen_of(host())
    assert frozen.adaptive and frozen.programs == {} and len(Process.made[0].asked) == 1


def test_only_source_runs_apart(graph):
    with pytest.raises(ValueError, match="x is an instance: only source runs isolated"):
        host().freeze(Candidate("x", Outputs()), ["digits_mlp"])


def many(n):
    """n questions that differ in how many inputs there are."""
    task = cached_task(*CASE)
    return {"digits_mlp": [asked_of(task, 10 + i) for i in range(n)]}


def outcomes(made):
    return [one.reason if isinstance(one, Refused) else "recorded" for one in made["digits_mlp"].programs.values()]


def test_a_process_that_ends_over_an_answer_is_started_again_twice(graph, monkeypatch):
    assert MAX_RESTARTS == 2
    dies = [True, False, True, False, True]
    monkeypatch.setattr(Process, "dies", dies)
    made = host(timeout_s=70.0).freeze(MINE, ["digits_mlp"], many(8))
    last = "end 3; it was not tried again after 3 times"
    assert outcomes(made) == ["end 1", "recorded", "end 2", "recorded", "end 3", last, last, last]
    assert len(Process.made) == 3 and [one.facts[2] for one in Process.made] == [60, 70.0, 70.0]
    assert all(one.closed for one in Process.made)
    assert {one.layer for one in made["digits_mlp"].programs.values() if isinstance(one, Refused)} == {"a wall"}


def test_a_question_is_recorded_once(graph):
    asked = many(2)
    made = host().freeze(MINE, ["digits_mlp"], {"digits_mlp": [*asked["digits_mlp"], *asked["digits_mlp"]]})
    assert outcomes(made) == ["recorded"] * 2 and len(Process.made[0].asked) == 3


def test_a_recorded_answer_runs_where_no_method_is(graph):
    of, task, target = host(timeout_s=33.0), cached_task(*CASE), cached_target(CASE[1])
    frozen = frozen_of(of)
    first, second = (of.ask(MINE, frozen, task, target) for _ in range(2))
    assert first.status == "ok" and np.array_equal(first.rows, second.rows)
    wanted = target.model(task.instances.arrays["inputs"]) @ torch.ones(10, 2) + BIAS
    assert np.allclose(first.rows[:, 0], wanted.detach().numpy(), atol=1e-4)
    assert first.own_flops == 2 * 10 * 2 + 2 and first.target_flops > 0 == first.unseen_flops
    _, runner = Process.made
    assert runner.facts == (None, "no method", 120.0, "", False) and runner.closed == 0
    assert runner.ran == [("mine", 33.0)] * 2
    isolated.forget_runners()
    assert runner.closed == 1 and isolated._runners == {}
    Isolated(of.config, trust=True).ask(MINE, frozen, task, target)
    assert Process.made[-1].facts[-1] is True and list(isolated._runners) == [True]


def test_a_runner_that_failed_is_not_used_again(graph, monkeypatch):
    of, task, target = host(), cached_task(*CASE), cached_target(CASE[1])
    frozen = frozen_of(of)
    monkeypatch.setattr(Process, "dies", [True])
    failed = of.ask(MINE, frozen, task, target)
    assert (failed.status, failed.layer) == ("failed", "process boundary") and "it ended" in failed.reason
    assert Process.made[-1].closed == 1 and isolated._runners == {} and failed.target_flops > 0
    assert of.ask(MINE, frozen, task, target).status == "ok" and len(Process.made) == 3
    monkeypatch.setattr(Process, "close", lambda self: (_ for _ in ()).throw(OSError("gone already")))
    isolated.forget_runners()
    assert isolated._runners == {}


def test_an_answer_that_declines_starts_nothing(graph, monkeypatch):
    class Nothing(Outputs):
        def answer(self, query, interpretation, target):
            return None

    monkeypatch.setattr(Process, "method", Nothing())
    of = host()
    answered = of.ask(MINE, frozen_of(of), cached_task(*CASE), cached_target(CASE[1]))
    assert answered.status == "declined" and len(Process.made) == 1


def test_shapes_that_nobody_foresaw_are_recorded_then(graph):
    of, task, target = host(timeout_s=8.0, trust=True), cached_task(*CASE), cached_target(CASE[1])
    bare = of.freeze(MINE, [CASE[1]])[CASE[1]]
    assert bare.programs == {} and of.ask(MINE, bare, task, target).status == "ok"
    assert Process.made[1].facts == ("its text", "mine", 8.0, "mine.py", True) and Process.made[1].closed == 1
    assert len(Process.made) == 3


def test_what_a_program_holds_counts_against_the_room_left_by_the_interpretation(graph):
    task, target = cached_task(*CASE), cached_target(CASE[1])
    frozen = frozen_of(host())
    for spare, status in ((8, "ok"), (7, "failed")):  # BIAS is in the program
        limits = settings().interpretation.model_copy(update={"max_bytes": frozen.n_bytes + spare})
        assert Isolated(limits).ask(MINE, frozen, task, target).status == status


RATES = Calibration(1e6, 0.0, 1, empty_s=2.0, byte_s=0.001)


def adaptive(monkeypatch, answer=None, **options):
    class Mine(Outputs):
        def answer(self, query, interpretation, target):
            return (answer or super().answer)(query, interpretation, target)

    for name, value in (("method", Mine()), ("adaptive", True)):
        monkeypatch.setattr(Process, name, value)
    monkeypatch.setattr(isolated, "measured", lambda trust: RATES)
    of = host(**options)
    return of.ask(MINE, frozen_of(of), cached_task(*CASE), cached_target(CASE[1]))


def test_an_adaptive_answer_is_charged_by_the_clock_of_its_process(graph, monkeypatch):
    answered = adaptive(monkeypatch, timeout_s=9.0, trust=True)
    process = Process.made[-1]
    assert process.facts == ("its text", "mine", 9.0, "mine.py", True) and process.closed >= 1
    # It used 7 - 1.5 s; 2 s and a millisecond for each of 1,000 bytes are not charged. Twice the rate, 50 instances.
    assert answered.own_flops == pytest.approx(2 * 1e6 * (5.5 - 3.0) / 50)
    assert answered.unseen_flops == pytest.approx(2 * 1e6 * 3.0 / 50)
    assert answered.status == "ok" and answered.rows.shape == (50, 1, 2) and host().timeout_s == 120.0
    assert (answered.reason, answered.layer) == ("", "") and answered.target_flops > 0


def test_an_adaptive_answer_that_fails_pays_for_its_time(graph, monkeypatch):
    def broken(query, interpretation, target):
        raise MethodError("mine", "answer", "it broke", "", "memory limit")

    answered = adaptive(monkeypatch, broken)
    assert (answered.status, answered.reason, answered.layer) == ("failed", "it broke", "memory limit")
    assert answered.rows is None and answered.target_flops == 0
    assert answered.own_flops == pytest.approx(2 * 1e6 * (5.5 - 2.0) / 50)
    assert adaptive(monkeypatch, lambda *of: None).status == "declined"
    assert adaptive(monkeypatch, lambda *of: torch.ones(3, 2)).status == "failed"


def test_an_adaptive_answer_that_changes_the_target_is_void(graph, monkeypatch):
    weight = next(cached_target(CASE[1]).model.parameters())
    kept = weight.detach().clone()

    def tampers(query, interpretation, target):
        weight.data.mul_(1.01)
        return target.forward(query.inputs).outputs

    try:
        answered = adaptive(monkeypatch, tampers)
    finally:
        weight.data.copy_(kept)
    assert (answered.status, answered.rows, answered.layer) == ("void", None, "read-only target")
    assert answered.reason.startswith("answer to Represent on digits_mlp: the target's weights changed")


def test_a_guard_says_what_changed(mlp):
    weight = next(mlp.model.parameters())
    kept = weight.detach().clone()
    try:
        weight.data.mul_(1.01)
        with TargetGuard(mlp) as guard:
            pass
    finally:
        weight.data.copy_(kept)
    assert guard.fault() == "the target's weights are not those of its digest"
    with contextlib.ExitStack() as stack, TargetGuard(mlp) as guard:
        hook = mlp.model.register_forward_hook(lambda model, inputs, outputs: outputs + 1)
        stack.callback(hook.remove)
    assert guard.fault() == "the target's outputs on a probe changed while the method ran"
    seen = []

    def look(model, inputs, outputs):
        seen.append((len(outputs), torch.is_grad_enabled()))

    hook = mlp.model.register_forward_hook(look)
    with TargetGuard(mlp):
        pass
    hook.remove()
    assert seen == [(16, False)] * 2


def test_what_is_not_charged_is_the_median_of_empty_answers(graph, monkeypatch):
    used = iter([1.0, 5.0, 9.0, 4.0, 2.0, 6.0])  # empty and served, in turn

    class Timed(Process):
        def close(self):
            if not self.closed:
                self.usage_s = 1.5 + next(used)
            self.closed += 1

        def answer(self, query, interpretation, access):
            labels = query.labels
            self.asked.append((len(query.inputs), None if labels is None else (labels.dtype, labels.tolist())))
            return Reply(None, 0.0, 0 if query.labels is None else 100)

    monkeypatch.setattr(isolated, "MethodProcess", Timed)
    monkeypatch.setattr(isolated, "calibrate", lambda: Calibration(1e6, 0.0, 1))
    monkeypatch.setattr(isolated, "_smallest", lambda: make_target("digits_mlp", steps=0, n=300))
    rates = isolated.measured.__wrapped__(True)
    assert rates.empty_s == 2.0 and rates.byte_s == pytest.approx((5.0 - 2.0) / 100) and rates.dense == 1e6
    assert len(Process.made) == 6 and {one.facts[1:] for one in Process.made} == {("empty", 60.0, "", True)}
    assert all("adaptive = True" in one.facts[0] for one in Process.made)
    labelled = (256, (torch.int64, [0] * 256))  # as labels are
    assert [one.asked[0] for one in Process.made] == [(256, None), labelled] * 3


@pytest.mark.parametrize(("served_s", "n_bytes", "wanted"), [(0.5, 10, 0.0), (3.0, 0, 2.0)])
def test_a_served_byte_is_never_worth_less_than_nothing(graph, monkeypatch, served_s, n_bytes, wanted):
    class Timed(Process):
        def answer(self, query, interpretation, access):
            self.usage_s = 1.5 + (1.0 if query.labels is None else served_s)
            return Reply(None, 0.0, n_bytes)

    monkeypatch.setattr(isolated, "MethodProcess", Timed)
    monkeypatch.setattr(isolated, "calibrate", lambda: Calibration(1e6, 0.0, 1))
    rates = isolated.measured.__wrapped__(False)
    assert rates.empty_s == 1.0 and rates.byte_s == pytest.approx(wanted)


def test_it_is_measured_on_the_smallest_target(monkeypatch, graph):
    sizes = {"digits_few_shot": 3, "digits_mlp": 2}

    def target(name):
        model = SimpleNamespace(state_dict=lambda: {"a": torch.zeros(sizes[name]), "b": torch.zeros(1)})
        return SimpleNamespace(name=name, model=model)

    monkeypatch.setattr(isolated, "cached_target", target)
    assert isolated._smallest().name == "digits_mlp"
    sizes["digits_mlp"] = 4
    assert isolated._smallest().name == "digits_few_shot"
