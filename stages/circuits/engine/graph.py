"""What a circuit is a part of: nodes that write, nodes that read, and which reads which.

A module declares its graph in about ten lines, in the order of its forward pass:

    Graph(
        Node("embed", writes="hook_embed"),
        Node("pos", writes="hook_pos_embed"),
        Node("a0", reads={"q": "...hook_q_input", "k": "...hook_k_input", "v": "...hook_v_input"},
             writes="...attn.hook_result", axis=2),
        Node("m0", reads="...hook_mlp_in", writes="...hook_mlp_out"),
        Node("out", reads="...hook_resid_post"),
    )

An edge leads from a *source* (what a node writes) to a *reader* (one input of a node). What a reader reads is the sum
of what its parents wrote, each through a linear map if ``through`` names one, plus a constant (biases), which is never
ablated.

Shape legend: B = batch, E = edges.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.errors import UserError

__all__ = ["Block", "Edge", "Graph", "Layout", "Node", "Part", "Port"]


class Edge(NamedTuple):
    source: str
    reader: str

    def __str__(self) -> str:
        return f"{self.source}->{self.reader}"


@dataclass(frozen=True)
class Part:
    """A part of what a hook point holds, where a node writes only that part (a dictionary's latents, its error)."""

    value: Callable[[Tensor], Tensor]
    """Activation (B, ..., D) -> what the node writes; batch axis first."""
    decoder: Tensor | None = None
    """(units, D) where the node writes codes (B, ..., units) that readers see through this map."""


@dataclass(frozen=True)
class Node:
    """One component, or, with ``axis``, as many as that axis is long (heads, units, channels)."""

    name: str
    writes: str | None = None
    """Hook point of its output; None: it is the output of the graph."""
    reads: str | Mapping[str, str] | None = None
    """Hook point of its input, or several by short name (q, k, v); None: it is an input of the graph."""
    axis: int | None = None
    """Axis, counted with the batch axis, along which the hook points hold one component per index."""
    parents: Sequence[str] | None = None
    """Names of the nodes it reads; None: every node that writes and is declared before it (a residual stream)."""
    through: str | Mapping[str, str] | None = None
    """Module (Linear or Conv2d) that stands between what parents wrote and what the reader's hook point holds, for all
    parents or by parent; None: they are summed as they are."""
    part: Part | None = None
    """Set where several nodes write parts of one hook point, which sum to what it holds."""
    of: str | None = None
    """Name of the node whose input this one shares and whose other part it writes; it then has no reads= of its own."""
    shared_input: bool = False
    """Its units (``axis``) read one input together, since the module makes no copy of it per unit."""

    @property
    def ports(self) -> dict[str, str]:
        """{short name, "" if there is one: hook point} of its inputs."""
        if self.reads is None:
            return {}
        return {"": self.reads} if isinstance(self.reads, str) else dict(self.reads)

    def map_from(self, parent: str) -> str | None:
        """Name of the module that parent's output passes on its way here."""
        return self.through.get(parent) if isinstance(self.through, Mapping) else self.through


class Port(NamedTuple):
    """An input of a node."""

    node: Node
    name: str
    hook: str


@dataclass(frozen=True, init=False)
class Graph:
    """Nodes in the order of the forward pass.

    Raises:
        UserError: two nodes of one name, a parent that is not declared or written only later (a cycle), no input, no
            output.
    """

    nodes: tuple[Node, ...]

    def __init__(self, *nodes: Node) -> None:
        object.__setattr__(self, "nodes", tuple(nodes))
        order = {node.name: place for place, node in enumerate(nodes)}
        if len(order) < len(nodes):
            twice = sorted({node.name for node in nodes if [n.name for n in nodes].count(node.name) > 1})
            raise UserError(f"two nodes are called {', '.join(twice)}: give every node a name of its own")
        for place, node in enumerate(nodes):
            if node.reads is None and node.writes is None:
                raise UserError(f"node {node.name!r} neither reads nor writes: give it reads=, writes= or both")
            for parent in node.parents or ():
                if parent not in order:
                    raise UserError(
                        f"node {node.name!r} reads {parent!r}, which is not declared: declare it before {node.name!r};"
                        f" there are {', '.join(order)}"
                    )
                if order[parent] >= place:
                    raise UserError(
                        f"the graph is cyclic: {node.name!r} reads {parent!r}, which is declared"
                        f" {'as the same node' if order[parent] == place else 'after it'}: list nodes in the order of"
                        " the forward pass, each after all that it reads"
                    )
                if nodes[order[parent]].writes is None:
                    raise UserError(f"node {node.name!r} reads {parent!r}, which writes nothing: give it writes=")
            if node.reads is not None and not self.parents_of(node):
                raise UserError(f"node {node.name!r} reads nothing: no node that writes is declared before it")
            if node.of is not None and (node.reads is not None or order.get(node.of, place) >= place):
                raise UserError(f"node {node.name!r} is a part of {node.of!r}: declare that before it, with the reads=")
        if not any(node.reads is None and node.of is None for node in nodes):
            raise UserError("the graph has no input: declare a node without reads= (embedding, pixels)")
        if not any(node.writes is None for node in nodes):
            raise UserError("the graph has no output: declare a last node without writes= (the logits' input)")

    def __getitem__(self, name: str) -> Node:
        return next(node for node in self.nodes if node.name == name)

    def parents_of(self, node: Node) -> tuple[Node, ...]:
        if node.reads is None:
            return ()
        if node.parents is not None:
            return tuple(self[name] for name in node.parents)
        before = self.nodes[: self.nodes.index(node)]
        return tuple(other for other in before if other.writes is not None)

    @property
    def ports(self) -> tuple[Port, ...]:
        return tuple(Port(node, name, hook) for node in self.nodes for name, hook in node.ports.items())

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every hook point the graph needs, once."""
        names = [node.writes for node in self.nodes if node.writes] + [port.hook for port in self.ports]
        return tuple(dict.fromkeys(names))

    def replaced(self, name: str, by: Iterable[Node]) -> "Graph":
        """The same graph with one node replaced by several, where others name their parents too."""
        new = tuple(by)
        writers = tuple(node.name for node in new if node.writes is not None)

        def renamed(node: Node) -> Node:
            if node.parents is None or name not in node.parents:
                return node
            parents = tuple(p for parent in node.parents for p in (writers if parent == name else (parent,)))
            through = node.through
            if isinstance(through, Mapping) and name in through:
                through = {k: v for k, v in through.items() if k != name} | dict.fromkeys(writers, through[name])
            return replace(node, parents=parents, through=through)

        return Graph(*(n for node in self.nodes for n in (new if node.name == name else (renamed(node),))))


class Block(NamedTuple):
    """The edges into one port: a (readers, sources) rectangle of the flat mask."""

    port: Port
    start: int
    n_readers: int
    n_sources: int
    parents: tuple[Node, ...]

    @property
    def stop(self) -> int:
        return self.start + self.n_readers * self.n_sources


@dataclass(frozen=True)
class Layout:
    """Where every edge lies in a flat mask (E,). Known once a forward pass told how many units each node has."""

    blocks: tuple[Block, ...]
    edges: tuple[Edge, ...]
    sources: tuple[str, ...]
    readers: tuple[str, ...]
    writers: Mapping[str, tuple[str, ...]]
    """Sources that are computed from each reader; () for an output."""
    sizes: Mapping[str, int]
    """Units of each node."""
    index: Mapping[Edge, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", {edge: place for place, edge in enumerate(self.edges)})

    @classmethod
    def of(cls, graph: Graph, sizes: Mapping[str, int]) -> "Layout":
        """sizes: units written, and for an output node units read, by node name."""
        units = {node.name: _units(node, sizes[node.name]) for node in graph.nodes}
        blocks: list[Block] = []
        edges: list[Edge] = []
        readers: list[str] = []
        writers: dict[str, tuple[str, ...]] = {}
        for port in graph.ports:
            parents = graph.parents_of(port.node)
            sources = [name for parent in parents for name in units[parent.name]]
            alone = port.node.shared_input or (port.node.part is not None and port.node.part.decoder is not None)
            names = [port.node.name] if alone else units[port.node.name]
            mine = [f"{name}_{port.name}" if port.name else name for name in names]
            family = [
                units[node.name] for node in graph.nodes if node.name == port.node.name or node.of == port.node.name
            ]
            for place, name in enumerate(mine):
                if port.node.writes is None:
                    writers[name] = ()
                elif len(mine) == len(units[port.node.name]) and len(family) == 1:
                    writers[name] = (units[port.node.name][place],)
                else:
                    writers[name] = tuple(source for part in family for source in part)
            blocks.append(Block(port, len(edges), len(mine), len(sources), parents))
            edges += [Edge(source, reader) for reader in mine for source in sources]
            readers += mine
        sources = [name for node in graph.nodes if node.writes for name in units[node.name]]
        return cls(tuple(blocks), tuple(edges), tuple(sources), tuple(readers), writers, dict(sizes))

    @property
    def n_edges(self) -> int:
        return len(self.edges)

    def mask(self, kept: Iterable[Edge | tuple[str, str] | str]) -> Tensor:
        """(E,) float: 1 for the edges named (as pairs or "source->reader"), 0 elsewhere.

        Raises:
            UserError: there is no such edge.
        """
        mask = torch.zeros(self.n_edges)
        for named in kept:
            source, reader = named.split("->") if isinstance(named, str) else named
            place = self.index.get(Edge(source, reader))
            if place is None:
                raise UserError(
                    f"there is no edge {source}->{reader}: sources are {_few(self.sources)}; readers"
                    f" {_few(self.readers)}"
                )
            mask[place] = 1.0
        return mask

    def kept(self, mask: Tensor) -> tuple[Edge, ...]:
        """Edges whose mask is above one half."""
        return tuple(self.edges[place] for place in (mask > 0.5).nonzero().flatten().tolist())

    def ends(self) -> tuple[Tensor, Tensor]:
        """(E,) index into ``sources`` of each edge's start, and index into ``readers`` of its end."""
        starts = {name: i for i, name in enumerate(self.sources)}
        ends = {name: i for i, name in enumerate(self.readers)}
        return (
            torch.tensor([starts[edge.source] for edge in self.edges]),
            torch.tensor([ends[edge.reader] for edge in self.edges]),
        )

    def node_mask(self, nodes: Tensor) -> Tensor:
        """(..., n_sources) node mask -> (..., E): an edge is kept as far as its source is and any node it feeds is."""
        start, alive = self._fed(nodes)
        kept: Tensor = nodes[..., start] * alive
        return kept

    def node_scores(self, nodes: Tensor) -> Tensor:
        """(..., n_sources) node scores -> (..., E): an edge is as good as the worse of its ends; outputs are no
        limit."""
        start, alive = self._fed(nodes, nodes.amax(-1))
        return torch.minimum(nodes[..., start], alive)

    def _fed(self, nodes: Tensor, output: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(E,) starts, and (..., E) the largest value among the nodes that each edge's reader feeds."""
        start, end = self.ends()
        place = {name: i for i, name in enumerate(self.sources)}
        always = torch.ones_like(nodes[..., 0]) if output is None else output
        alive = torch.stack(
            [
                nodes[..., [place[name] for name in self.writers[reader]]].amax(-1) if self.writers[reader] else always
                for reader in self.readers
            ],
            dim=-1,
        )
        return start, alive[..., end]

    def connected(self, mask: Tensor) -> Tensor:
        """The mask without edges that lie on no path from an input to an output."""
        alive = mask > 0.5
        computed = {name for writers in self.writers.values() for name in writers}
        while True:
            kept = [self.edges[i] for i in alive.nonzero().flatten().tolist()]
            fed = (set(self.sources) - computed) | {name for edge in kept for name in self.writers[edge.reader]}
            used = {edge.source for edge in kept}

            def lies_on_a_path(edge: Edge, fed: set[str] = fed, used: set[str] = used) -> bool:
                writers = self.writers[edge.reader]
                return edge.source in fed and (not writers or any(name in used for name in writers))

            still = torch.tensor([bool(alive[i]) and lies_on_a_path(edge) for i, edge in enumerate(self.edges)])
            if bool((still == alive).all()):
                return alive.to(mask.dtype)
            alive = still


def _units(node: Node, size: int) -> list[str]:
    many = node.axis is not None or (node.part is not None and node.part.decoder is not None)
    return [f"{node.name}.{i}" for i in range(size)] if many else [node.name]


def _few(names: Sequence[Any], limit: int = 12) -> str:
    return ", ".join(str(name) for name in names[:limit]) + (" ..." if len(names) > limit else "")
