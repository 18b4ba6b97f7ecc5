"""The account, the rate of CPU time, and what a quote is worth."""

import pytest
import torch

from stages.contracts.target import Intervention, Objective
from stages.metering import cpu_time
from stages.metering.access import MeteredAccess, PhaseError
from stages.metering.cpu_time import MARGIN, Calibration, calibrate
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable

HOOK = "layers.0.hook_post"


def stacked(target):
    return {name: torch.stack([value, value * 0.5, value * 0]) for name, value in target.model.state_dict().items()}


def forward_flops(batch: int) -> int:
    return batch * (sum(2 * i * o + o for i, o in [(64, 64), (64, 32), (32, 10)]) + 64 + 32)


def test_a_ledger_adds_up_calls_and_windows():
    ledger = Ledger()
    assert (ledger.flops, ledger.calls) == (0, 0)
    ledger.charge(5)
    with ledger.window() as outer:
        ledger.charge(0)
        with ledger.window() as inner:
            ledger.charge(7)
    assert (ledger.flops, ledger.calls) == (12, 3)
    assert (outer.flops, outer.calls, inner.flops, inner.calls) == (7, 2, 7, 1)
    with pytest.raises(ValueError, match="never negative"):
        ledger.charge(-1)
    assert (ledger.flops, ledger.calls) == (12, 3)


def test_a_window_counts_what_was_charged_before_an_error():
    ledger = Ledger()
    with pytest.raises(KeyError), ledger.window() as window:
        ledger.charge(3)
        raise KeyError
    assert (window.flops, window.calls) == (3, 1)


def test_cpu_time_is_worth_the_fastest_rate_twice():
    one = Calibration(dense=100.0, spread=0.1, n=3, empty_s=0.5, byte_s=0.25)
    assert one.flops(2.0) == 2 * 100.0 * 2.0 and one.flops(0.0) == one.flops(-1.0) == 0.0
    assert one.allowed_s(0) == 0.5 and one.allowed_s(8) == 2.5 and MARGIN == 2.0
    fresh = Calibration(dense=100.0, spread=0.1, n=3)
    assert fresh.allowed_s(10) == 0.0, "nothing is allowed until it is measured"


def test_the_rate_is_the_fastest_of_the_repeats(monkeypatch):
    """Seconds that a clock would give, two products per repeat; the rate is of 2 n^3 operations each."""
    seconds = iter([2.0, 1.0, 4.0, 0.5, 1.0, 2.0])
    calls = []
    before = torch.get_num_threads()

    def timed(work, times):
        calls.append((work(), times, torch.get_num_threads()))
        return next(seconds)

    monkeypatch.setattr(cpu_time, "_seconds", timed)
    calibrate.cache_clear()
    found = calibrate(3)
    calibrate.cache_clear()
    flops = 2 * 1024**3
    assert found.dense == flops / 0.5 and found.n == 6
    rates = sorted(flops / s for s in (2.0, 1.0, 4.0, 0.5, 1.0, 2.0))
    assert found.spread == pytest.approx((rates[-1] - rates[0]) / rates[3])
    assert {(times, threads) for _, times, threads in calls} == {(1, 1)} and torch.get_num_threads() == before
    assert float(calls[0][0][0, 0]) == float(calls[1][0][0, 0]) == 1024.0, "a product of ones in torch and in numpy"
    assert (found.empty_s, found.byte_s) == (0.0, 0.0)


def test_seconds_are_per_time_and_the_first_is_not_counted(monkeypatch):
    clock, done = [10.0], []

    def work():
        done.append(clock[0])
        clock[0] += 3.0

    monkeypatch.setattr(cpu_time.time, "thread_time", lambda: clock[0])
    assert cpu_time._seconds(work, 4) == 3.0 and len(done) == 5
    assert cpu_time._seconds(lambda: None, 2) == 1e-9 / 2


