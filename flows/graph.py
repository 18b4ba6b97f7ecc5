"""The graph as DVC tells it. dvc.yaml is its only definition: nothing here knows the name of a
stage.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

from flows.environment import DVC_SETTINGS
from stages.errors import UserError, explain_os, os_cause

if TYPE_CHECKING:
    from dvc.repo import Repo

__all__ = ["Graph", "headline_metrics", "ordered", "read_graph", "read_state", "repository", "stage_of"]


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which every parent comes first."""

    parents: dict[str, frozenset[str]]
    outs: dict[str, frozenset[Path]] = field(default_factory=dict)
    """What each node writes."""

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

    def only(self, outputs: Iterable[Path]) -> "Graph":
        """The part that makes these outputs: the nodes that write them, or a folder they lie in, and all before."""
        wanted = set(outputs)
        ahead = {
            node
            for node, outs in self.outs.items()
            if any(out == path or out in path.parents or path in out.parents for out in outs for path in wanted)
        }
        reached: set[str] = set()
        while ahead:
            node = ahead.pop()
            reached.add(node)
            ahead |= self.parents[node] - reached
        kept = {node: parents for node, parents in self.parents.items() if node in reached}
        return Graph(kept, {node: self.outs.get(node, frozenset()) for node in kept})


@contextmanager
def repository(
    root: Path,
    what: str,
    remedy: str = "fix it (`lensmith doctor` looks around), then try again",
    config: Mapping[str, object] | None = None,
) -> "Iterator[Repo]":
    """DVC in this process: a new interpreter would cost a second.

    Args:
        root: the working copy.
        what, remedy: who refused, and what to do then, for the message.
        config: settings on top of .dvc/config.

    Raises:
        UserError: DVC refused, with its reason.
    """
    os.environ |= DVC_SETTINGS
    from dvc.exceptions import DvcException
    from dvc.lock import LockError
    from dvc.repo import Repo, lock_repo

    try:
        # One lock for all questions: DVC forgets the graph it has read when it gives up the lock.
        # DVC names stages as seen from the current folder.
        with chdir(root), Repo(config=config, _wait_for_lock=True) as opened, lock_repo(opened):
            yield opened
    except LockError as error:
        raise UserError(
            f"another DVC command is at work in {root}: wait for it to end, or stop it, then try again"
        ) from error
    except DvcException as error:
        refused = os_cause(error)
        if refused is not None:
            raise UserError(f"{what}: {explain_os(refused)[0]}") from error
        cause = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"{what}: {cause}; {remedy}") from error


def read_graph(root: Path) -> Graph:
    """Nodes and edges, as ``dvc dag --dot`` prints them."""
    with repository(root, f"DVC cannot read {root}") as opened:
        return _graph_of(opened)


def read_state(root: Path) -> tuple[Graph, set[str]]:
    """The graph, and its stale nodes: those whose dependencies, parameters, command or outputs are
    not those of dvc.lock. What follows from them is not included.
    """
    with repository(root, f"DVC cannot read {root}") as opened:
        changes: dict[str, object] = opened.status()
        graph = _graph_of(opened)
    return graph, {node for node, changed in changes.items() if changed and node in graph.parents}


def _graph_of(opened: "Repo") -> Graph:
    parents: dict[str, set[str]] = {}
    outs: dict[str, frozenset[Path]] = {}
    edges = opened.index.graph
    for stage in edges.nodes:
        outs[stage.addressing] = frozenset(Path(out.fs_path) for out in stage.outs)
        # DVC's edges point from a stage to what it depends on.
        parents[stage.addressing] = {parent.addressing for parent in edges.successors(stage)}
    return Graph(ordered(parents), outs)


def ordered(parents: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    """By depth, then by name: stable, and the long chains start early."""
    depth: dict[str, int] = {}
    for node in TopologicalSorter(parents).static_order():
        depth[node] = 1 + max((depth[parent] for parent in parents[node]), default=-1)
    return {node: frozenset(parents[node]) for node in sorted(parents, key=lambda name: (depth[name], name))}


def stage_of(node: str) -> str:
    """``name@arm`` -> ``name``."""
    return node.partition("@")[0]


def headline_metrics(root: Path) -> dict[str, list[Path]]:
    """{stage: metric files it writes}, of the files that dvc.yaml lists under ``metrics``."""
    from ruamel.yaml import YAML  # as DVC reads it: YAML 1.2

    spec = YAML(typ="safe").load((root / "dvc.yaml").read_text(encoding="utf-8"))
    listed = {str(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in spec.get("metrics") or []}
    found: dict[str, list[Path]] = {}
    for stage, body in spec["stages"].items():
        outs = [str(next(iter(out)) if isinstance(out, dict) else out) for out in body.get("outs") or []]
        mine = [root / out for out in outs if out in listed]
        if mine:
            found[stage] = mine
    return found
