"""The executor's rules by hand: what it may spend, what it chooses, what it pays, what it knows for nothing."""

import zlib

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from stages.contracts.arms import Answered, Fit, LadderStep
from stages.contracts.method import Attribute, Compare, Interpretation, Localise, Method, Propose, Represent, Steer
from stages.contracts.pay import Pay
from stages.contracts.target import Component
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.errors import MethodError
from stages.execution import answering, arms, runs
from stages.execution.answering import CHECK, MAX_FEATURES, PRICES, answer_of, ask_in_process, asked_of, checked
from stages.execution.arms import (
    BUDGETS,
    Option,
    _choose,
    as_rows,
    budgets_of,
    rows_shape,
    run_ladder,
    shuffle_rows,
    solve,
    split,
    stream,
)
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.execution.public import plain_outputs, public_features
from stages.execution.settings import ExecutorConfig
from stages.metering.cpu_time import Calibration
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.storage import Task
from stages.tracing.program import Node, Program, Ref, Refused

CONFIG = ExecutorConfig(n_calibration=20, n_seeds=2)
HOOK = "layers.0.hook_post"


class Asks(TaskFamily):
    """A family whose question is given; its two rungs cost one and three forward passes."""

    query_kind = "Represent"
    needs = frozenset()
    n_efforts = 2

    def __init__(self, query=None, silent=False):
        self.asked, self.silent = query, silent

    def generate(self, target, rng, n):
        raise NotImplementedError

    def ground_truth(self, target, instances, rng):
        raise NotImplementedError

    def behavioural(self, access, instances, effort, rng):
        if not self.silent:
            for _ in range(1 + 2 * effort):
                access.forward(instances.arrays["inputs"])
        return torch.rand(instances.n, 1, 2, generator=rng) + effort

    def query(self, instances):
        return self.asked or Represent(instances.arrays["inputs"])


def a_task(target, n=50, items=1, query=None, **kwargs) -> Task:
    corpus = target.corpus("train")
    truth = torch.linspace(0, 1, n * items, dtype=torch.float64).view(n, items)
    return Task(Asks(query, **kwargs), target.name, "train", Instances({"inputs": corpus.inputs[:n]}, n), Truth(truth))


def rung(effort, flops, features=None, n=50):
    return LadderStep(effort, np.zeros((n, 1, 1)) if features is None else features, flops)


# --- draws and splits


def test_a_stream_is_named_by_its_parts():
    assert stream("a", 1).initial_seed() == zlib.crc32(b"('a', 1)") != stream("a", "1").initial_seed()


@pytest.mark.parametrize(("n", "calibration"), [(50, 20), (40, 16), (200, 20), (11, 4)])
def test_at_most_two_fifths_are_for_calibration(mlp, n, calibration):
    task = a_task(mlp, 50)
    task = Task(task.family, task.target_name, "train", Instances({}, n), task.truth)
    mine, rest = split(task, 1, CONFIG)
    assert len(mine) == calibration and sorted([*mine, *rest]) == list(range(n))
    order = torch.randperm(n, generator=stream("split", task.name, 1)).numpy()
    assert np.array_equal(mine, order[:calibration]) and np.array_equal(rest, order[calibration:])


def test_placebo_rows_are_dealt_by_name_and_seed():
    answer = np.arange(60.0).reshape(10, 2, 3)
    dealt = shuffle_rows(answer, "t", 0)
    order = torch.randperm(20, generator=stream("placebo", "t", 0)).numpy()
    assert np.array_equal(dealt.reshape(20, 3), answer.reshape(20, 3)[order])
    assert not np.array_equal(dealt, shuffle_rows(answer, "t", 1))
    assert not np.array_equal(dealt, shuffle_rows(answer, "u", 0))


# --- budgets and choice


def test_budgets_by_hand():
    """Tight is four first rungs, the top is 400: half way between 40 and 400 is their geometric mean."""
    found = budgets_of([rung(0, 10.0), rung(1, 400.0), rung(2, 90.0)])
    assert tuple(found) == BUDGETS == ("tight", "medium", "ample")
    assert found["tight"] == (40.0, 40.0) and found["medium"] == pytest.approx((16000**0.5,) * 2)
    assert found["ample"] == (float("inf"), 400.0)
    low = budgets_of([rung(0, 10.0), rung(1, 20.0)])
    assert low["medium"] == (40.0, 40.0), "never below the tight one"
    assert low["ample"] == (float("inf"), 20.0)