def test_a_quote_is_what_the_ledger_is_charged(mlp):
    """Forward, interventions, gradients; the target, one variant, several: asked before, charged after."""
    corpus = mlp.corpus("train")
    inputs, labels = corpus.inputs[:3], corpus.labels[:3]
    ledger = Ledger()
    access = MeteredAccess(mlp, ledger, variants=stacked(mlp))
    changes = [(HOOK, "add", torch.ones(3, 64), None, [])]
    as_made = [Intervention(HOOK, "add", torch.ones(3, 64))]
    cases = [
        ("forward", (inputs, [HOOK], [], None), lambda: access.forward(inputs, [HOOK])),
        ("forward", (inputs, [], changes, None), lambda: access.forward(inputs, (), as_made)),
        ("forward", (inputs, [], [], 2), lambda: access.variant(2).forward(inputs)),
        ("forward", (inputs, [], changes, [0, 1]), lambda: access.variants([0, 1]).forward(inputs, (), as_made)),
    ]
    for given in (labels, None):
        about = Objective("loss", given)
        cases += [
            (
                "gradients",
                (inputs, "loss", given, ["input"], None),
                lambda o=about: access.gradients(inputs, o, ["input"]),
            ),
            (
                "gradients",
                (inputs, "loss", given, [HOOK], [2, 2, 0]),
                lambda o=about: access.variants([2, 2, 0]).gradients(inputs, o, [HOOK]),
            ),
        ]
    cases += [
        ("weights", (["unembed.bias"], 1), lambda: access.variant(1).weights(["unembed.bias"])),
        ("weights", (["unembed.bias"], [2, 0]), lambda: access.variants([2, 0]).weights(["unembed.bias"])),
    ]
    for name, args, make in cases:
        quoted = access.quote(name, args)
        with ledger.window() as window:
            make()
        assert window.flops == quoted > 0, (name, args[-1])
    assert access.quote("weights", (["unembed.bias"], [2, 0])) == 2 * 10, "one for every number that is read"
    with pytest.raises(ValueError, match="open in interpret"):
        access.quote("weights", (["unembed.bias"], None))
    plain = access.quote("forward", (inputs, [], [], None))
    assert plain == forward_flops(3)
    assert access.quote("forward", (inputs, [], changes, None)) == plain + 3 * 64
    assert access.quote("forward", (inputs, [], [], [0, 1, 2])) == 3 * plain
    with pytest.raises(ValueError, match="variant 3 does not exist"):
        access.quote("forward", (inputs, [], [], [0, 3]))


def test_gradients_by_the_targets_own_answer_cost_its_argmax(mlp):
    corpus = mlp.corpus("train")
    access = MeteredAccess(mlp, Ledger())
    own = access.quote("gradients", (corpus.inputs[:3], "loss", None, ["input"], None))
    given = access.quote("gradients", (corpus.inputs[:3], "loss", corpus.labels[:3], ["input"], None))
    assert own == given + 30, "one per output"
    other = access.quote("gradients", (corpus.inputs[:3], "logit", corpus.labels[:3], ["input"], None))
    assert other < given, "a logit needs no softmax on its way back"


def test_each_kind_of_change_has_a_price_of_its_own(mlp):
    """Adding and scaling are work; zeros and a value that is there are none, choosing units is a look-up."""
    inputs = mlp.corpus("train").inputs[:3]
    access, plain = MeteredAccess(mlp, Ledger()), forward_flops(3)

    def price(kind, value=None, axis=None, indices=()):
        return access.quote("forward", (inputs, [], [(HOOK, kind, value, axis, list(indices))], None)) - plain

    assert price("zero") == 0 and price("set", torch.ones(())) == 0
    assert price("add", torch.ones(64)) == price("scale", torch.ones(64)) == 3 * 64
    some = price("scale", torch.ones(()), 1, (0, 5))
    assert some == 3 * 2 * 3, "two units of three rows are looked up, scaled and put back"
    assert price("scale", torch.ones(()), 1, (0, 5, 7, 9)) == 2 * some


def test_stacked_variants_are_the_variants_one_behind_the_other(mlp):
    corpus = mlp.corpus("train")
    inputs, about = corpus.inputs[:3], Objective("margin", corpus.labels[:3])
    ledger = Ledger()
    access = MeteredAccess(mlp, ledger, variants=stacked(mlp))
    together = access.variants([1, 0])
    found = together.forward(inputs, [HOOK], [Intervention(HOOK, "scale", torch.tensor(0.5))])
    assert ledger.calls == 2 and together.spec == mlp.spec
    each = [access.variant(i).forward(inputs, [HOOK], [Intervention(HOOK, "scale", torch.tensor(0.5))]) for i in (1, 0)]
    assert torch.equal(found.outputs, torch.stack([one.outputs for one in each]))
    assert torch.equal(found.captured[HOOK], torch.stack([one.captured[HOOK] for one in each]))
    slopes = together.gradients(inputs, about, ["input", HOOK])
    alone = [access.variant(i).gradients(inputs, about, ["input", HOOK]) for i in (1, 0)]
    assert torch.equal(slopes.values, torch.stack([one.values for one in alone]))
    for name in ("input", HOOK):
        assert torch.equal(slopes.grads[name], torch.stack([one.grads[name] for one in alone]))
    assert list(slopes.captured) == [HOOK]
    assert torch.equal(slopes.captured[HOOK], torch.stack([one.captured[HOOK] for one in alone]))


