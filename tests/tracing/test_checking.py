"""What a program must not do, and what a plan says of one that may run. Each refusal says why."""

import pytest
import torch

from stages.metering.op_table import OpTable, UnknownOpError
from stages.tracing import checking, values
from stages.tracing.checking import MAX_BYTES, MAX_FLOPS, check
from stages.tracing.program import FORWARD, GRADIENTS, MAX_NODES, Blank, Node, Program, Ref, Static
from stages.tracing.values import MAX_DEPTH, MAX_STRING, ProgramError, depends_on_values, fill, operation, outputs
from tests.tracing.conftest import X, at, op

HOOK = "layers.0.hook_post"
FLOAT, LONG = Static("dtype", "float32"), Static("dtype", "int64")


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


REFUSED = {
    "an operation that does not exist": ([op("frobnicate", X)], "no operation of torch.ops.aten"),
    "an overload that does not exist": ([op("aten.add.Nowhere", X, X)], "no operation of torch.ops.aten"),
    "an attribute that is no overload": ([op("aten.add.__class__", X, X)], "no operation of torch.ops.aten"),
    "another library's operation": ([op("prims.add.default", X, X)], "no operation of torch.ops.aten"),
    "more than a name": ([op("aten.add.Tensor; import os", X, X)], "no operation of torch.ops.aten"),
    "a tensor's storage": ([op("aten.set_.source_Tensor", X, X)], "behind the tensors' backs"),
    "a tensor's size": ([op("clone", X), op("resize_", at(0), [9])], "behind the tensors' backs"),
    "a value": ([op("item", X)], "behind the tensors' backs"),
    "a value of one element": ([op("_local_scalar_dense", X)], "behind the tensors' backs"),
    "random numbers": ([op("rand", [3])], "draws random numbers"),
    "random numbers like a tensor": ([op("rand_like", X)], "draws random numbers"),
    "random numbers in place": ([op("clone", X), op("uniform_", at(0))], "draws random numbers"),
    "dropout": ([op("native_dropout", X, 0.5, True)], "draws random numbers"),
    "dropout of attention": (
        [op("_scaled_dot_product_flash_attention_for_cpu", *[Ref("array", "h")] * 3, 0.5)],
        "give dropout_p=0",
    ),
    "dropout of attention, named": (
        [op("_scaled_dot_product_flash_attention_for_cpu", *[Ref("array", "h")] * 3, dropout_p=0.1)],
        "give dropout_p=0",
    ),
    "a reference to what comes later": ([op("relu", at(1)), op("relu", X)], "exists at this point"),
    "a reference to itself": ([op("relu", at(0))], "exists at this point"),
    "a second result of one": ([op("relu", X), op("relu", at(0, 1))], "exists at this point"),
    "an array that is not there": ([op("relu", Ref("array", "secret"))], "exists at this point"),
    "a constant that is not there": ([op("relu", Ref("constant", index=0))], "exists at this point"),
    "changing the query": ([op("relu_", X)], "clone it first"),
    "changing a view of the query": ([op("view", X, [-1]), op("relu_", at(0))], "clone it first"),
    "changing I(M)": ([op("zero_", Ref("array", "h"))], "clone it first"),
    "writing into the query": ([op("relu", X), op("copy_", X, at(0))], "clone it first"),
    "writing an output into the query": ([op("aten.add.out", X, X, out=X)], "clone it first"),
    "a sparse result": ([op("aten._to_sparse.default", X)], "sparse or quantised"),
    "a shape that depends on values": ([op("nonzero", X)], "no price|depends on values"),
    "a mask that depends on values": (
        [op("aten.gt.Scalar", X, 0.0), op("masked_select", X, at(0))],
        "depends on values: use a mask",
    ),
    "more memory than there is": ([op("zeros", [1 << 30])], "bytes at once"),
    "a tensor of absurd size": ([op("zeros", [1 << 40, 1 << 20])], "bytes at once|cannot be computed"),
    "a negative size": ([op("zeros", [-3])], "cannot be computed"),
    "shapes that do not fit": ([op("mm", X, X)], "mm.default cannot be computed"),
    "a text in place of a tensor": ([op("relu", "x")], "cannot be computed"),
    "a list in place of a tensor": ([op("relu", [1, 2])], "cannot be computed"),
    "too few arguments": ([op("mm", X)], "cannot be computed|MethodError|missing"),
    "an argument it does not know": ([op("relu", X, alpha=3)], "cannot be computed"),
    "an object": ([op("relu", object())], "a object is no value of a program"),
    "bytes": ([op("relu", b"x")], "a bytes is no value of a program"),
    "a function": ([op("relu", print)], "is no value of a program"),
    "a dictionary": ([op("relu", {"a": 1})], "a dict is no value of a program"),
    "a text without end": ([op("relu", "x" * (MAX_STRING + 1))], f"at most {MAX_STRING} are allowed"),
    "lists without end": ([op("relu", deep(MAX_DEPTH + 1))], f"more than {MAX_DEPTH} deep"),
    "a module of torch": ([op("zeros", [3], dtype=Static("dtype", "os"))], "is no value of an operation"),
    "a function of torch": ([op("zeros", [3], dtype=Static("dtype", "load"))], "is no value of an operation"),
    "a layout as a dtype": ([op("zeros", [3], dtype=Static("dtype", "strided"))], "is no value of an operation"),
    "a static of no kind": ([op("zeros", [3], dtype=Static("code", "float32"))], "is no value of an operation"),
    "a forward pass of nothing": ([Node(FORWARD, (), {})], "with 0 arguments"),
    "a forward pass with a name": ([Node(FORWARD, (X, [], [], None), {"free": True})], "target.forward with 4"),
    "a gradient with four arguments": ([Node(GRADIENTS, (X, "loss", None, ["input"]), {})], "with 4 arguments"),
    "a hook point that is none": ([Node(FORWARD, (X, ["nowhere"], [], None), {})], "is no hook point"),
    "inputs of another shape": ([op("t", X), Node(FORWARD, (at(0), [], [], None), {})], "inputs have shape"),
    "a number of inputs": ([Node(FORWARD, (3, [], [], None), {})], "cannot be computed"),
    "a variant beyond the last": ([Node(FORWARD, (X, [], [], 2), {})], "variant 2 does not exist"),
    "a variant below the first": ([Node(FORWARD, (X, [], [], [0, -1]), {})], "variant -1 does not exist"),
    "an intervention of no kind": ([Node(FORWARD, (X, [], [(HOOK, "flip", None, None, [])], None), {})], "is unknown"),
    "half an intervention": ([Node(FORWARD, (X, [], [(HOOK, "zero")], None), {})], "cannot be computed"),
    "an objective of no kind": ([Node(GRADIENTS, (X, "code", None, ["input"], None), {})], "objective 'code'"),
    "a gradient by nothing": ([Node(GRADIENTS, (X, "loss", None, [], None), {})], "wrt is empty"),
    "an answer that is not there": ([op("relu", X), op("relu", at(0))], "exists at this point", at(7)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_hostile_program_is_refused_with_the_reason(checked, mlp, what):
    nodes, reason, *output = REFUSED[what]
    given = {X: mlp.corpus("train").inputs[:4], Ref("array", "h"): torch.ones(1, 2, 3, 4)}
    with pytest.raises((ProgramError, UnknownOpError), match=reason):
        checked(nodes, *output, given=given)


def test_an_op_without_a_price_is_named(checked):
    with pytest.raises(UnknownOpError, match="igamma has no price"):
        checked([op("igamma", X, X)])


BROKEN = {
    "no operations": (Program("abc", at(0)), "operations that are none"),
    "operations that are no list": (Program(None, at(0)), "operations that are none"),
    "constants that are none": (Program((), X, "abc"), "operations that are none"),
    "too many operations": (Program((op("relu", X),) * (MAX_NODES + 1), X), f"more than {MAX_NODES:,}"),
    "an operation that is a tuple": (Program((("aten.relu.default", (X,), {}),), at(0)), "an operation that is none"),
    "a name that is a number": (Program((Node(3, (X,), {}),), at(0)), "an operation that is none"),
    "arguments that are a text": (Program((Node("aten.relu.default", "x", {}),), at(0)), "an operation that is none"),
    "named arguments that are a list": (Program((Node("aten.relu.default", (X,), []),), at(0)), "named arguments"),
    "named arguments by number": (Program((Node("aten.relu.default", (X,), {1: 2}),), at(0)), "named arguments"),
    "an answer that is a number": (Program((op("relu", X),), 3), "an answer that is no tensor"),
    "an answer that is a list": (Program((op("relu", X),), [at(0)]), "an answer that is no tensor"),
    "a reference by a list": (Program((op("relu", Ref("node", index=[0])),), X), "a reference that is none"),
    "a reference of a number": (Program((op("relu", Ref(3)),), X), "a reference that is none"),
    "a named reference by a number": (Program((op("relu", Ref("query", 3)),), X), "a reference that is none"),
    "an item that is a bool": (Program((op("relu", Ref("node", item=True)),), X), "a reference that is none"),
    "an answer by a list": (Program((op("relu", X),), Ref("node", index=[0])), "a reference that is none"),
    "a nested reference by a list": (Program((op("cat", [[Ref("node", index=[0])]]),), X), "a reference that is none"),
    "a constant that is a number": (Program((op("relu", X),), X, (3,)), "no plain tensor"),
    "a constant that is a parameter": (
        Program((op("relu", X),), X, (torch.nn.Parameter(torch.ones(2)),)),
        "no plain tensor",
    ),
    "a sparse constant": (Program((op("relu", X),), X, (torch.eye(2).to_sparse(),)), "no plain tensor"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_program_is_refused_before_anything_is_looked_up(mlp, what):
    program, reason = BROKEN[what]
    with pytest.raises(ProgramError, match=reason):
        check(program, {X: mlp.corpus("train").inputs[:4]}, None, OpTable(), 10**6)


def test_what_is_not_even_an_object_of_ours_is_refused():
    with pytest.raises(ProgramError, match="a program that is none"):
        check(None, {}, None, OpTable(), 10**6)


def test_the_largest_program_that_is_allowed_passes(checked):
    assert checked([op("view", X, [4, 64])] * 100).own_flops == 0
    program = Program((op("detach", X),) * MAX_NODES, None)
    assert check(program, {}, None, OpTable(), 0).output is None


def test_constants_are_capped_to_the_byte(checked):
    held = [torch.ones(3), torch.ones(2, dtype=torch.int64)]  # 12 + 16 bytes
    nodes = [op("aten.add.Tensor", Ref("constant", index=0), 1)]
    assert checked(nodes, constants=held, cap=28).output == Blank((3,), "float32")
    with pytest.raises(ProgramError, match="holds 28 bytes of constants; 27 are left"):
        checked(nodes, constants=held, cap=27)
    with pytest.raises(ProgramError, match="clone it first"):
        checked([op("relu_", Ref("constant", index=1))], constants=held)


def test_declining_costs_nothing_and_runs_nothing():
    plan = check(Program((op("frobnicate"),), None), {}, None, OpTable(), 0)
    assert (plan.target_flops, plan.own_flops, plan.peak_bytes, plan.dead, plan.output) == (0, 0, 0, (), None)


def test_own_operations_cost_what_the_table_says_and_stop_at_the_limit(checked):
    plan = checked([op("t", X), op("mm", X, at(0)), op("relu", at(1))])
    assert (plan.own_flops, plan.target_flops) == (2 * 4 * 64 * 4 + 16, 0)
    assert plan.output == Blank((4, 4), "float32")
    # A product of (n, n) matrices costs 2 n^3: under and over 1e14 with n = 20,000 twice, views taking no memory.
    wide = [op("zeros", [1, 20_000]), op("expand", at(0), [20_000, 20_000])]
    one = [*wide, op("mm", at(1), at(1))]
    assert checked(one).own_flops == 2 * 20_000**3 < MAX_FLOPS
    six = [*one, *(op("mm", at(1), at(1)) for _ in range(6))]
    with pytest.raises(ProgramError, match=r"cost more than 1e\+14 FLOPs"):
        checked(six, output=at(0))
    long = [*wide[:1], op("expand", at(0), [10_000, 500_000]), op("expand", at(0), [500_000, 10_000])]
    long[0] = op("zeros", [1, 1])
    assert checked([*long, op("mm", at(1), at(2))]).own_flops == MAX_FLOPS, "the limit itself is allowed"
    assert MAX_FLOPS == 10**14 and MAX_BYTES == 2 << 30


def test_changing_what_the_program_made_is_allowed(checked):
    plan = checked([op("clone", X), op("relu_", at(0)), op("aten.add_.Tensor", at(1), 1.0)])
    assert plan.own_flops == 2 * 256 and plan.peak_bytes == 4 * 64 * 4


def test_the_peak_of_a_chain_is_two_tensors(checked):
    """Each result is needed by the next alone, so two live at a time: 2 x 1 KiB, however long the chain."""
    plan = checked([op("relu", X), *(op("relu", at(i)) for i in range(9))])
    assert plan.peak_bytes == 2 * 1024
    assert plan.dead == ((), *((i,) for i in range(9)))
    assert plan.output == Blank((4, 64), "float32")


def test_the_peak_counts_what_a_later_operation_still_needs(checked):
    """relu, relu of it, their sum: three live at once, of which the first is needed to the end."""
    plan = checked([op("relu", X), op("relu", at(0)), op("relu", at(1)), op("aten.add.Tensor", at(0), at(2))])
    assert plan.peak_bytes == 3 * 1024
    assert plan.dead == ((), (), (1,), (0, 2))


def test_a_view_takes_nothing_and_keeps_what_it_views(checked):
    plan = checked([op("relu", X), op("view", at(0), [-1]), op("relu", X), op("aten.add.Tensor", at(1), 1)])
    assert plan.dead == ((), (0,), (2,), (1,)) and plan.peak_bytes == 2 * 1024
    assert checked([op("view", X, [-1])]).peak_bytes == 0, "the query is not the program's"


def test_memory_is_what_lives_at_once_and_not_what_was_made(checked):
    """Three tensors of 0.9 GiB one after the other pass, two at once do not."""
    big = [op("zeros", [240_000_000]), op("sum", at(0)), op("zeros", [240_000_000]), op("sum", at(2))]
    plan = checked(big)
    assert plan.peak_bytes == 960_000_000 + 4 and plan.dead == ((), (0, 1), (), (2,))
    assert checked([op("zeros", [1 << 29])], output=at(0)).peak_bytes == MAX_BYTES
    with pytest.raises(ProgramError, match="2,147,483,652 bytes at once; 2,147,483,648 are allowed"):
        checked([op("zeros", [(1 << 29) + 1])], output=at(0))


def test_results_that_nobody_reads_are_forgotten_at_once_and_the_answer_never(checked):
    plan = checked([op("relu", X), op("relu", X), op("relu", at(1))], output=at(0))
    assert plan.dead == ((), (), (1, 2))
    pair = checked([op("aten.max.dim", X, 1), op("relu", at(0, 0))])
    assert pair.dead == ((), (0,)) and pair.peak_bytes == 4 * 4 + 4 * 8 + 4 * 4


def test_other_references_are_no_uses_of_an_operation(checked):
    """A constant and an operation of the same number are two things."""
    nodes = [op("relu", X), op("relu", X), op("relu", Ref("constant", index=0))]
    plan = checked(nodes, constants=[torch.ones(3)])
    assert plan.dead == ((0,), (1,), ())
    assert checked([op("relu", X)], output=Ref("constant", index=0), constants=[torch.ones(3)]).dead == ((0,),)


def test_a_second_result_can_be_the_answer(checked):
    assert checked([op("aten.max.dim", X, 1)], output=at(0, 1)).output == Blank((4,), "int64")


def test_named_arguments_count_as_uses(checked):
    plan = checked([op("relu", X), op("relu", X), Node("aten.add.Tensor", (at(0),), {"other": at(1), "alpha": 2})])
    assert plan.dead == ((), (), (0, 1))


def test_a_call_to_the_target_is_priced_and_its_shapes_are_known(checked, mlp):
    plan = checked([Node(FORWARD, (X, [HOOK], [], None), {}), op("relu", at(0, 1))])
    assert plan.own_flops == 4 * 64 and plan.output == Blank((4, 64), "float32")
    layers = [(64, 64), (64, 32), (32, 10)]
    forward = 4 * (sum(2 * i * o + o for i, o in layers) + 64 + 32)
    assert plan.target_flops == forward
    assert checked([Node(FORWARD, (X, [], [], None), {})] * 2).target_flops == 2 * forward
    several = checked([Node(FORWARD, (X, [], [], [0, 1, 0]), {})])
    assert several.target_flops == 3 * forward and several.output == Blank((3, 4, 10), "float32")


def test_dropout_of_nothing_is_allowed(checked):
    heads = {Ref("array", "h"): torch.ones(1, 2, 3, 4)}
    call = op("_scaled_dot_product_flash_attention_for_cpu", *[Ref("array", "h")] * 3, 0.0)
    assert checked([call], given=heads).output == Blank((1, 2, 3, 4), "float32")
    plain = op("_scaled_dot_product_flash_attention_for_cpu", *[Ref("array", "h")] * 3)
    assert checked([plain], given=heads).own_flops == 2 * 2 * 9 * (4 + 4) + 6 * 2 * 9


def test_statics_texts_and_nested_lists_come_through():
    assert fill(FLOAT, {}) is torch.float32 and fill(Static("layout", "strided"), {}) is torch.strided
    assert fill(Static("memory_format", "contiguous_format"), {}) is torch.contiguous_format
    assert fill(Static("device", "cuda"), {}) == torch.device("cpu"), "wherever it was recorded"
    assert fill("x" * MAX_STRING, {}) == "x" * MAX_STRING
    assert fill(deep(MAX_DEPTH), {}) == deep(MAX_DEPTH)
    x = torch.ones(2)
    assert fill((1, 2.0, None, True, [X]), {X: x}) == [1, 2.0, None, True, [x]]
    assert (MAX_DEPTH, MAX_STRING) == (6, 200)


def test_an_infinite_nest_ends_in_a_refusal():
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(ProgramError, match="nested"):
        fill(loop, {})


def test_outputs_are_counted_in_order_and_through_lists():
    a, b, c = (torch.full((1,), float(i)) for i in range(3))
    assert [int(one) for one in outputs((a, [b, 3, None], c))] == [0, 1, 2] and outputs(4) == []
    assert operation("aten.relu.default") is torch.ops.aten.relu.default
    assert values.ProgramError is checking.ProgramError and issubclass(ProgramError, ValueError)


@pytest.mark.parametrize(
    ("name", "args", "depends"),
    [
        ("nonzero", (torch.ones(3),), True),
        ("masked_select", (torch.ones(3), torch.ones(3) > 0), True),
        ("_local_scalar_dense", (torch.ones(()),), True),
        ("aten.index.Tensor", (torch.ones(3), [torch.ones(3) > 0]), True),
        ("aten.index.Tensor", (torch.ones(3), [torch.ones(3, dtype=torch.uint8)]), True),
        ("aten.index.Tensor", (torch.ones(3), [None, torch.tensor([1])]), False),
        ("relu", (torch.ones(3),), False),
        ("topk", (torch.ones(3), 2), False),
    ],
)
def test_what_depends_on_values_is_told_by_its_tag_whatever_else_is_imported(name, args, depends):
    """On tensors without values torch gives such an operation a shape of its own making, in some processes."""
    from stages.tracing.checking import _same_shapes_whatever_the_values as look

    packet, _, overload = (name if "." in name else f"aten.{name}.default").removeprefix("aten.").partition(".")
    operation = getattr(getattr(torch.ops.aten, packet), overload)
    assert depends_on_values(operation, args, {}) is depends
    if depends:
        with pytest.raises(ProgramError, match="depends on values"):
            look(operation, args, {})
    else:
        look(operation, args, {})