def test_the_cheapest_within_the_margin_is_taken():
    def option(flops, score):
        return Option(flops, Fit("ridge", score), None, False)

    options = [option(0.0, 0.0), option(10.0, 0.5), option(20.0, 0.75), option(30.0, 1.0)]
    assert _choose(options, 30.0, 0.0) is options[3]
    assert _choose(options, 29.0, 0.0) is options[2], "what cannot be paid for is no option, and no measure either"
    assert _choose(options, 30.0, 0.25) is options[2], "at the margin is within it"
    assert _choose(options, 30.0, 0.24) is options[3] and _choose(options, 30.0, 0.5) is options[1]
    assert _choose(options, 0.0, 0.0) is options[0] and _choose(options, 30.0, 1.0) is options[0]
    same = [option(5.0, 0.5), option(5.0, 0.6)]
    assert _choose(same, 9.0, 0.5) is same[1], "of two at one price the better one"


def test_an_option_names_its_rung():
    assert Option(0.0, Fit("mean", 0.0), None, False).effort == -1 and not Option(0, Fit("mean", 0), None, True).free
    assert Option(0.0, Fit("mean", 0.0), rung(3, 1.0), False).effort == 3


def ladder(task, seed=0):
    """Two rungs: noise at 10, the truth with noise at 100."""
    rng = np.random.default_rng(seed)
    truth = task.truth.values.numpy()
    noise = rng.normal(size=(*truth.shape, 1))
    return [rung(0, 10.0, noise), rung(1, 100.0, truth[..., None] + 0.05 * rng.normal(size=noise.shape))]


def test_the_black_box_buys_what_it_can_pay_for(mlp):
    """Tight allows 40, so the good rung at 100 is out of reach; medium allows 63 and ample all."""
    task = a_task(mlp)
    rungs = ladder(task)
    results, fits = solve(task, rungs, None, 0.0, 1, CONFIG)
    assert [(r.budget, r.seed) for r in results] == [(name, 1) for name in BUDGETS]
    assert [r.effort for r in results][2] == 1 and all(r.effort < 1 for r in results[:2])
    assert [r.flops for r in results] == [{-1: 0.0, 0: 10.0, 1: 100.0}[r.effort] for r in results]
    assert [r.budget_flops for r in results] == pytest.approx([40.0, 4000**0.5, 100.0])
    assert all(r.explored_flops == 110.0 and not r.used_answer for r in results) and len(fits) == 2
    assert np.array_equal(results[0].index, split(task, 1, CONFIG)[1])
    truth = task.truth.values.numpy()
    assert task.family.score(results[2].predictions, truth[results[2].index])[0] > 0.9
    assert results[2].cv_score == fits[1].score and results[2].calibrator == fits[1].kind


def test_where_nothing_helps_the_mean_of_the_calibration_labels_is_said_for_nothing(mlp):
    task = a_task(mlp)
    flat = [rung(0, 10.0), rung(1, 100.0)]
    results, _ = solve(task, flat, None, 0.0, 0, CONFIG)
    calibration, evaluation = split(task, 0, CONFIG)
    for result in results:
        assert (result.effort, result.flops, result.calibrator, result.cv_score) == (-1, 0.0, "mean", 0.0)
        assert result.predictions.shape == (len(evaluation), 1)
        assert np.allclose(result.predictions, task.truth.values.numpy()[calibration].mean())


def test_what_the_question_says_is_free(mlp):
    task = a_task(mlp)
    truth = task.truth.values.numpy()[..., None]
    results, fits = solve(task, [rung(0, 10.0), rung(1, 100.0)], None, 0.0, 0, CONFIG, public=truth)
    assert len(fits) == 3 and all(r.flops == 0.0 and r.effort == -1 and not r.used_answer for r in results)
    for result in results:
        assert task.family.score(result.predictions, truth[result.index, :, 0])[0] > 0.95


def test_an_answer_is_used_alone_or_beside_a_rung_at_its_full_price(mlp):
    task = a_task(mlp)
    rungs, truth = ladder(task), task.truth.values.numpy()[..., None]
    _, fits = solve(task, rungs, None, 0.0, 0, CONFIG)
    results, again = solve(task, rungs, truth, 7.0, 0, CONFIG, fits)
    assert again == fits
    assert [(r.used_answer, r.effort, r.flops) for r in results] == [(True, -1, 7.0)] * 3
    assert all(r.explored_flops == 117.0 for r in results)
    # Two halves of the truth: the answer holds the one, the dear rung the other.
    parts = np.random.default_rng(5).normal(size=(50, 1, 2))
    half = Task(task.family, task.target_name, "train", task.instances, Truth(torch.from_numpy(parts.sum(-1))))
    pair = [rung(0, 10.0, np.zeros((50, 1, 1))), rung(1, 30.0, parts[..., :1])]
    both, _ = solve(half, pair, parts[..., 1:], 7.0, 0, CONFIG)
    assert [(r.used_answer, r.effort, r.flops) for r in both] == [(True, 1, 37.0)] * 3
    dear, _ = solve(half, pair, parts[..., 1:], 15.0, 0, CONFIG)
    assert dear[0].flops <= 40.0, "45 is more than four first rungs"
    assert (dear[2].used_answer, dear[2].effort, dear[2].flops) == (True, 1, 45.0)


