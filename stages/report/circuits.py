"""Circuits as drawings: layers from left to right, edges as thick as their scores, the truth as colour and dash."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from stages.contracts.circuit_rows import CircuitDrawing, CircuitRow, DrawnEdge, DrawnNode
from stages.report.tables import Cell, Column, Table, table
from stages.report.wording import DASH, number, shorten, signed

__all__ = ["FATES", "circuit_table", "draw_circuit", "fate", "fates"]

FATES = {
    "found": "found: in the circuit and in the truth",
    "missed": "missed: in the truth only",
    "extra": "extra: in the circuit only",
    "chosen": "in the circuit (truth not known)",
    "left": "left out",
}
"""Drawn from the last to the first, so that what matters lies on top."""
GAP = 92
"""Pixels between the middles of neighbouring layers, at least."""
WIDE = 960
"""Pixels that a drawing fills if its layers leave room."""
ROW = 46
NODE = 22
CHARACTER = 7.2
"""Width of a letter of a node's name, in pixels."""
BOW = 26
"""Pixels by which an edge swerves for each layer it passes over."""
THIN, THICK = 0.8, 5.0


class Box(NamedTuple):
    x: float
    """Middle, in pixels."""
    y: float
    width: float
    layer: int


def fate(edge: DrawnEdge) -> str:
    """What became of an edge, a key of ``FATES``."""
    chosen, truth = edge.in_circuit, edge.in_truth
    if truth is None:
        return "chosen" if chosen else "left"
    return ("found" if truth else "extra") if chosen else ("missed" if truth else "left")


def fates(edges: Sequence[DrawnEdge]) -> dict[str, int]:
    """How many edges of each kind there are; kinds without one are left out."""
    every = [fate(edge) for edge in edges]
    return {kind: every.count(kind) for kind in FATES if kind in every}


def draw_circuit(circuit: CircuitDrawing) -> str:
    """An SVG element of fixed size; it is wider than a phone and scrolls in its frame.

    Nodes stand in columns by ``layer``, in each from the bottom up by ``slot``. The reader of an edge may be a node or
    an input of one, ``<node>.<input>``. Edges whose ends are no nodes are not drawn; their number is said.
    """
    boxes, width, height = _boxes(circuit.nodes)
    ports = _ports(circuit.edges, boxes)
    largest = max((abs(edge.score) for edge in circuit.edges), default=0.0)
    parts: dict[str, list[str]] = {kind: [] for kind in FATES}
    n_lost = 0
    # The strongest of a kind last, on top.
    for edge in sorted(circuit.edges, key=lambda e: (abs(e.score), e.source, e.reader)):
        ends = boxes.get(edge.source), boxes.get(_node_of(edge.reader, boxes))
        if ends[0] is None or ends[1] is None:
            n_lost += 1
            continue
        kind = fate(edge)
        share = abs(edge.score) / largest if largest else 0.0
        parts[kind].append(
            f'<g class="edge {kind}"><title>{escape(_said(edge, kind))}</title>'
            f'<path d="{_curve(ends[0], ends[1], ports[edge.reader], height)}"'
            f' stroke-width="{THIN + (THICK - THIN) * share:.2f}"/></g>'
        )
    nodes = [
        f'<g class="node"><title>{escape(name)}</title>'
        f'<rect x="{box.x - box.width / 2:.1f}" y="{box.y - NODE / 2:.1f}" width="{box.width:.1f}" height="{NODE}"'
        f' rx="5"/>'
        f'<text x="{box.x:.1f}" y="{box.y:.1f}" dy=".35em" text-anchor="middle">{escape(shorten(name, 16))}</text></g>'
        for name, box in boxes.items()
    ]
    counted = ", ".join(f"{n} {kind}" for kind, n in fates(circuit.edges).items())
    lost = f", {n_lost} not drawn" if n_lost else ""
    label = f"{circuit.title}: {len(boxes)} nodes; edges: {counted}{lost}"
    drawn = "".join("".join(parts[kind]) for kind in reversed(FATES))
    return (
        f'<svg class="circuit" role="img" aria-label="{escape(label)}" width="{width:.0f}" height="{height:.0f}"'
        f' data-edges="{sum(map(len, parts.values()))}">{drawn}{"".join(nodes)}</svg>'
    )


