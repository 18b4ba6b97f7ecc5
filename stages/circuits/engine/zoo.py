"""Graphs of the house's own targets, which declare hook points but no graph; layer inputs stand in where there is
none."""

from collections.abc import Callable

from stages.circuits.engine.graph import Graph, Node
from stages.errors import UserError

__all__ = ["GRAPHS", "graph_of_target"]


def _digits_mlp() -> Graph:
    return Graph(
        Node("x", writes="layers.0.linear:in", axis=1),
        Node("h0", "layers.0.hook_post", "layers.0.linear:out", axis=1, parents=["x"], through="layers.0.linear"),
        Node("h1", "layers.1.hook_post", "layers.1.linear:out", axis=1, parents=["h0"], through="layers.1.linear"),
        Node("out", reads="unembed:out", axis=1, parents=["h1"], through="unembed"),
    )


def _small_cnn() -> Graph:
    return Graph(
        Node("x", writes="convs.0.conv:in", axis=1),
        Node("c0", "convs.1.conv:in", "convs.0.conv:out", axis=1, parents=["x"], through="convs.0.conv"),
        Node("c1", "hook_pooled", "convs.1.conv:out", axis=1, parents=["c0"], through="convs.1.conv"),
        Node("out", reads="unembed:out", axis=1, parents=["c1"], through="unembed"),
    )


def _digits_few_shot() -> Graph:
    """Heads are sources of their own and share their block's input: the module makes no copy of it per head."""
    maps: dict[str, str] = {}
    nodes = [Node("embed", writes="hook_embed")]
    for layer in range(2):
        block = f"blocks.{layer}"
        nodes.append(
            Node(f"a{layer}", f"{block}.attn.hook_z", f"{block}.ln1:in", axis=2, shared_input=True, through=dict(maps))
        )
        maps[f"a{layer}"] = f"{block}.attn.W_O"
        nodes.append(Node(f"m{layer}", f"{block}.mlp:out", f"{block}.ln2:in", through=dict(maps)))
    return Graph(*nodes, Node("out", reads="blocks.1.hook_resid_post", through=dict(maps)))


GRAPHS: dict[str, Callable[[], Graph]] = {
    "digits_few_shot": _digits_few_shot,
    "digits_mlp": _digits_mlp,
    "small_cnn": _small_cnn,
}


def graph_of_target(name: str) -> Graph:
    """Raises:
    UserError: no graph is declared for this target.
    """
    if name not in GRAPHS:
        raise UserError(
            f"no graph is declared for target {name!r}: declare one in stages/circuits/engine/zoo.py; there are"
            f" {', '.join(GRAPHS)}"
        )
    return GRAPHS[name]()
