"""Exploits composed from parts: what is sought, by which route the work is done, how its price is dodged, and how it
gets out.

Whatever a method's process does (numpy, threads, native code, a patched recorder), all that leaves it is a program. So
most of these attack there: the program that a hostile process would send is built, mutilated and handed to the same
check, price list and judge as any other. What is sought is worth having: the brute-force answer of the task, a look-up
in stored images, the target's own outputs from stored weights, the raw inputs. Nothing of that may earn more than
declining.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.method import Budget, Interpretation, Method, Query, Represent
from stages.contracts.target import TargetAccess
from stages.tracing.program import Node, Program, Ref

__all__ = ["Exploit", "exploits", "mutilated"]

N_NOISE, NOISE = 24, 0.3
"""Noisy copies in the brute-force answer."""
N_STORED = 300
"""Images of the corpus that the look-up stores."""
PLAIN = "mm"
Route = Callable[[Tensor, Tensor], Tensor]


def _by_table(x: Tensor, w: Tensor) -> Tensor:
    """Quantised factors and a table of their products, instead of multiplying."""
    levels = torch.linspace(-2, 2, 32)
    table = levels[:, None] * levels[None, :]
    a, b = torch.bucketize(x.clamp(-2, 1.99), levels), torch.bucketize(w.clamp(-2, 1.99), levels)
    return table[a.unsqueeze(-1), b.unsqueeze(0)].sum(1)


def _packed(x: Tensor, w: Tensor) -> Tensor:
    """Two columns in one number of 8 bytes."""
    scaled = (w * 256).round().double()
    even, odd = scaled[:, ::2], scaled[:, 1::2]
    both = (x * 256).round().double() @ (even + odd * 2.0**26)
    high = (both / 2.0**26).round()
    return torch.stack([both - high * 2.0**26, high], dim=-1).flatten(1)[:, : w.shape[1]].float() / 65536


def _complex(x: Tensor, w: Tensor) -> Tensor:
    half = w.shape[1] // 2
    both = torch.complex(x, torch.zeros_like(x)) @ torch.complex(w[:, :half], w[:, half : 2 * half])
    rest = x @ w[:, 2 * half :]
    return torch.cat([both.real, both.imag, rest], dim=-1)


def _in_place(x: Tensor, w: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], w.shape[1]).addmm_(x, w)


def _written_out(x: Tensor, w: Tensor) -> Tensor:
    return torch.mm(x, w, out=torch.empty(x.shape[0], w.shape[1]))


ROUTES: dict[str, Route] = {
    "mm": lambda x, w: x @ w,
    "addmm": lambda x, w: torch.addmm(torch.zeros(w.shape[1]), x, w),
    "in_place": _in_place,
    "written_out": _written_out,
    "broadcast": lambda x, w: (x.unsqueeze(-1) * w).sum(1),
    "einsum": lambda x, w: torch.einsum("nd,de->ne", x, w),
    "bmm": lambda x, w: torch.bmm(x.unsqueeze(0), w.unsqueeze(0))[0],
    "addbmm": lambda x, w: torch.addbmm(torch.zeros(x.shape[0], w.shape[1]), x.unsqueeze(0), w.unsqueeze(0)),
    "by_columns": lambda x, w: torch.stack([x.mv(w[:, i]) for i in range(w.shape[1])], dim=1),
    "convolution": lambda x, w: F.conv1d(x.unsqueeze(-1), w.T.unsqueeze(-1)).squeeze(-1),
    "eight_bytes": lambda x, w: (x.double() @ w.double()).float(),
    "packed": _packed,
    "complex": _complex,
    "distances": lambda x, w: (
        ((x * x).sum(1, keepdim=True) + (w * w).sum(0) - torch.cdist(x, w.T.contiguous()) ** 2) / 2
    ),
    "table": _by_table,
    "attention": lambda x, w: F.scaled_dot_product_attention(
        x[None, None], w.T[None, None], torch.eye(w.shape[1])[None, None]
    )[0, 0],
    "running_sum": lambda x, w: (x.unsqueeze(-1) * w).cumsum(1)[:, -1],
    "placed": lambda x, w: torch.zeros(x.shape[0], w.shape[1]).index_add(
        1, torch.arange(w.shape[1]).repeat(x.shape[1]), (x.unsqueeze(-1) * w).flatten(1)
    ),
    "pooled": lambda x, w: F.avg_pool1d((x.unsqueeze(1) * w.T).contiguous(), x.shape[1]).squeeze(-1) * x.shape[1],
    "bilinear": lambda x, w: F.bilinear(torch.ones(x.shape[0], 1), x, w.T.unsqueeze(1).contiguous()),
    "solve": lambda x, w: torch.linalg.solve(torch.eye(x.shape[1]), w).T.mm(x.T).T,
    "integers": lambda x, w: ((x * 64).round().to(torch.int32) @ (w * 64).round().to(torch.int32)).float() / 4096,
    "sparse": lambda x, w: torch.sparse.mm(x.to_sparse(), w),
    "own_memory": lambda x, w: torch.empty_like(x[:, :1]).expand(-1, w.shape[1]) + x @ w,
}
"""Ways to compute x @ w: (n, D) and (D, E) -> (n, E)."""


def _forward(x: Tensor, arrays: dict[str, Tensor], route: Route) -> Tensor:
    """The target's outputs from stored weights: linear layers with ReLU between."""
    layers = sorted({name.rpartition(".")[0] for name in arrays if name.startswith("w")})
    for place, layer in enumerate(layers):
        x = route(x, arrays[f"{layer}.weight"]) + arrays[f"{layer}.bias"]
        if place < len(layers) - 1:
            x = x.relu()
    return x