def test_fits_of_another_ladder_are_refused(mlp):
    task = a_task(mlp)
    _, fits = solve(task, ladder(task), None, 0.0, 0, CONFIG)
    with pytest.raises(ValueError, match="shorter"):
        solve(task, ladder(task), None, 0.0, 0, CONFIG, fits[:1])


def test_an_answer_stands_beside_what_the_question_says(mlp):
    """Alone it always has the question with it: the two halves of the truth together cost what the answer does."""
    task = a_task(mlp)
    parts = np.random.default_rng(5).normal(size=(50, 1, 2))
    half = Task(task.family, task.target_name, "train", task.instances, Truth(torch.from_numpy(parts.sum(-1))))
    flat = [rung(0, 10.0), rung(1, 100.0)]
    results, _ = solve(half, flat, parts[..., 1:], 7.0, 0, CONFIG, public=parts[..., :1])
    assert [(r.used_answer, r.effort, r.flops) for r in results] == [(True, -1, 7.0)] * 3
    assert min(half.family.score(r.predictions, half.truth.values.numpy()[r.index])[0] for r in results) > 0.7


# --- the ladder


def test_rungs_are_metered_per_instance_and_drawn_by_seed(mlp):
    task = a_task(mlp)
    steps, other = run_ladder(task, mlp, 0), run_ladder(task, mlp, 1)
    once = sum(2 * i * o + o for i, o in [(64, 64), (64, 32), (32, 10)]) + 96
    assert [(step.effort, step.flops) for step in steps] == [(0, once), (1, 3 * once)]
    generator = stream("ladder", task.name, 0, 0)
    assert np.allclose(steps[0].features, torch.rand(50, 1, 2, generator=generator).double().numpy())
    assert np.allclose(steps[1].features, steps[0].features + 1), "each rung draws anew from the same stream"
    assert not np.array_equal(steps[0].features, other[0].features)


def test_a_rung_that_costs_nothing_is_refused(mlp):
    with pytest.raises(ValueError, match="rung 0 of the ladder never called the target"):
        run_ladder(a_task(mlp, silent=True), mlp, 0)


# --- what is known for nothing

LABELS = torch.arange(6)


def of_inputs(n=6, *shape):
    return torch.arange(float(n * int(np.prod(shape or (4,))))).view(n, *(shape or (4,)))


def known(mlp, query, items=1):
    return public_features(a_task(mlp, 6, items, query))


def test_a_question_about_inputs_says_the_inputs_and_their_labels(mlp):
    x = of_inputs(6, 2, 2)
    assert np.array_equal(known(mlp, Represent(x)), x.flatten(1)[:, None].numpy())
    found = known(mlp, Represent(x, LABELS), 3)
    assert (
        found.shape == (6, 3, 5) and np.array_equal(found[:, 1, 4], LABELS) and np.array_equal(found[2, 0], found[2, 2])
    )


def test_a_question_about_segments_says_each_its_own(mlp):
    x = of_inputs(6, 4, 2)
    found = known(mlp, Attribute(x, ((0, 1), (2, 3)), LABELS), 2)
    assert found.shape == (6, 2, 5)
    assert found[3, 1].tolist() == [*x[3, 2:4].flatten().tolist(), 3.0]
    assert known(mlp, Attribute(x, ((0, 1), (2, 3))), 2).shape == (6, 2, 4)
    uneven = known(mlp, Attribute(x, ((0,), (1, 2, 3))), 2)
    assert uneven.shape == (6, 2, 8) and np.array_equal(uneven[:, 0], x.flatten(1)), "unequal segments: all of it"
    assert known(mlp, Attribute(x, ((0, 1), (2, 3))), 1).shape == (6, 1, 8)


