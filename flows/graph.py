"""The graph as DVC tells it. dvc.yaml is its only definition: nothing here knows the name of a stage."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.environment import dvc
from stages.errors import UserError

__all__ = ["Graph", "headline_metrics", "read_graph", "stage_of", "stale_nodes"]


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every parent comes first."""

    parents: dict[str, frozenset[str]]

    @property
    def nodes(self) -> list[str]:
        return list(self.parents)

    @property
    def edges(self) -> set[tuple[str, str]]:
        return {(parent, node) for node, parents in self.parents.items() for parent in parents}

    def downstream(self, nodes: Iterable[str]) -> set[str]:
        """The nodes and everything that follows from them."""
        reached = set(nodes)
        for node in self.parents:
            if self.parents[node] & reached:
                reached.add(node)
        return reached


def read_graph(root: Path) -> Graph:
    """Nodes and edges of ``dvc dag --dot``."""
    return parse_dot(dvc(root, "dag", "--dot"))


def parse_dot(text: str) -> Graph:
    import pydot

    parsed = pydot.graph_from_dot_data(text)
    if not parsed:
        raise UserError("`dvc dag --dot` printed no graph: look at dvc.yaml with `dvc dag`")
    parents: dict[str, set[str]] = {}
    for node in parsed[0].get_nodes():
        name = node.get_name().strip('"')
        if name not in {"node", "edge", "graph", "\\n"}:
            parents.setdefault(name, set())
    for edge in parsed[0].get_edges():
        source, sink = str(edge.get_source()).strip('"'), str(edge.get_destination()).strip('"')
        parents.setdefault(source, set())
        parents.setdefault(sink, set()).add(source)
    return Graph(_ordered(parents))


def _ordered(parents: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    # By depth, then by name: stable, and the long chains start early.
    depth: dict[str, int] = {}

    def measure(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max((measure(parent) for parent in parents[node]), default=-1)
        return depth[node]

    return {node: frozenset(parents[node]) for node in sorted(parents, key=lambda name: (measure(name), name))}


def stale_nodes(root: Path) -> set[str]:
    """Nodes whose dependencies, parameters, command or outputs are not those of dvc.lock; what follows from them is
    not included."""
    out = dvc(root, "status", "--json")
    listed: dict[str, Any] = json.loads(out[out.index("{") :])
    return {node for node, changes in listed.items() if changes and not str(node).endswith(".dvc")}


def stage_of(node: str) -> str:
    """``name@arm`` -> ``name``."""
    return node.partition("@")[0]


def headline_metrics(root: Path) -> dict[str, list[Path]]:
    """{stage: metric files it writes}, of the files that dvc.yaml lists under ``metrics``."""
    spec = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))
    listed = {str(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in spec.get("metrics") or []}
    found: dict[str, list[Path]] = {}
    for stage, body in spec["stages"].items():
        outs = [str(next(iter(out)) if isinstance(out, dict) else out) for out in body.get("outs") or []]
        mine = [root / out for out in outs if out in listed]
        if mine:
            found[stage] = mine
    return found