def _boxes(nodes: Sequence[DrawnNode]) -> tuple[dict[str, Box], float, float]:
    """Where each node stands, and the size of the drawing."""
    layers = sorted({node.layer for node in nodes})
    columns = [
        sorted((node for node in nodes if node.layer == layer), key=lambda node: (node.slot, node.name))
        for layer in layers
    ]
    widest = max((_width(node.name) for node in nodes), default=0.0)
    gap = max(GAP, (WIDE - widest) / max(len(layers) - 1, 1)) if len(layers) > 1 else 0
    gap = min(gap, 260)
    # The longest bow's height: a cubic curve reaches three quarters of the way to its control points.
    swerve = 0.75 * BOW * max(len(layers) - 2, 0) + THICK
    middle = swerve + ROW * max(map(len, columns), default=1) / 2
    out = {}
    for x, column in enumerate(columns):
        for i, node in enumerate(column):
            y = middle - ROW * (i - (len(column) - 1) / 2)
            out[node.name] = Box(widest / 2 + 8 + gap * x, y, _width(node.name), x)
    return out, widest + 16 + gap * (len(layers) - 1), 2 * middle


def _width(name: str) -> float:
    return max(30.0, CHARACTER * len(shorten(name, 16)) + 14)


def _node_of(reader: str, boxes: Mapping[str, Box]) -> str:
    """The node that a reader belongs to: itself, or what stands before one of its dots."""
    while reader not in boxes and "." in reader:
        reader = reader.rpartition(".")[0]
    return reader


def _ports(edges: Sequence[DrawnEdge], boxes: Mapping[str, Box]) -> dict[str, float]:
    """Height of each reader on its node's left side, in pixels from the node's middle; inputs in order of names."""
    readers: dict[str, set[str]] = {}
    for edge in edges:
        readers.setdefault(_node_of(edge.reader, boxes), set()).add(edge.reader)
    out = {}
    for of in readers.values():
        step = (NODE - 8) / max(len(of) - 1, 1)
        for i, reader in enumerate(sorted(of)):
            out[reader] = step * (i - (len(of) - 1) / 2)
    return out


def _curve(source: Box, reader: Box, port: float, height: float) -> str:
    """From the right of one box to the left of another; past the layers between them in a bow, away from the middle."""
    x1, x2 = source.x + source.width / 2, reader.x - reader.width / 2
    y1, y2 = source.y, reader.y + port
    span = reader.layer - source.layer
    if span <= 0:  # within a layer: out and back on the left
        x1 = source.x - source.width / 2
        return f"M{x1:.1f} {y1:.1f}C{x1 - 34:.1f} {y1:.1f} {x2 - 34:.1f} {y2:.1f} {x2:.1f} {y2:.1f}"
    upwards = -1 if (y1 + y2) / 2 <= height / 2 + 1 else 1
    bow = upwards * BOW * (span - 1)
    reach = 0.45 * (x2 - x1)
    return f"M{x1:.1f} {y1:.1f}C{x1 + reach:.1f} {y1 + bow:.1f} {x2 - reach:.1f} {y2 + bow:.1f} {x2:.1f} {y2:.1f}"


def _said(edge: DrawnEdge, kind: str) -> str:
    return f"{edge.source} \u2192 {edge.reader}: score {signed(edge.score, 4)}, {FATES[kind]}"


def circuit_table(rows: Sequence[CircuitRow]) -> Table:
    """How well each method recovers the planted or compiled circuits."""

    def plain(key: str, places: int = 3) -> Column[CircuitRow]:
        def cell(row: CircuitRow) -> Cell:
            value: int | float | None = getattr(row, key)
            if value is None:
                return Cell(DASH, float("-inf"))
            return Cell(f"{value:,}" if isinstance(value, int) else number(value, places), float(value))

        return Column(CircuitRow.label(key), cell, True, CircuitRow.hint(key))

    def text(key: str, kind: str = "") -> Column[CircuitRow]:
        return Column(
            CircuitRow.label(key),
            lambda row: Cell(getattr(row, key), getattr(row, key) if kind else "", kind),
            hint=CircuitRow.hint(key),
        )

    columns = [
        text("card", "name"),
        text("method"),
        text("ablation"),
        plain("length"),
        plain("exact_recovery"),
        plain("edge_auc"),
        plain("choice_bits", 1),
        plain("unexplained_bits"),
        plain("forwards", 1),
        plain("backwards", 1),
        plain("seeds"),
    ]
    return table("Recovery of known circuits", columns, rows)