def test_stacked_variants_open_nothing(mlp):
    access = MeteredAccess(mlp, Ledger(), variants=stacked(mlp), free=True)
    with pytest.raises(ValueError, match="name at least one"):
        access.variants([])
    together = access.variants([0])
    for ask in (lambda: together.variant(0), lambda: together.variants([0])):
        with pytest.raises(ValueError, match="a variant has no variants"):
            ask()
    for ask in (together.corpus, together.dictionaries):
        with pytest.raises(PhaseError, match="interpret"):
            ask()
    for index in (3, -1):
        with pytest.raises(ValueError, match="numbered from 0"):
            access.variant(index)
    with pytest.raises(ValueError, match="has 0 variants"):
        MeteredAccess(mlp, Ledger()).variant(0)
    for ask in (access.variant(0).corpus, access.variant(0).dictionaries):
        with pytest.raises(PhaseError, match="interpret"):
            ask()
    with pytest.raises(ValueError, match="has 0 variants"):
        access.variant(0).variant(0)


def test_what_is_captured_comes_in_the_order_it_was_asked_for_and_is_a_copy(mlp):
    inputs = mlp.corpus("train").inputs[:3]
    access = MeteredAccess(mlp, Ledger())
    later = "layers.1.hook_post"
    assert list(access.forward(inputs, [later, HOOK]).captured) == [later, HOOK]
    slopes = access.gradients(inputs, Objective("loss"), [later, "input", HOOK])
    assert list(slopes.captured) == [later, HOOK] and list(slopes.grads) == [later, "input", HOOK]
    assert not slopes.values.requires_grad and not slopes.captured[HOOK].requires_grad
    assert not slopes.grads["input"].requires_grad and not inputs.requires_grad


def test_a_hook_point_that_the_objective_does_not_reach_has_no_slope(mlp):
    """With a set activation nothing before it matters; allow_unused gives zeros rather than an error."""
    stack = {name: torch.stack([value * 0]) for name, value in mlp.model.state_dict().items()}
    access = MeteredAccess(mlp, Ledger(), variants=stack)
    inputs = mlp.corpus("train").inputs[:3]
    slopes = access.variant(0).gradients(inputs, Objective("logit"), ["input"])
    assert torch.equal(slopes.grads["input"], torch.zeros_like(inputs))


def test_the_free_phase_hands_out_copies_of_what_is_open(mlp):
    access = MeteredAccess(mlp, Ledger(), free=True, dictionaries=lambda: {"a": None})
    assert access.dictionaries() == {"a": None} and MeteredAccess(mlp, Ledger(), free=True).dictionaries() == {}
    for split in ("train", "validation"):
        corpus = access.corpus(split)
        assert torch.equal(corpus.inputs, mlp.corpus(split).inputs)
        corpus.inputs.zero_(), corpus.labels.fill_(-1)
        assert mlp.corpus(split).inputs.any() and (mlp.corpus(split).labels >= 0).all()
    assert torch.equal(access.corpus().inputs, mlp.corpus("train").inputs)
    assert access.ledger.flops == 0 and access.weights().keys() == mlp.model.state_dict().keys()


def test_a_table_of_ones_own_prices_calls_and_does_not_touch_the_others(mlp):
    inputs = mlp.corpus("train").inputs[:3]
    dear = MeteredAccess(
        mlp, Ledger(), table=OpTable().extended({"relu": lambda args, out: 10**6}), variants=stacked(mlp)
    )
    dear.forward(inputs)
    assert dear.ledger.flops == forward_flops(3) - 3 * 96 + 2 * 10**6
    with dear.ledger.window() as window:
        dear.variant(0).forward(inputs)
    assert window.flops == dear.quote("forward", (inputs, [], [], None))
    assert MeteredAccess(mlp, Ledger()).quote("forward", (inputs, [], [], None)) == forward_flops(3)


def test_inputs_of_another_dtype_are_made_float_and_pay_for_it(mlp):
    inputs = mlp.corpus("train").inputs[:3]
    access = MeteredAccess(mlp, Ledger())
    assert torch.equal(access.forward(inputs.double()).outputs, access.forward(inputs).outputs)
    with access.ledger.window() as window:
        access.forward(inputs.double())
    assert window.flops == forward_flops(3) + 2 * 3 * 64
