"""Found circuits as nodes in layers and edges with scores: what the report draws."""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.circuits.algorithms.found import Found
from stages.circuits.algorithms.methods import METHODS, Settings, run_method
from stages.circuits.engine.graph import Graph, Layout
from stages.circuits.engine.objectives import mse
from stages.circuits.known.known_circuits import TOLERANCE, Card, truth_of
from stages.contracts.circuit_rows import CircuitDrawing, DrawnEdge, DrawnNode

__all__ = ["MOST", "drawing", "drawings"]

MOST = 100
"""Edges drawn; where there are more, those that are neither found nor true give way, the weakest first."""


def drawings(cards: Sequence[Card], methods: Sequence[str], orders: int) -> list[CircuitDrawing]:
    """One seed of every method on every card, next to the card's circuit."""
    torch.set_num_threads(1)
    out = []
    for card in cards:
        truth = truth_of(card, orders)
        generator = torch.Generator().manual_seed(1)
        engine = card.engine(card.inputs(generator), generator)
        for method in methods:
            found = run_method(method, engine, mse, torch.Generator().manual_seed(2), Settings(tolerance=TOLERANCE))[0]
            known = truth.mask if truth.agree else None
            note = f"One seed of {METHODS[method]}; {engine.n_edges} edges in all."
            if found.mask is None:
                note += " It only ranks: shown are its best edges, as many as the truth has."
            title = f"{method} on {card.name}"
            out.append(drawing(engine.graph, engine.layout, found, known, title, note))
    return out


def drawing(graph: Graph, layout: Layout, found: Found, truth: Tensor | None, title: str, note: str) -> CircuitDrawing:
    """One circuit.

    Args:
        truth: (E,) the known circuit; None: not known.
    """
    chosen = _chosen(found, truth)
    scores = found.scores.double()
    finite = scores[torch.isfinite(scores)]
    scores = scores.nan_to_num(nan=0.0, neginf=float(finite.min()) if len(finite) else 0.0)
    matters = chosen if truth is None else chosen | (truth > 0.5)
    order = (scores.abs() + matters * 1e12).argsort(descending=True, stable=True)
    shown = sorted(order[: max(MOST, int(matters.sum()))].tolist())
    reading = _reading(layout)
    edges = tuple(
        DrawnEdge(
            source=layout.edges[i].source,
            reader=reading[layout.edges[i].reader][1],
            score=round(float(scores[i]), 6) + 0.0,
            in_circuit=bool(chosen[i]),
            in_truth=None if truth is None else bool(truth[i] > 0.5),
        )
        for i in shown
    )
    ends = {layout.edges[i].source for i in shown} | {reading[layout.edges[i].reader][0] for i in shown}
    hidden = layout.n_edges - len(shown)
    return CircuitDrawing(
        title=title,
        nodes=tuple(node for node in _nodes(graph, layout, reading) if node.name in ends),
        edges=edges,
        note=note + (f" {hidden} of the edges left out are not drawn." if hidden else ""),
    )


def _chosen(found: Found, truth: Tensor | None) -> Tensor:
    """(E,) bool: the circuit, or of a ranking as many of the best as the truth has."""
    if found.mask is not None:
        return found.mask > 0.5
    size = int((truth > 0.5).sum()) if truth is not None else 0
    chosen = torch.zeros(len(found.scores), dtype=torch.bool)
    chosen[found.scores.argsort(descending=True, stable=True)[:size]] = True
    return chosen


def _reading(layout: Layout) -> dict[str, tuple[str, str]]:
    """{reader: (node it belongs to, what it is called)}; an input of a node is called <node>.<input>."""
    out = {}
    for block in layout.blocks:
        names = layout.readers
        mine = [edge.reader for edge in layout.edges[block.start : block.stop : block.n_sources]]
        for reader in mine:
            assert reader in names
            writers = layout.writers[reader]
            node = writers[0] if writers else reader.removesuffix(f"_{block.port.name}" if block.port.name else "")
            out[reader] = (node, f"{node}.{block.port.name}" if block.port.name else node)
    return out


def _nodes(graph: Graph, layout: Layout, reading: dict[str, tuple[str, str]]) -> list[DrawnNode]:
    """Every source and output once; a node's layer is the longest way to it from an input."""
    depth: dict[str, int] = {}
    for node in graph.nodes:
        over = graph[node.of] if node.of is not None else node
        depth[node.name] = 1 + max((depth[parent.name] for parent in graph.parents_of(over)), default=-1)
    names = [(name, _owner(name, graph)) for name in layout.sources]
    outputs = [reading[reader][0] for reader in layout.readers if not layout.writers[reader]]
    names += [(name, _owner(name, graph)) for name in dict.fromkeys(outputs)]
    slots: dict[int, int] = {}
    out = []
    for name, owner in names:
        layer = depth[owner]
        out.append(DrawnNode(name=name, layer=layer, slot=slots.get(layer, 0)))
        slots[layer] = slots.get(layer, 0) + 1
    return out


def _owner(name: str, graph: Graph) -> str:
    """The node that a unit belongs to: itself, or what stands before its number."""
    known = {node.name for node in graph.nodes}
    return name if name in known else name.rpartition(".")[0]