def test_a_question_about_components_says_its_label_and_other_questions_what_they_name(mlp):
    labels = torch.tensor([[1, 3]] * 5 + [[2, 2]])
    parts = (Component(HOOK, 1, 0), Component(HOOK, 1, 1))
    assert known(mlp, Localise(of_inputs(6, 2, 64), labels, parts), 2)[:, :, 0].tolist() == [[2.0, 2.0]] * 6
    directions = of_inputs(6, 3)
    assert np.array_equal(known(mlp, Steer(HOOK, directions, of_inputs(2, 64)), 2)[:, 1], directions)
    steered = known(mlp, Steer(HOOK, directions, of_inputs(2, 64), LABELS), 2)
    assert steered.shape == (6, 2, 4) and steered[:, 1, 3].tolist() == list(range(6))
    proposed = known(mlp, Propose(LABELS, of_inputs(6, 64), torch.zeros(2, 64)))
    assert proposed.shape == (6, 1, 65) and proposed[:, 0, 64].tolist() == list(range(6))
    assert known(mlp, Compare((0, 1), of_inputs(2, 64), torch.zeros(2))) is None


def test_what_is_known_is_read_in_single_precision(mlp):
    found = known(mlp, Steer(HOOK, torch.full((6, 1), 0.1, dtype=torch.float64), of_inputs(2, 64)))
    assert found.dtype == np.float64 and found[0, 0, 0] == np.float32(0.1) and found.flags["C_CONTIGUOUS"]


def test_outputs_on_the_inputs_of_the_question_and_their_price(mlp):
    x = mlp.corpus("train").inputs[:6]
    once = sum(2 * i * o + o for i, o in [(64, 64), (64, 32), (32, 10)]) + 96
    found, price = plain_outputs(a_task(mlp, 6, 2), mlp)
    assert price == once and np.allclose(found[:, 1], mlp.model(x).numpy(), atol=1e-6) and found.shape == (6, 2, 10)
    each = mlp.corpus("train").inputs[:12].view(6, 2, 64)
    localise = Localise(each, torch.zeros(6, 2), (Component(HOOK, 1, 0),))
    found, price = plain_outputs(a_task(mlp, 6, 1, localise), mlp)
    assert price == 2 * once
    assert np.allclose(found[:, 0], mlp.model(each.flatten(0, 1)).view(6, 2, 10).mean(1).numpy(), atol=1e-6)
    found, price = plain_outputs(a_task(mlp, 6, 1, Propose(LABELS, x, x)), mlp)
    assert price == once and np.allclose(found[:, 0], mlp.model(x).numpy(), atol=1e-6)
    pairs = Represent(each, LABELS[:6].unsqueeze(1).expand(6, 2), groups=True)
    found, price = plain_outputs(a_task(mlp, 6, 1, pairs), mlp)
    assert price == 2 * once and found.shape == (6, 1, 10)
    for query in (Steer(HOOK, of_inputs(6, 64), x), Propose(LABELS, x, x, variants=(0,)), Compare((0,), x, LABELS)):
        assert plain_outputs(a_task(mlp, 6, 1, query), mlp) == (None, 0.0)


# --- answers


@pytest.mark.parametrize(
    ("shape", "n", "items", "wanted"),
    [
        ((5,), 5, 1, (5, 1, 1)),
        ((5, 7), 5, 1, (5, 1, 7)),
        ((5, 1, 7), 5, 1, (5, 1, 7)),
        ((5, 8), 5, 8, (5, 8, 1)),
        ((5, 8, 3), 5, 8, (5, 8, 3)),
        ((5, 1), 5, 1, (5, 1, 1)),
        ((1, 5), 1, 5, (1, 5, 1)),
    ],
)
def test_shapes_that_are_taken(shape, n, items, wanted):
    assert rows_shape(shape, n, items) == wanted
    values = torch.arange(float(np.prod(shape))).view(shape)
    assert as_rows(values, n, items).tolist() == values.double().view(wanted).tolist()


@pytest.mark.parametrize(
    ("shape", "n", "items", "says"),
    [
        ((4,), 5, 1, r"the query wants \(5, k\)"),
        ((5,), 5, 2, r"the query wants \(5, 2\) or \(5, 2, k\)"),
        ((5, 7), 5, 2, r"it has shape \(5, 7\)"),
        ((4, 7), 5, 1, r"it has shape \(4, 7\)"),
        ((5, 2, 7), 5, 1, "it has shape"),
        ((5, 1, 7, 1), 5, 1, "it has shape"),
        ((), 1, 1, "it has shape"),
        ((2, 5, 3), 5, 2, "it has shape"),
    ],
)
def test_shapes_that_are_not(shape, n, items, says):
    with pytest.raises(ValueError, match=says):
        rows_shape(shape, n, items)