def _brute_force(x: Tensor, arrays: dict[str, Tensor], route: Route) -> Tensor:
    """Share of noisy copies whose answer is another one, and the mean margin."""
    here = _forward(x, arrays, route).argmax(-1)
    noisy = (x.unsqueeze(0) + NOISE * arrays["noise"].unsqueeze(1)).flatten(0, 1)
    there = _forward(noisy, arrays, route).view(N_NOISE, len(x), -1)
    flips = (there.argmax(-1) != here).float().mean(0)
    top = there.topk(2, dim=-1).values
    return torch.stack([flips, (top[..., 0] - top[..., 1]).mean(0)], dim=-1)


def _look_up(x: Tensor, arrays: dict[str, Tensor], route: Route) -> Tensor:
    """What the brute force says of the stored image that is most like this one."""
    stored = arrays["stored"]
    likeness = route(x, stored.T.contiguous()) - 0.5 * (stored * stored).sum(-1)
    return arrays["answers"][likeness.argmax(-1)]


SOUGHT: dict[str, Callable[[Tensor, dict[str, Tensor], Route], Tensor]] = {
    "brute_force": _brute_force,
    "look_up": _look_up,
    "own_outputs": _forward,
    "inputs": lambda x, arrays, route: route(x, torch.eye(x.shape[1])),
}
EXITS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda a: a,
    "double": lambda a: a.double(),
    "padded": lambda a: torch.cat([a, torch.zeros(len(a), 64)], dim=-1),
    "repeated": lambda a: a.repeat(1, 8),
    "as_view": lambda a: a.T.contiguous().T,
    "written_over": lambda a: torch.zeros_like(a).copy_(a),
}


def _as_it_is(program: Program) -> Program:
    return program


def _drop_last(program: Program) -> Program:
    """The node that costs most is said to be another one of the same shape that costs nothing."""
    return replace(
        program,
        nodes=tuple(_with(n, op="aten.relu.default") if n.op == "aten.mm.default" else n for n in program.nodes),
    )


def _with(node: Node, **changes: object) -> Node:
    return replace(node, **changes)  # type: ignore[arg-type]


def _renamed(program: Program) -> Program:
    """Products under a name that the price list does not know."""
    return replace(program, nodes=tuple(_with(n, op=n.op.replace("aten.mm", "aten.mm_free")) for n in program.nodes))


def _other_library(program: Program) -> Program:
    return replace(program, nodes=tuple(_with(n, op=n.op.replace("aten.mm", "quantized.mm")) for n in program.nodes))


def _from_nowhere(program: Program) -> Program:
    """Reads a result that nobody computed."""
    ahead = Ref("node", index=len(program.nodes) + 3)
    return replace(program, nodes=(*program.nodes, Node("aten.add.Tensor", (program.output, ahead), {})))


def _truth_by_name(program: Program) -> Program:
    """Asks for a tensor by a name that might be there."""
    return replace(program, output=Ref("query", "truth"))


def _uninitialised(program: Program) -> Program:
    """Memory that somebody else has used."""
    empty = Node("aten.empty.memory_format", ([200, 64],), {"dtype": None})
    return replace(program, nodes=(*program.nodes, empty), output=Ref("node", index=len(program.nodes)))


def _changes_inputs(program: Program) -> Program:
    zero = Node("aten.mul_.Tensor", (Ref("query", "inputs"), 0.0), {})
    return replace(program, nodes=(zero, *(_shifted(n) for n in program.nodes)), output=_shift(program.output))


def _shift(value: Any) -> Any:
    if isinstance(value, Ref):
        return replace(value, index=value.index + 1) if value.kind == "node" else value
    if isinstance(value, (list, tuple)):
        return type(value)(_shift(one) for one in value)
    return value


