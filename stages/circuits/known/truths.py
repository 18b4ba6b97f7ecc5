"""The known circuit of a card, derived twice: from the program (or the plant), and by cutting edges. They must agree.

From the program: an edge is *wired* if its source writes a named direction that its reader's weights read. A wired
edge is needed unless a fact about the program on these inputs says that its ablated value does as well:

    mean, resample   the variable's value is the same on every input (evaluated by tracr's interpreter)
    zero             a selector that always selects something needs no default, so it reads neither "one" nor BOS;
                     the width of an all-true selector comes out the same without queries and keys;
                     a missing width counts as the largest, so at full length it need not be computed

and unless it lies on no path from input to output. By cutting: elimination in several random orders, which must all
end in the same circuit; then no subset of that may be faithful (all of them up to 12 edges, else all with one or two
edges less).

Shape legend: E = edges.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from stages.circuits.algorithms.acdc import eliminate, losses
from stages.circuits.engine.graph import Layout
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import Objective
from stages.circuits.known.programs import BOS, MAX_LENGTH, Compiled

__all__ = ["AblationTruth", "by_ablation", "by_program", "wiring"]

EXHAUSTIVE = 12
WIDTH = "_selector_width_attn_output"


@dataclass(frozen=True)
class AblationTruth:
    mask: Tensor
    """(E,) the circuit left by elimination from the output backwards."""
    unique: bool
    """Every order of cutting ended in it."""
    irreducible: bool
    """No subset tried is faithful."""
    orders: int
    subsets: int


def by_ablation(
    engine: MaskedForward, objective: Objective, generator: torch.Generator, *, tolerance: float, orders: int = 10
) -> AblationTruth:
    """The circuit by cutting edges; see the head of the module.

    Args:
        engine: module, data and ablation.
        objective: the loss.
        generator: draws the orders.
        tolerance: share of the empty circuit's loss up to which a circuit is faithful.
        orders: random orders besides the one from the output backwards.
    """
    empty = float(losses(engine, objective, torch.zeros(engine.n_edges)))
    allowed = tolerance * empty
    backwards = list(range(engine.n_edges))[::-1]
    mask = eliminate(engine, objective, engine.ones(), backwards, allowed)
    unique = True
    for _ in range(orders):
        order = torch.randperm(engine.n_edges, generator=generator).tolist()
        unique &= bool((eliminate(engine, objective, engine.ones(), order, allowed) == mask).all())
    kept = (mask > 0.5).nonzero().flatten().tolist()
    if len(kept) <= EXHAUSTIVE:
        cuts: list[Sequence[int]] = [c for n in range(1, len(kept) + 1) for c in combinations(kept, n)]
    else:
        cuts = [*combinations(kept, 1), *combinations(kept, 2)]
    subsets = mask.repeat(len(cuts), 1)
    for row, places in enumerate(cuts):
        subsets[row, list(places)] = 0.0
    irreducible = not len(cuts) or float(losses(engine, objective, subsets).min()) > allowed
    return AblationTruth(mask, unique, irreducible, orders, len(cuts))


def wiring(compiled: Compiled) -> tuple[dict[str, set[int]], dict[str, set[int]]]:
    """Directions each source can write, and each reader reads, from the weights alone."""
    module, writes, reads = compiled.module, dict[str, set[int]](), dict[str, set[int]]()

    def used(weight: Tensor, axis: int) -> set[int]:
        return set(weight.abs().sum(1 - axis).nonzero().flatten().tolist())

    writes["embed"], writes["pos"] = used(module.embed.weight, 1), used(module.pos.weight, 1)
    for layer, block in enumerate(module.blocks):
        attn: Any = block.attn
        for head in range(len(attn.W_Q)):
            score, value = attn.W_Q[head] @ attn.W_K[head].T, attn.W_V[head] @ attn.W_O[head]
            name = f"a{layer}.{head}"
            reads[f"{name}_q"], reads[f"{name}_k"], reads[f"{name}_v"] = used(score, 0), used(score, 1), used(value, 0)
            writes[name] = used(value, 1)
        both: Any = block
        reads[f"m{layer}"], writes[f"m{layer}"] = used(both.W_in.weight, 1), used(both.W_out.weight, 0)
    reads["out"] = used(module.unembed.weight, 1)
    return writes, reads


def by_program(compiled: Compiled, layout: Layout, words: Sequence[Sequence[Any]], ablation: str) -> Tensor:
    """(E,) the circuit as it follows from the program, for an ablation on these inputs (all of one length).

    Args:
        compiled: the program with its weights.
        layout: of its graph.
        words: the inputs, without BOS.
        ablation: zero, mean or resample.
    """
    writes, reads = wiring(compiled)
    expressions = _expressions(compiled.evaluate)
    carried = {edge: writes[edge.source] & reads[edge.reader] for edge in layout.edges}
    if ablation == "zero":
        needless = _needless(compiled, writes, expressions, words)
        never = _full_widths(compiled, expressions, words)
        alive = [bool(carried[e] - needless.get(e.reader, set()) - never) for e in layout.edges]
    else:
        varies = {i for i, name in enumerate(compiled.directions) if _varies(name, expressions, words)}
        alive = [bool(carried[edge] & varies) for edge in layout.edges]
    return layout.connected(torch.tensor(alive, dtype=torch.float32))


def _expressions(program: Any) -> dict[str, Any]:
    from tracr.compiler import rasp_to_graph

    graph = rasp_to_graph.extract_rasp_graph(program).graph
    return {str(name): node["EXPR"] for name, node in graph.nodes.items()}


def _varies(direction: str, expressions: Mapping[str, Any], words: Sequence[Sequence[Any]]) -> bool:
    """Whether a named direction takes different values on different inputs at some position."""
    label, _, value = direction.partition(":")
    expression = expressions.get(label.removesuffix(WIDTH))
    if expression is None or value == BOS:  # "one", padding
        return False
    columns = zip(*(expression(list(word)) for word in words), strict=True)
    if value and not label.endswith(WIDTH):
        return any(len({str(found) == value for found in column}) > 1 for column in columns)
    return any(len(set(column)) > 1 for column in columns)


def _needless(
    compiled: Compiled, writes: Mapping[str, set[int]], expressions: Mapping[str, Any], words: Sequence[Sequence[Any]]
) -> dict[str, set[int]]:
    """Directions that each reader of a head reads and could do without when they are zero."""
    names = compiled.directions
    default = {i for i, name in enumerate(names) if name in ("one", f"tokens:{BOS}")}
    found: dict[str, set[int]] = {}
    for source, directions in writes.items():
        if not source.startswith("a") or not directions:
            continue
        label = names[min(directions)].partition(":")[0]
        selector = expressions[label.removesuffix(WIDTH)].selector
        rows = [row for word in words for row in selector(list(word))]
        if label.endswith(WIDTH):
            if all(all(row) for row in rows):
                everything = set(range(len(names)))
                found[f"{source}_q"] = found[f"{source}_k"] = everything
        elif all(any(row) for row in rows):
            found[f"{source}_q"] = found[f"{source}_k"] = default
    return found


def _full_widths(compiled: Compiled, expressions: Mapping[str, Any], words: Sequence[Sequence[Any]]) -> set[int]:
    """Directions that hold the width of a selector that is always the largest there is."""
    return {
        i
        for i, name in enumerate(compiled.directions)
        if name.partition(":")[0].endswith(WIDTH)
        and all(
            value == MAX_LENGTH
            for word in words
            for value in expressions[name.partition(":")[0].removesuffix(WIDTH)](list(word))
        )
    }