def test_an_answer_is_finite_real_and_not_too_wide(mlp):
    task = a_task(mlp)
    assert checked(None, "m", task) is None
    assert checked(torch.zeros(50, MAX_FEATURES), "m", task).shape == (50, 1, MAX_FEATURES) and MAX_FEATURES == 4096
    assert checked(torch.ones(50, 2, dtype=torch.int64), "m", task).dtype == np.float64
    assert checked(torch.ones(50, 2, requires_grad=True), "m", task).shape == (50, 1, 2)
    bad = torch.zeros(50, 2)
    bad[0, 0] = float("inf")
    for answer, cause in (
        (torch.zeros(50, MAX_FEATURES + 1), "4097 features per row"),
        (bad, r"(?<!\d)1\.0% of its values are NaN or infinite"),
        (torch.zeros(50, 2, dtype=torch.bool), "a tensor of bool"),
        (torch.zeros(50, 2, dtype=torch.complex64), "a tensor of complex64"),
        (torch.zeros(50, 2).to_sparse(), "returned Tensor"),
        (torch.nn.Parameter(torch.zeros(50, 2)), "returned Parameter"),
        (3.0, "returned float"),
        (torch.zeros(49, 2), "it has shape"),
    ):
        with pytest.raises(MethodError, match=cause):
            checked(answer, "m", task)


def test_a_bad_answer_names_the_question_and_the_target(mlp):
    with pytest.raises(MethodError) as caught:
        checked(3.0, "mine", a_task(mlp))
    assert "answer to Represent on digits_mlp" in str(caught.value) and "mine" in str(caught.value)


class Says(Method):
    def __init__(self, body, adaptive=False):
        self.body, self.adaptive = body, adaptive

    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        return self.body(query, target)


def ask(mlp, body, adaptive=False):
    return ask_in_process(Says(body, adaptive), "m", Interpretation(), a_task(mlp), mlp)


def test_an_answer_costs_its_share_per_instance(mlp):
    once = sum(2 * i * o + o for i, o in [(64, 64), (64, 32), (32, 10)]) + 96
    found = ask(mlp, lambda q, t: t.forward(q.inputs).outputs @ torch.ones(10, 3))
    assert (found.status, found.target_flops, found.own_flops, found.unseen_flops) == ("ok", once, 2 * 10 * 3, 0.0)
    assert found.flops == once + 60 and found.rows.shape == (50, 1, 3) and (found.reason, found.layer) == ("", "")


def test_an_adaptive_answer_costs_the_same_and_says_what_could_be_missed(mlp):
    once = sum(2 * i * o + o for i, o in [(64, 64), (64, 32), (32, 10)]) + 96
    found = ask(mlp, lambda q, t: t.forward(q.inputs).outputs @ torch.ones(10, 3) * float(q.inputs.max() > 0), True)
    assert found.status == "ok" and found.target_flops == once and found.unseen_flops > 0
    assert 60 + 3 <= found.own_flops <= 60 + 3 + 64 + 2
    declined = ask(mlp, lambda q, t: None, True)
    assert (declined.status, declined.rows, declined.target_flops, declined.own_flops) == ("declined", None, 0.0, 0.0)
    wrong = ask(mlp, lambda q, t: t.forward(q.inputs).outputs[:3], True)
    assert wrong.status == "failed" and "it has shape" in wrong.reason and wrong.target_flops == once
    broken = ask(mlp, lambda q, t: 1 / 0, True)
    assert broken.status == "failed" and "ZeroDivisionError" in broken.reason and broken.rows is None


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_question_about_variants_reaches_them(mlp, adaptive):
    stack = {name: torch.stack([value, value * 0]) for name, value in mlp.model.state_dict().items()}
    bare = a_task(mlp)
    instances = Instances(bare.instances.arrays, 50, stack)
    task = Task(bare.family, bare.target_name, "train", instances, bare.truth)
    method = Says(lambda q, t: t.variant(1).forward(q.inputs).outputs + 1, adaptive)
    found = ask_in_process(method, "m", Interpretation(), task, mlp)
    assert found.status == "ok" and found.rows.shape == (50, 1, 10) and bool((found.rows == 1).all())


def test_what_could_be_missed_is_what_its_cpu_time_could_have_computed(mlp, monkeypatch):
    """Two seconds on a clock of ours at 100 FLOP/s, doubled, over 50 instances."""
    seconds = iter([5.0, 7.0])
    monkeypatch.setattr(answering.time, "process_time", lambda: next(seconds))
    monkeypatch.setattr(answering, "calibrate", lambda: Calibration(dense=100.0, spread=0.0, n=1))
    assert ask(mlp, lambda q, t: None, True).unseen_flops == 2 * 100.0 * 2.0 / 50


