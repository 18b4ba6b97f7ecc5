"""What is recorded, checked and run on the data is what the method itself would compute, to the bit and the FLOP."""

import threading

import numpy as np
import pytest
import torch

from stages.contracts.method import Attribute, Compare, Interpretation, Method, Represent
from stages.contracts.target import Intervention, Objective
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable, count_flops
from stages.tracing.checking import check
from stages.tracing.program import (
    FORWARD,
    GRADIENTS,
    MAX_NODES,
    Node,
    Plan,
    Program,
    Ref,
    Static,
    blank,
    key_of,
    tensors_of,
)
from stages.tracing.recording import NeedsValues, record
from stages.tracing.running import run
from tests.conftest import make_target
from tests.tracing.conftest import X, at, op

BIAS = "unembed.bias"
HOOK, LATER = "layers.0.hook_post", "layers.1.hook_post"
NOTHING = Interpretation({"w": torch.linspace(-1, 1, 64 * 3).view(64, 3)}, {"k": 2})


class Of(Method):
    """A method whose answer is a function of the query, I(M) and the target."""

    def __init__(self, body):
        self.body = body

    def interpret(self, target, budget):
        return NOTHING

    def answer(self, query, interpretation, target):
        return self.body(query, interpretation, target)


def variants_of(target):
    return {name: torch.stack([value, value * 0.5, value * 0]) for name, value in target.model.state_dict().items()}


def question(mlp, n=4):
    corpus = mlp.corpus("train")
    return Represent(corpus.inputs[:n], corpus.labels[:n])


def recorded(mlp, body, query=None, n_variants=3):
    shapes = {name: tuple(value.shape) for name, value in mlp.model.state_dict().items()}
    return record(Of(body), blank(query or question(mlp)), NOTHING, mlp.spec, n_variants, shapes)


def both_ways(mlp, body, query=None):
    """(recorded and run, FLOPs of target, own) and the same of a direct call."""
    query = query or question(mlp)
    program = recorded(mlp, body, query)
    given = {Ref("query", key): value for key, value in tensors_of(query).items()}
    given |= {Ref("array", key): value for key, value in NOTHING.arrays.items()}
    ledger, direct = Ledger(), Ledger()
    access = MeteredAccess(mlp, ledger, variants=variants_of(mlp))
    plan = check(program, given, access, OpTable(), 10**6)
    assert ledger.flops == 0, "checking runs nothing"
    found = run(program, plan, given, access)
    assert ledger.flops == plan.target_flops, "what is quoted is what is charged"
    target = MeteredAccess(mlp, direct, variants=variants_of(mlp))
    with torch.no_grad(), count_flops() as count:
        expected = body(query, NOTHING, target)
    assert direct.flops == plan.target_flops
    return found, expected, plan, count.flops - direct.flops, program


