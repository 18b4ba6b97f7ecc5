"""The price list as a whole: nothing that computes is free, no product is cheaper by another road, and the docs say
it."""

from pathlib import Path

import pytest
import torch
from torch.func import jacrev
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from stages.metering.op_table import OpTable, count_flops
from stages.metering.prices import RULES
from stages.tools.prices import as_markdown

FREE = {name for rule in RULES if rule.words.startswith("0:") for name in rule.names}
A = torch.arange(1.0, 25.0).view(4, 6) / 7.3
SQUARE = torch.arange(1.0, 37.0).view(1, 1, 6, 6) / 5.1


class Watch(TorchDispatchMode):
    """Every value that an op of price 0 gives out is one that it was given, or a constant it was told to make."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.table = OpTable()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in FREE and self.table.price(func)(args, kwargs or {}, out) == 0:
            self.seen.add(name)
            given = [t for t in _flat([args, kwargs or {}]) if isinstance(t, torch.Tensor)]
            numbers = {float(v) for v in _flat([args, kwargs or {}]) if isinstance(v, (int, float, bool))}
            pool = torch.cat([t.reshape(-1).double() for t in given if not t.is_complex()] or [torch.zeros(0)])
            # A complex number is two, in a view as one: what moves real numbers moves those.
            for value in [] if any(t.is_complex() for t in given) else _flat(out):
                if isinstance(value, torch.Tensor) and given and not value.is_complex() and value.numel():
                    told = torch.tensor([*numbers, 0.0, 1.0], dtype=torch.float64)
                    known = torch.isin(value.double().reshape(-1), torch.cat([pool, told]))
                    assert bool(known.all()), f"{name} makes values that it was not given"
        return out


def _flat(value):
    if isinstance(value, dict):
        return [one for part in value.values() for one in _flat(part)]
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _flat(part)]
    return [value]


MOVING = [
    lambda: A.view(6, 4).permute(1, 0).contiguous().expand(2, 4, 6).reshape(-1)[3:9].clone(),
    lambda: torch.cat([A, A], 1).chunk(3, 1)[0].flip(0).roll(1, 0).repeat(2, 1).split(3)[0].unbind(0)[0],
    lambda: torch.stack([A, A]).transpose(0, 1).squeeze().unsqueeze(0).narrow(1, 0, 2).select(0, 0),
    lambda: (A.diagonal(), A.tril(), A.triu(1), A.diag(), torch.block_diag(A, A), A.rot90(), A.unfold(1, 2, 2)),
    lambda: (F.pad(A, (1, 1)), F.pad(A[None, None], (1, 1, 1, 1), mode="reflect"), F.unfold(SQUARE, 2)),
    lambda: (F.pixel_shuffle(A.view(1, 4, 2, 3), 2), F.interpolate(SQUARE, scale_factor=2, mode="nearest")),
    lambda: (torch.full((2, 3), 0.5), torch.zeros(3), torch.ones_like(A), torch.eye(3), A.new_full((2,), 7.0)),
    lambda: (A.detach().alias() if hasattr(A, "alias") else A, A.as_strided((2, 2), (1, 2)), A.clone().fill_(3.0)),
    lambda: (torch.complex(A, A).real, torch.complex(A, A).imag, torch.complex(A, A).conj()),
    lambda: torch.slice_scatter(A, torch.zeros(4, 2), 1, 0, 2).select_scatter(torch.zeros(6), 0, 0),
    lambda: torch.diagonal_scatter(torch.zeros(4, 4), torch.ones(4)),
]


def test_what_is_free_only_moves():
    with Watch() as watch, torch.no_grad():
        for move in MOVING:
            move()
    assert len(watch.seen) >= 35, sorted(watch.seen)


COMPUTES = (
    *"add sub mul div neg abs exp log pow sqrt relu sigmoid tanh clamp maximum minimum floor round sign lerp".split(),
    *"sum mean prod amax amin argmax argmin any all var std norm cumsum cumprod logsumexp count_nonzero equal".split(),
    *"eq ne lt le gt ge logical_and logical_or logical_not logical_xor bitwise_and bitwise_or isnan isinf".split(),
    *"isfinite sort argsort topk kthvalue msort searchsorted bucketize isin unique_dim _unique2 nonzero median".split(),
    *"bernoulli normal_ uniform_ rand randn randint randperm random_ exponential_ multinomial poisson".split(),
    *"index gather index_select take embedding scatter index_put index_copy index_add where masked_fill".split(),
    *"mm bmm addmm convolution _softmax native_layer_norm max_pool2d_with_indices avg_pool2d grid_sampler_2d".split(),
)


@pytest.mark.parametrize("name", COMPUTES)
def test_whatever_adds_compares_draws_sorts_or_looks_up_has_a_price(name):
    assert name not in FREE
    packet = getattr(torch.ops.aten, name)
    # Not packet.__getattr__: it makes a second object of the op, and torch compares ops by identity.
    OpTable().price(getattr(packet, packet.overloads()[0]))


WORDS = (
    "add sub mul div pow exp log sqrt sum mean prod norm max min sort rand uniform normal cmp eq_ lt_ gt_ ge_ le_ ne_"
)


def test_no_name_on_the_free_list_says_that_it_computes():
    """A ratchet over torch.ops.aten: a new op that comes onto the list must be a mover by its name as well."""
    computing = set(COMPUTES) | {f"{name}_" for name in COMPUTES}
    assert not FREE & computing
    parts = {word for name in FREE for word in name.strip("_").split("_")}
    assert not parts & {"add", "sub", "mul", "div", "pow", "exp", "log", "sqrt", "sum", "mean", "prod", "norm", "sort",
                        "rand", "uniform", "normal", "softmax", "relu", "mm", "bmm", "dot", "conv", "fft"}  # fmt: skip
    assert all(hasattr(torch.ops.aten, name) for name in FREE)


def products(function, a, b) -> int:
    """Multiplications that a bilinear function needs, counted without knowing how it is computed: the entries of its
    second derivative that are not zero."""
    second = jacrev(jacrev(function, argnums=0), argnums=1)(a, b)
    return int((second.abs() > 1e-12).sum())


def spread(*shape):
    n = int(torch.tensor(shape).prod())
    return (torch.arange(1.0, n + 1.0) / (n + 0.7)).view(shape)


ONES = torch.ones(2, 1)
BILINEAR = [
    (lambda a, b: a @ b, (3, 4), (4, 5)),
    (lambda a, b: torch.bmm(a, b), (2, 3, 4), (2, 4, 2)),
    (lambda a, b: torch.mv(a, b), (3, 4), (4,)),
    (lambda a, b: torch.dot(a, b), (5,), (5,)),
    (lambda a, b: torch.outer(a, b), (3,), (4,)),
    (lambda a, b: torch.addmm(torch.zeros(5), a, b), (3, 4), (4, 5)),
    (lambda a, b: torch.addmv(torch.zeros(3), a, b), (3, 4), (4,)),
    (lambda a, b: torch.addr(torch.zeros(3, 4), a, b), (3,), (4,)),
    (lambda a, b: torch.baddbmm(torch.zeros(2, 3, 2), a, b), (2, 3, 4), (2, 4, 2)),
    (lambda a, b: torch.addbmm(torch.zeros(3, 2), a, b), (2, 3, 4), (2, 4, 2)),
    (lambda a, b: torch.einsum("bij,bjk,->ik", a, b, torch.tensor(1.0)), (2, 3, 4), (2, 4, 2)),
    (lambda a, b: torch.tensordot(a, b, dims=2), (2, 3, 4), (3, 4, 2)),
    (lambda a, b: F.conv1d(a, b), (1, 2, 7), (3, 2, 3)),
    (lambda a, b: F.conv2d(a, b, stride=2), (1, 2, 5, 5), (2, 2, 2, 2)),
    (lambda a, b: F.conv2d(a, b, groups=2), (1, 2, 4, 4), (2, 1, 2, 2)),
    (lambda a, b: F.conv_transpose1d(a, b), (1, 2, 4), (2, 3, 3)),
    (lambda a, b: F.bilinear(ONES, a, b), (2, 4), (3, 1, 4)),
    (lambda a, b: F.bilinear(a, torch.ones(2, 3), b), (2, 4), (5, 4, 3)),
    (lambda a, b: (a.unsqueeze(-1) * b).sum(1), (3, 4), (4, 5)),
    (lambda a, b: torch.kron(a, b), (2, 2), (2, 3)),
    (lambda a, b: torch.linalg.multi_dot([a, b]), (3, 4), (4, 5)),
    (lambda a, b: torch.chain_matmul(a, b) if hasattr(torch, "chain_matmul") else a @ b, (3, 4), (4, 2)),
]


@pytest.mark.parametrize(("function", "left", "right"), BILINEAR)
def test_a_product_costs_at_least_what_it_multiplies_and_adds_by_whatever_road(function, left, right):
    a, b = spread(*left), spread(*right)
    with count_flops() as count:
        out = function(a, b)
    needed = products(function, a, b)
    assert count.flops >= 2 * needed - out.numel()
    assert count.flops <= 4 * needed + 4 * out.numel()


@pytest.mark.parametrize("name", ["mm", "add", "sum", "mul", "sort", "relu", "gather"])
def test_numbers_of_eight_bytes_cost_twice(name):
    def cost(dtype):
        x = torch.ones(4, 4, dtype=dtype)
        call = {
            "mm": lambda: x @ x, "add": lambda: x + x, "sum": lambda: x.sum(), "mul": lambda: x * x,
            "sort": lambda: torch.sort(x, dim=0), "relu": lambda: x.relu(),
            "gather": lambda: x.gather(0, torch.zeros(4, 4, dtype=torch.int64)),
        }[name]  # fmt: skip
        with count_flops() as count:
            call()
        return count.flops

    assert cost(torch.float64) == 2 * cost(torch.float32) > 0


def test_complex_numbers_cost_what_their_real_parts_do():
    x, z = torch.ones(4, 4), torch.ones(4, 4, dtype=torch.complex64)

    def cost(call):
        with count_flops() as count:
            call()
        return count.flops

    assert cost(lambda: z @ z) == 4 * cost(lambda: x @ x)  # four products and their sums
    assert cost(lambda: z * z) == 6 * 16 and cost(lambda: z + z) == 2 * 16
    assert cost(lambda: torch.fft.fft(z)) == 5 * 16 * 2


def test_an_op_that_chooses_among_kinds_of_work_is_priced_by_its_kind():
    zeros, index, source = torch.zeros(3, 4), torch.zeros(9, 4, dtype=torch.int64), torch.ones(9, 4)
    costs = []
    for more in ({}, {"reduce": "add"}):
        with count_flops() as count:
            zeros.scatter(0, index, source, **more)
        costs.append(count.flops)
    assert costs == [36, 72]


def test_docs_hold_the_table():
    page = Path(__file__).resolve().parents[2] / "docs" / "prices.md"
    assert page.read_text(encoding="utf-8") == as_markdown(), "make it anew: `python -m stages tools.prices`"