def test_declining_is_no_failure(mlp):
    found = ask(mlp, lambda q, t: None)
    assert (found.status, found.rows, found.flops, found.reason) == ("declined", None, 0.0, "")


def test_each_refusal_names_what_held_it_back(mlp):
    task = a_task(mlp)

    def told(recorded, **kwargs):
        return answer_of(recorded, "m", Interpretation(), task, mlp, **kwargs)

    refused = told(Refused("because", "layer"))
    assert (refused.status, refused.reason, refused.layer, refused.flops) == ("failed", "because", "layer", 0.0)
    x = Ref("query", "inputs")
    unknown = told(Program((Node("aten.igamma.default", (x, x), {}),), Ref("node")))
    assert (unknown.status, unknown.layer, unknown.flops) == ("failed", PRICES, 0.0) and "igamma" in unknown.reason
    shape = told(Program((Node("aten.t.default", (x,), {}),), Ref("node")))
    assert (shape.status, shape.layer, shape.flops) == ("failed", CHECK, 0.0)
    assert "it has shape (64, 50)" in shape.reason and "Return one row per thing asked about." in shape.reason
    forward = Node("target.forward", (x, [], [], None), {})
    half = Program((forward, Node("aten.log.default", (Ref("node"),), {})), Ref("node", index=1))
    nan = told(half)
    assert nan.status == "failed" and "NaN or infinite" in nan.reason and nan.target_flops > 0 and nan.own_flops == 10
    assert nan.rows is None

    def fails(program, dead, inputs, target):
        raise ValueError("it broke on the way")

    broke = told(half, runner=fails)
    assert (broke.status, broke.reason, broke.layer) == ("failed", "it broke on the way", CHECK)
    assert broke.target_flops == nan.target_flops, "priced in full before it ran"
    heavy = Program((Node("aten.relu.default", (x,), {}),), Ref("node"), (torch.ones(2),))
    assert told(heavy, max_constants=8).status == "ok"
    assert "holds 8 bytes of constants; 7 are left" in told(heavy, max_constants=7).reason


def test_the_question_of_fewer_instances(mlp):
    task = a_task(mlp)
    whole, some = asked_of(task), asked_of(task, 3)
    assert whole.question.inputs.shape == (50, 64) and some.question.inputs.shape == (3, 64)
    assert whole.n_variants == some.n_variants == 0 and whole.key(Interpretation()) != some.key(Interpretation())
    stack = {"w": torch.zeros(4, 2)}
    many = Task(task.family, task.target_name, "train", Instances(task.instances.arrays, 50, stack), task.truth)
    assert (asked_of(many).n_variants, asked_of(many, 3).n_variants, asked_of(many, 9).n_variants) == (4, 3, 4)
    assert asked_of(many).key(Interpretation()) == whole.key(Interpretation())[:-1] + "4.[('w', (2,))]"


# --- the calibrator


def test_features_are_bounded_and_blocks_are_joined():
    wild = np.array([[[np.nan, np.inf, -np.inf, 2e6, -2e6, 1.0]]])
    assert assemble(wild).tolist() == [[[0.0, 1e6, -1e6, 1e6, -1e6, 1.0]]]
    one, two = np.arange(6.0).reshape(2, 3, 1), np.arange(6.0).reshape(2, 3, 1) * 10
    found = assemble(one, None, two)
    assert found[1].tolist() == [[3, 30, -1, -10], [4, 40, 0, 0], [5, 50, 1, 10]]
    assert assemble(one[:, :1], two[:, :1]).tolist() == [[[0, 0]], [[3, 30]]], "one item stands out from nothing"


def test_folds_are_dealt_in_turn_and_each_is_predicted_by_the_others():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 1, 2)), rng.normal(size=(30, 1))
    seen = []

    def score(predicted, truth):
        seen.append(predicted.copy())
        return -float(((predicted - truth) ** 2).mean())

    found = cross_validate(x, y, score, 3, 8)
    by_hand = {kind: np.zeros((30, 1)) for kind in ("ridge", "kernel", "mean")}
    for held in (np.arange(30) % 3 == k for k in range(3)):
        for kind, values in Calibrator(8).fit(x[~held], y[~held]).predict(x[held]).items():
            by_hand[kind][held] = values
    scores = {kind: -float(((values - y) ** 2).mean()) for kind, values in by_hand.items()}
    assert found.score == max(scores.values()) and scores[found.kind] == found.score
    assert np.allclose(by_hand["mean"], (by_hand["ridge"] + by_hand["kernel"]) / 2)
    assert all(np.array_equal(values, by_hand[kind]) for kind, values in zip(by_hand, seen, strict=False))