OBJECTIVE = Objective("loss", None)
METHODS = {
    "no target": lambda q, i, t: (q.inputs @ i.arrays["w"]).relu().softmax(-1),
    "in place": lambda q, i, t: (q.inputs * 2).add_(1.0).clamp_(min=0.5).sum(-1, keepdim=True),
    "two results": lambda q, i, t: torch.cat(q.inputs.sort(dim=-1)[:1] + q.inputs.topk(3)[:1], -1),
    "a constant": lambda q, i, t: q.inputs[:, :3] * torch.tensor([1.0, -2.0, 3.0]) + torch.ones(3),
    "a parameter of its data": lambda q, i, t: q.inputs[:, : i.data["k"]],
    "integers": lambda q, i, t: (q.labels[:, None] % 3 + q.labels).float(),
    "a mask": lambda q, i, t: torch.where(q.inputs > 0.2, q.inputs, -1.0).double().float(),
    "a loop": lambda q, i, t: torch.stack([q.inputs[:, k] * k for k in range(5)], 1),
    "forward": lambda q, i, t: t.forward(q.inputs).outputs,
    "capture": lambda q, i, t: torch.cat([*t.forward(q.inputs, [LATER, HOOK]).captured.values()], -1),
    "gradients": lambda q, i, t: torch.cat(
        [*t.gradients(q.inputs, Objective("margin", q.labels), ["input", HOOK]).grads.values()], -1
    ),
    "values of gradients": lambda q, i, t: t.gradients(q.inputs, Objective("entropy"), ["input"]).values,
    "activations of gradients": lambda q, i, t: t.gradients(q.inputs, OBJECTIVE, ["input", LATER]).captured[LATER],
    "interventions": lambda q, i, t: (
        t.forward(
            q.inputs,
            [LATER],
            [
                Intervention(HOOK, "scale", torch.tensor(0.5), 1, (3, 5)),
                Intervention(HOOK, "add", i.arrays["w"].T[:1] * 0.1),
                Intervention(LATER, "zero", None, 1, (0,)),
                Intervention(LATER, "set", torch.ones(()), 1, (1,)),
            ],
        ).outputs
    ),
    "one variant": lambda q, i, t: t.variant(1).forward(q.inputs).outputs,
    "gradients of a variant": lambda q, i, t: t.variant(1).gradients(q.inputs, OBJECTIVE, [HOOK]).grads[HOOK],
    "stacked variants": lambda q, i, t: t.variants([2, 0, 1]).forward(q.inputs).outputs.sum(0),
    "captured of stacked variants": lambda q, i, t: t.variants([0, 1]).forward(q.inputs, [HOOK]).captured[HOOK][1],
    "gradients of stacked variants": lambda q, i, t: (
        t.variants([1, 0]).gradients(q.inputs, OBJECTIVE, ["input", HOOK]).grads["input"].permute(1, 0, 2)
    ),
    "activations of stacked gradients": lambda q, i, t: (
        t.variants([1, 0]).gradients(q.inputs, OBJECTIVE, ["input", HOOK]).captured[HOOK][0]
    ),
    "weights of a variant": lambda q, i, t: t.variant(1).weights([BIAS])[BIAS] * q.inputs[:, :1],
    "weights of stacked variants": lambda q, i, t: torch.cat(
        [w.flatten(1)[:, :2] for w in t.variants([2, 0, 1, 0]).weights().values()], -1
    ),
    "a call on what a call gave": lambda q, i, t: (
        t.forward(q.inputs - 0.1 * t.gradients(q.inputs, OBJECTIVE, ["input"]).grads["input"]).outputs
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_recorded_and_direct_are_the_same_to_the_bit_and_the_flop(mlp, name):
    found, expected, plan, own, _ = both_ways(mlp, METHODS[name])
    assert found.dtype == expected.dtype and torch.equal(found, expected)
    assert plan.own_flops == own
    assert (plan.output.shape, plan.output.dtype) == (tuple(expected.shape), str(expected.dtype)[6:])


@pytest.mark.parametrize("name", ["digits_few_shot", "small_cnn"])
def test_what_a_target_gives_lies_in_memory_as_it_did_when_the_answer_was_recorded(name):
    """Heads and channels come permuted from a target: views of them were recorded, and have to run."""
    target = make_target(name, 0, 40)
    hooks = [hook.name for hook in target.spec.hooks]

    def flat(query, i, t):
        done = t.forward(query.inputs, capture=hooks)
        found = t.gradients(query.inputs, Objective("loss", query.labels), ["input", *hooks])
        given = [*done.captured.values(), *found.grads.values(), *found.captured.values()]
        return torch.cat([one.flatten(1) for one in given], dim=-1)

    query = question(target)
    program = recorded(target, flat, query)
    assert [node for node in program.nodes if "view" in node.op], "flattening was recorded as a view"
    given = {Ref("query", key): value for key, value in tensors_of(query).items()}
    access = MeteredAccess(target, Ledger(), variants=variants_of(target))
    found = run(program, check(program, given, access, OpTable(), 10**9), given, access)
    with torch.no_grad():
        assert torch.equal(found, flat(query, None, MeteredAccess(target, Ledger())))


def test_a_program_is_about_shapes_and_serves_other_data(mlp):
    body = METHODS["gradients"]
    program = recorded(mlp, body)
    corpus = mlp.corpus("validation")
    other = Represent(corpus.inputs[4:8], corpus.labels[4:8])
    given = {Ref("query", key): value for key, value in tensors_of(other).items()}
    access = MeteredAccess(mlp, Ledger())
    plan = check(program, given, access, OpTable(), 0)
    assert torch.equal(run(program, plan, given, access), body(other, NOTHING, access))


def test_a_call_is_written_down_as_data(mlp):
    program = recorded(mlp, METHODS["interventions"])
    (call,) = [node for node in program.nodes if node.op == FORWARD]
    inputs, capture, changes, which = call.args
    assert (inputs, capture, which, call.kwargs) == (X, [LATER], None, {})
    assert changes[0][:2] == [HOOK, "scale"] and changes[0][3:] == [1, [3, 5]]
    assert changes[2] == [LATER, "zero", None, 1, [0]] and program.output == at(len(program.nodes) - 1)
    stacked = recorded(mlp, METHODS["gradients of stacked variants"])
    (call,) = [node for node in stacked.nodes if node.op == GRADIENTS]
    assert call.args[1:] == ("loss", None, ["input", HOOK], [1, 0])
    assert recorded(mlp, METHODS["one variant"]).nodes[0].args[-1] == 1


def test_constants_are_held_once_and_random_numbers_are_constants(mlp):
    held = torch.tensor([2.0, 3.0])
    program = recorded(mlp, lambda q, i, t: q.inputs[:, :2] * held + held)
    assert len(program.constants) == 1 and torch.equal(program.constants[0], held) and program.n_bytes == 8
    view = torch.arange(6.0).view(2, 3).T
    (constant,) = recorded(mlp, lambda q, i, t: q.inputs[:3, :2] + view).constants
    assert torch.equal(constant, view) and constant.is_contiguous() and constant.data_ptr() != view.data_ptr()

    def noisy(q, i, t):
        return q.inputs @ torch.randn(64, 2, generator=torch.Generator().manual_seed(3))

    program = recorded(mlp, noisy)
    drawn = torch.randn(64, 2, generator=torch.Generator().manual_seed(3))
    assert [node.op for node in program.nodes] == ["aten.mm.default"] and torch.equal(program.constants[0], drawn)


def test_random_numbers_that_hang_on_the_data_are_recorded_and_refused_by_the_check(mlp):
    program = recorded(mlp, lambda q, i, t: torch.rand_like(q.inputs) + torch.bernoulli(q.inputs))
    assert program.nodes[0].op == "aten.rand_like.default" and not program.constants


def test_what_cannot_stand_in_an_answer_is_named(mlp):
    with pytest.raises(ValueError, match="a Generator cannot stand in an answer"):
        recorded(mlp, lambda q, i, t: torch.bernoulli(q.inputs, generator=torch.Generator()))

    class Mine(torch.Tensor):
        pass

    mine = torch.ones(3).as_subclass(Mine)
    with pytest.raises(ValueError, match="a Mine is no plain tensor"):
        recorded(mlp, lambda q, i, t: mine)
    made = recorded(mlp, lambda q, i, t: torch.zeros_like(q.inputs, device="cpu"))
    assert made.nodes[0].kwargs["device"] == Static("device", "cpu")
    seen = []
    recorded(mlp, lambda q, i, t: seen.append((t.spec, t.variant(0).spec)))
    assert seen == [(mlp.spec, mlp.spec)]


def test_an_array_from_numpy_is_a_constant_answer(mlp):
    program = recorded(mlp, lambda q, i, t: np.arange(8.0, dtype="f4").reshape(4, 2))
    assert program.output == Ref("constant", index=0) and program.constants[0].tolist()[3] == [6.0, 7.0]


def test_the_query_or_an_array_can_be_the_answer(mlp):
    assert recorded(mlp, lambda q, i, t: q.inputs).output == X
    assert recorded(mlp, lambda q, i, t: i.arrays["w"]).output == Ref("array", "w")
    found, expected, plan, own, _ = both_ways(mlp, lambda q, i, t: q.inputs)
    assert torch.equal(found, expected) and (plan.own_flops, own, plan.peak_bytes) == (0, 0, 0)


def test_declining_is_an_empty_program(mlp):
    program = recorded(mlp, lambda q, i, t: None)
    assert (program.nodes, program.output, program.constants) == ((), None, ())
    assert run(program, planned(((),)), {}, None) is None


@pytest.mark.parametrize(
    "body",
    [
        lambda q, i, t: q.inputs if q.inputs.sum() > 0 else None,
        lambda q, i, t: q.inputs * q.inputs.max().item(),
        lambda q, i, t: q.inputs * float(q.inputs[0, 0]),
        lambda q, i, t: torch.tensor(q.inputs[0].tolist()),
        lambda q, i, t: torch.from_numpy(q.inputs.numpy() * 2),
        lambda q, i, t: q.inputs[q.inputs.sum(1) > 0],
        lambda q, i, t: q.inputs.nonzero(),
        lambda q, i, t: torch.unique(q.labels),
        lambda q, i, t: q.inputs[: int(q.labels[0])],
        lambda q, i, t: q.inputs * torch.equal(q.inputs, q.inputs),
        lambda q, i, t: torch.masked_select(q.inputs, q.inputs > 0),
        lambda q, i, t: i.arrays["w"] if 0.5 in i.arrays["w"] else None,
    ],
)
def test_asking_for_values_says_what_to_do_instead(mlp, body):
    with pytest.raises(NeedsValues, match=r"torch\.where.*adaptive = True"):
        recorded(mlp, body)


def test_values_that_python_made_itself_are_its_own(mlp):
    body = lambda q, i, t: q.inputs * torch.tensor(3.0).item() + len(q.inputs)  # noqa: E731
    found, expected, *_ = both_ways(mlp, body)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("body", "error", "reason"),
    [
        (lambda q, i, t: "text", TypeError, "returned str: return a tensor"),
        (lambda q, i, t: [q.inputs], TypeError, "returned list"),
        (lambda q, i, t: t.weights(), ValueError, r"weights\(\) is open in interpret\(\) only.* a variant's weights"),
        (
            lambda q, i, t: t.variant(0).weights(["w"]),
            ValueError,
            "weight 'w' does not exist; the variant has layers.0",
        ),
        (lambda q, i, t: t.variants([0]).weights([]), ValueError, "name at least one, and each once"),
        (lambda q, i, t: t.variant(0).weights([BIAS, BIAS]), ValueError, "name at least one, and each once"),
        (lambda q, i, t: t.corpus(), ValueError, r"corpus\(\) is open in interpret\(\) only"),
        (lambda q, i, t: t.dictionaries(), ValueError, r"dictionaries\(\) is open in interpret\(\) only"),
        (lambda q, i, t: t.variant(3).forward(q.inputs).outputs, ValueError, "variant 3 does not exist"),
        (lambda q, i, t: t.variants([0, -1]).forward(q.inputs).outputs, ValueError, "variant -1 does not exist"),
        (lambda q, i, t: t.variant(0).variant(0), ValueError, "a variant has no variants"),
        (lambda q, i, t: t.variants([0]).variants([0]), ValueError, "a variant has no variants"),
        (lambda q, i, t: t.forward(q.inputs[:, :3]).outputs, ValueError, "inputs have shape"),
        (lambda q, i, t: t.forward(q.inputs, ["nowhere"]).outputs, ValueError, "is no hook point"),
        (lambda q, i, t: t.gradients(q.inputs, OBJECTIVE, []).values, ValueError, "wrt is empty"),
        (lambda q, i, t: q.inputs.requires_grad_().sum().backward(), ValueError, "autograd does not reach through"),
        (
            lambda q, i, t: torch.autograd.grad(t.forward(q.inputs).outputs.sum(), q.inputs)[0],
            ValueError,
            "autograd does not reach through",
        ),
    ],
)
def test_an_answer_that_cannot_be_recorded_says_why(mlp, body, error, reason):
    with pytest.raises(error, match=reason):
        recorded(mlp, body)


def test_an_error_of_the_method_is_its_own(mlp):
    def fails(q, i, t):
        raise RuntimeError("my own mistake")

    with pytest.raises(RuntimeError, match="my own mistake"):
        recorded(mlp, fails)


def test_too_many_operations_say_how_to_do_with_fewer(mlp, monkeypatch):
    from stages.tracing import recording

    monkeypatch.setattr(recording, "MAX_NODES", 10)
    assert len(recorded(mlp, lambda q, i, t: _repeat(q.inputs, 10)).nodes) == 10
    with pytest.raises(ValueError, match="more than 10 operations: a loop over items unrolls"):
        recorded(mlp, lambda q, i, t: _repeat(q.inputs, 11))
    assert MAX_NODES == 50_000


def _repeat(tensor, n):
    for _ in range(n):
        tensor = tensor.relu()
    return tensor


def test_threads_are_recorded_as_well_and_left_as_they_were(mlp):
    before = threading.Thread.run

    def threaded(q, i, t):
        out = []
        worker = threading.Thread(target=lambda: out.append(q.inputs.relu() * 2))
        worker.start()
        worker.join()
        return out[0]

    found, expected, plan, _, program = both_ways(mlp, threaded)
    assert torch.equal(found, expected) and plan.own_flops == 2 * 4 * 64
    assert [node.op for node in program.nodes] == ["aten.relu.default", "aten.mul.Tensor"]
    assert threading.Thread.run is before


def test_uninitialised_memory_reads_as_zeros(mlp):
    """Whatever was in memory before: each way to ask for some is asked after the memory was filled."""
    f32 = Static("dtype", "float32")
    makers = [
        op("aten.empty.memory_format", [64], dtype=f32),
        op("empty_like", X),
        op("empty_strided", [64], [1]),
        op("empty_permuted", [8, 8], [0, 1]),
        op("new_empty", X, [64]),
        op("new_empty_strided", X, [64], [1]),
    ]
    inputs = {X: torch.full((64,), 7.0)}
    for maker in makers:
        nodes = (op("full_like", X, 9.0), op("aten.mul.Scalar", at(0), 2.0), maker, op("clone", at(2)))
        program = Program(nodes, at(3))
        plan = check(program, inputs, MeteredAccess(mlp, Ledger()), OpTable(), 0)
        found = run(program, plan, inputs, MeteredAccess(mlp, Ledger()))
        assert bool((found == 0).all()), maker.op


def test_what_is_filled_is_not_emptied(mlp):
    program = Program((op("zeros", [3]), op("aten.fill_.Scalar", at(0), 4.0)), at(0))
    plan = check(program, {}, MeteredAccess(mlp, Ledger()), OpTable(), 0)
    assert run(program, plan, {}, None).tolist() == [4.0] * 3


def planned(dead, shape=(), shapes=None):
    """A plan of operations that each have one result of the same shape, unless ``shapes`` says otherwise."""
    return Plan(0, 0, 0, tuple(shapes or [(shape,)] * len(dead)), dead, None)


def test_a_result_of_another_shape_than_the_priced_one_ends_the_run(mlp):
    """Whatever made the check see another one: nothing that was not priced is computed on."""
    program = Program((op("relu", X), op("neg", at(0))), at(1))
    with pytest.raises(ValueError, match=r"operation 0 of the answer, aten\.relu\.default, made another shape"):
        run(program, planned(((), ()), (3,)), {X: torch.ones(2)}, None)


def test_a_run_forgets_what_the_plan_says_and_only_that(mlp):
    nodes = (op("relu", X), op("neg", at(0)), op("relu", at(0)))
    inputs = {X: torch.ones(2)}
    with pytest.raises(ValueError, match="no tensor that exists"):
        run(Program(nodes, at(2)), planned(((), (0,), ()), (2,)), inputs, None)
    assert run(Program(nodes, at(2)), planned(((), (), (0, 1)), (2,)), inputs, None).tolist() == [1, 1]
    assert list(inputs) == [X], "what it was given is left as it was"


def test_every_result_of_an_operation_is_forgotten(mlp):
    nodes = (op("aten.max.dim", X, 1), op("relu", at(0, 0)), op("relu", at(0, 1)))
    with pytest.raises(ValueError, match="no tensor that exists"):
        run(
            Program(nodes, at(2)),
            planned(((), (0,), ()), (2,), [((2,), (2,)), ((2,),), ((2,),)]),
            {X: torch.ones(2, 2)},
            None,
        )


def test_an_operation_that_fails_on_the_data_is_named(mlp):
    nodes = (op("relu", X), op("index_select", at(0), 0, Ref("query", "labels")))
    given = {X: torch.ones(4, 2), Ref("query", "labels"): torch.tensor([9])}
    with pytest.raises(ValueError, match=r"operation 1 of the answer, aten\.index_select\.default: .*"):
        run(Program(nodes, at(1)), planned(((), ()), (4, 2)), given, None)


def test_no_gradient_is_kept(mlp):
    leaf = {X: torch.ones(2, requires_grad=True)}
    assert not run(Program((op("exp", X),), at(0)), planned(((),), (2,)), leaf, None).requires_grad


def test_a_program_is_named_by_the_question_and_the_shapes_of_what_is_known(mlp):
    asked = blank(question(mlp))
    arrays = {"b": torch.ones(2), "a": torch.ones(3)}
    key = key_of(asked, arrays)
    assert key == key_of(asked, {"a": torch.zeros(3), "b": torch.zeros(2)}), "values and order do not matter"
    others = [
        key_of(blank(question(mlp, 5)), arrays),
        key_of(asked, arrays | {"a": torch.ones(4)}),
        key_of(asked, arrays | {"a": torch.ones(3, dtype=torch.float64)}),
        key_of(asked, {"a": arrays["a"]}),
        key_of(blank(Attribute(question(mlp).inputs, ((0,),), question(mlp).labels)), arrays),
    ]
    assert len({key, *others}) == 6 and len(key) == 64


def test_a_blank_query_has_no_values(mlp):
    inputs = question(mlp).inputs
    asked = blank(Compare((0, 1), inputs, torch.zeros(4, dtype=torch.int64)))
    assert asked.variants == (0, 1) and (asked.inputs.shape, asked.inputs.dtype) == ((4, 64), "float32")
    assert tensors_of(Represent(inputs)) == {"inputs": inputs}, "a field that is None holds nothing"


def test_node_of_a_memory_format_is_a_static(mlp):
    program = recorded(mlp, lambda q, i, t: q.inputs.to(torch.float64).clone(memory_format=torch.contiguous_format))
    statics = [value for node in program.nodes for value in node.kwargs.values() if isinstance(value, Static)]
    assert Static("dtype", "float64") in statics and Static("memory_format", "contiguous_format") in statics
    assert all(isinstance(node, Node) for node in program.nodes)