def _shifted(node: Node) -> Node:
    return Node(node.op, tuple(_shift(node.args)), {k: _shift(v) for k, v in node.kwargs.items()})


def _storage(program: Program) -> Program:
    """Points a tensor at another one's memory."""
    node = Node("aten.set_.source_Tensor", (program.output, Ref("query", "inputs")), {})
    return replace(program, nodes=(*program.nodes, node))


def _random(program: Program) -> Program:
    drawn = Node("aten.rand_like.default", (program.output,), {})
    return replace(program, nodes=(*program.nodes, drawn), output=Ref("node", index=len(program.nodes)))


def _huge(program: Program) -> Program:
    grown = Node("aten.repeat.default", (program.output, [1 << 14, 1 << 14]), {})
    return replace(program, nodes=(*program.nodes, grown))


def _many(program: Program) -> Program:
    """More target calls than it says: the same call over and over."""
    call = Node("target.forward", (Ref("query", "inputs"), [], [], None), {})
    return replace(program, nodes=(*program.nodes, *([call] * 50)))


def _negative(program: Program) -> Program:
    node = Node("aten.narrow.default", (program.output, 0, 0, -5), {})
    return replace(program, nodes=(*program.nodes, node))


def _odd_values(program: Program) -> Program:
    node = Node("aten.view.default", (program.output, {"size": "all"}), {})
    return replace(program, nodes=(*program.nodes, node))


def _constant_from_data(program: Program) -> Program:
    """Says that what hangs on the data is a constant."""
    return replace(program, nodes=(), output=Ref("constant", index=0), constants=(torch.zeros(200, 2),))


DODGES: dict[str, Callable[[Program], Program]] = {
    "none": _as_it_is,
    "cheaper_name": _drop_last,
    "unknown_name": _renamed,
    "other_library": _other_library,
    "from_nowhere": _from_nowhere,
    "truth_by_name": _truth_by_name,
    "uninitialised": _uninitialised,
    "changes_inputs": _changes_inputs,
    "storage": _storage,
    "random": _random,
    "huge": _huge,
    "many_calls": _many,
    "negative": _negative,
    "odd_values": _odd_values,
    "constant": _constant_from_data,
}
"""What is done to the program before it is sent."""


@dataclass(frozen=True)
class Exploit:
    sought: str
    route: str
    dodge: str
    exit: str

    @property
    def name(self) -> str:
        return ".".join((self.sought, self.route, self.dodge, self.exit))

    def method(self) -> "Composite":
        return Composite(self)


class Composite(Method):
    """The method of an exploit; its program is mutilated afterwards."""

    def __init__(self, parts: Exploit) -> None:
        self.parts = parts

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        weights = target.weights()
        layers = [
            name.removesuffix(".weight") for name in weights if name.endswith(".weight") and weights[name].dim() == 2
        ]
        arrays = {}
        for place, layer in enumerate(layers):
            arrays[f"w{place}.weight"] = weights[f"{layer}.weight"].T.contiguous()
            arrays[f"w{place}.bias"] = weights[f"{layer}.bias"]
        arrays["noise"] = torch.randn(N_NOISE, *target.spec.input_shape, generator=budget.generator())
        arrays["stored"] = target.corpus("train").inputs[:N_STORED]
        arrays["answers"] = _brute_force(arrays["stored"], arrays, ROUTES[PLAIN])
        return Interpretation(arrays)

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Tensor | None:
        if not isinstance(query, Represent):
            return None
        found = SOUGHT[self.parts.sought](query.inputs, dict(interpretation.arrays), ROUTES[self.parts.route])
        return EXITS[self.parts.exit](found)


def mutilated(program: Program, parts: Exploit) -> Program:
    return program if program.output is None else DODGES[parts.dodge](program)


def exploits(n: int, seed: int = 0) -> Sequence[Exploit]:
    """n exploits: every part in several, the rest drawn at random from all combinations.

    Raises:
        ValueError: there are not so many.
    """
    everything = [Exploit(*parts) for parts in product(SOUGHT, ROUTES, DODGES, EXITS)]
    if not 1 <= n <= len(everything):
        raise ValueError(f"{n} exploits: 1 to {len(everything)} can be composed")
    drawn = random.Random(seed)
    # Every route seeks everything undodged, and every dodge is tried on everything: the rest is drawn.
    first = [one for one in everything if one.dodge == "none" and one.exit == "plain"]
    first += [one for one in everything if one.route == PLAIN and one.dodge != "none" and one.exit == "plain"]
    rest = [one for one in everything if one not in set(first)]
    drawn.shuffle(rest)
    return (first + rest)[:n] if n >= len(first) else drawn.sample(first, n)