def test_the_size_of_a_feature_does_not_matter():
    x, y = np.random.default_rng(0).normal(size=(40, 1, 1)), np.linspace(0, 1, 40)[:, None]
    x = x * 0.01 + y[..., None]
    small, large = (Calibrator(4).fit(x * size, y).predict(x * size) for size in (1e-6, 1e3))
    for kind in small:
        assert np.allclose(small[kind], large[kind], atol=1e-6) and np.abs(small[kind] - y).max() < 0.2


def test_each_rows_own_label_is_left_out_of_the_mean_of_its_item():
    """Two instances: what is known of an item is the label of the other one, so of two labels each points away from
    itself. Of one instance alone nothing is known, and nothing breaks."""
    y = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 0.0, 3.0, 2.0, 5.0, 4.0]])
    model = Calibrator(4).fit(np.zeros((2, 6, 1)), y)
    slope = (y[0] - 2.5) @ (y[1] - 2.5) / ((y[0] - 2.5) ** 2).sum()
    assert model.predict(np.zeros((1, 6, 1)))["ridge"][0] == pytest.approx(2.5 + slope * (y.mean(0) - 2.5), abs=0.2)
    alone = Calibrator(4).fit(np.zeros((1, 6, 1)), y[:1]).predict(np.zeros((1, 6, 1)))
    assert all(np.isfinite(values).all() for values in alone.values())


def test_a_truth_that_does_not_vary_is_said_as_it_is():
    x = np.random.default_rng(0).normal(size=(20, 1, 3))
    for values in Calibrator(4).fit(x, np.full((20, 1), 0.7)).predict(x).values():
        assert np.allclose(values, 0.7) and values.shape == (20, 1)


def test_the_mean_of_each_item_is_known_from_the_labels():
    """Features say nothing; items differ. By hand: the mean of an item's labels is its best prediction."""
    rng = np.random.default_rng(0)
    level = np.array([0.0, 1.0, 5.0])
    y = level + 0.01 * rng.normal(size=(40, 3))
    x = np.zeros((40, 3, 2))
    found = Calibrator(4).fit(x, y).predict(x[:7])
    assert found["ridge"].shape == (7, 3)
    assert np.allclose(found["ridge"], level, atol=0.05) and np.allclose(found["kernel"], level, atol=0.3)
    pair = Calibrator(4).fit(x[:, :2], y[:, :2]).predict(x[:3, :2])
    assert np.allclose(pair["ridge"], level[:2], atol=0.05)


# --- whole arms


def test_a_rung_is_informed_only_where_that_helps(mlp):
    task = a_task(mlp, 100)
    truth = task.truth.values.numpy()[..., None]
    config = ExecutorConfig(n_calibration=40)
    noise = np.random.default_rng(0).normal(size=(100, 1, 2))
    step = rung(0, 10.0, noise)
    helped = runs._informed(task, step, [truth, None], 0, config)
    assert helped.features.shape == (100, 1, 3) and np.array_equal(helped.features[..., 2:], truth)
    assert np.array_equal(helped.features[..., :2], noise.astype("f4").astype("f8")) and helped.flops == 10.0
    good = rung(0, 10.0, truth)
    left = runs._informed(task, good, [np.random.default_rng(1).normal(size=(100, 1, 40))], 0, config)
    assert left.features.shape == (100, 1, 1)
    level = runs._informed(task, step, [np.zeros((100, 1, 3))], 0, config)
    assert level.features.shape == (100, 1, 2), "what changes nothing is not taken along"
    bare = runs._informed(task, step, [None, None], 0, config)
    assert np.array_equal(bare.features, noise.astype("f4").astype("f8"))


def test_only_a_rung_that_has_paid_for_the_outputs_knows_them(mlp):
    """The truth is an output of the target. The first rung asks about a fifth of the inputs, the second about all."""

    class Fifth(Asks):
        def behavioural(self, access, instances, effort, rng):
            access.forward(instances.arrays["inputs"][: instances.n if effort else instances.n // 5])
            return torch.rand(instances.n, 1, 2, generator=rng)

    inputs = mlp.corpus("train").inputs[:100]
    truth = mlp.model(inputs)[:, :1].double()
    query = Steer("input", torch.zeros(100, 1), inputs[:1])  # says nothing of an instance
    task = Task(Fifth(query), mlp.name, "train", Instances({"inputs": inputs}, 100), Truth(truth))
    blind = runs._baseline_of(task, mlp, ExecutorConfig(n_calibration=40), 0, {})
    assert [step.features.shape[-1] for step in blind.rungs[0]] == [2, 2], "no outputs on inputs of its own"
    told = Task(Fifth(Represent(inputs)), mlp.name, "train", Instances({"inputs": inputs}, 100), Truth(truth))
    found = runs._baseline_of(told, mlp, ExecutorConfig(n_calibration=40), 0, {})
    assert found.rungs[0][0].features.shape[-1] in (2, 2 + 64), "the inputs, and no outputs"
    assert found.rungs[0][1].features.shape[-1] == 2 + 64 + 10
    assert found.rungs[0][0].flops * 5 == found.rungs[0][1].flops
    assert [len(arm) for arm in (found.first, found.second, found.rungs, found.fits)] == [3, 3, 1, 1]


def test_an_arm_has_one_thread_wherever_it_computes():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threadpool_limits(2), runs.one_thread():
            assert torch.get_num_threads() == 1
            assert {pool["num_threads"] for pool in threadpool_info()} == {1}
    finally:
        torch.set_num_threads(before)


def test_arms_without_a_placebo_have_the_baseline_in_its_place(mlp):
    made, config = (
        make(family("noise_flip"), mlp, "train", 60, 0, "a", b"key"),
        ExecutorConfig(n_calibration=20, n_seeds=2),
    )
    task = Task(family("noise_flip"), mlp.name, "train", made.instances.public(), made.truth)
    baseline = runs.baseline_of(task, mlp, config)
    assert len(baseline.rungs) == len(baseline.fits) == 2 and len(baseline.first) == 6
    rows = task.truth.values.numpy()[..., None]
    arms = runs.arms_of(task, baseline, Answered("ok", rows, 1.0, 2.0, "r", "", 3.0), config, placebo=False)
    assert (arms.status, arms.reason, arms.target_flops, arms.own_flops, arms.unseen_flops) == (
        "ok",
        "r",
        1.0,
        2.0,
        3.0,
    )
    assert [r.seed for r in arms.placebo] == [0, 0, 0, 1, 1, 1]
    for one, other in zip(arms.placebo, baseline.first, strict=True):
        assert np.array_equal(one.predictions, other.predictions)
    dealt = runs.arms_of(task, baseline, Answered("ok", rows, 1.0, 2.0), config)
    assert [p.explored_flops for p in dealt.placebo] == [b.explored_flops + 3.0 for b in baseline.first]
    assert [p.explored_flops for p in arms.placebo] == [b.explored_flops for b in baseline.first]
    for status, given, spent in (("failed", rows, 3.0), ("declined", rows, 0.0), ("ok", None, 0.0)):
        none = runs.arms_of(task, baseline, Answered(status, given, 1.0, 2.0), config)
        assert [r.flops for r in none.assisted] == [r.flops + spent for r in baseline.first]
        assert all(
            np.array_equal(r.predictions, b.predictions) for r, b in zip(none.placebo, baseline.first, strict=True)
        )
    alone = runs.seed_of(baseline, 1)
    assert {r.seed for r in alone.first + alone.second} == {1} and alone.rungs == [baseline.rungs[1]]


@pytest.mark.parametrize(
    ("promised", "price", "weight", "taken"),
    [
        (0.55, 10.0, 0.1, True),  # dearer by a tenth of the amount: .05 promised for .01
        (0.53, 90.0, 0.1, False),  # .03 promised for .09
        (0.53, 90.0, 0.01, True),  # the same where compute is cheap
        (0.50, 10.0, 0.1, False),  # nothing promised
        (0.495, -9.0, 0.1, True),  # a little less, and most of a pass saved
        (0.49, -5.0, 0.1, False),  # less than the saving is worth
    ],
)
def test_an_answer_is_taken_where_it_is_expected_to_be_paid_for(promised, price, weight, taken):
    rung = LadderStep(0, np.zeros((1, 1, 1)), 10.0)
    black = [arms.Option(0.0, Fit("mean", 0.0), None, False), arms.Option(10.0, Fit("ridge", 0.5), rung, False)]
    answer = arms.Option(10.0 + price, Fit("ridge", promised), None, True)
    config = ExecutorConfig(pay=Pay(flop_weight=weight))
    chosen = arms._paid_for(black, [answer], float("inf"), 100.0, config)
    assert chosen.used_answer == taken and (taken or chosen is black[1])
    assert arms._paid_for(black, [answer], 10.0, 100.0, config).used_answer == (taken and price < 0)
