"""The graph that flows walk is the graph that DVC has."""

import ast
import subprocess
import sys
from pathlib import Path

import pydot
from flows.walk import walk

from flows.graph import Graph, headline_metrics, parse_dot, read_graph, stage_of, stale_nodes
from flows.outcome import Outcome
from tests.flows.conftest import REPOSITORY, Toy
from tests.house import nodes


def test_graph_equals_dvc_dag() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout
    edges = {
        (edge.get_source().strip('"'), edge.get_destination().strip('"'))
        for edge in pydot.graph_from_dot_data(text)[0].get_edges()
    }
    graph = read_graph(REPOSITORY)
    assert graph.edges == edges
    assert set(graph.nodes) == {node.name for node in nodes()}


def test_graph_of_the_toy(toy: Toy) -> None:
    graph = read_graph(toy.root)
    assert graph.edges == {("first", "arm@a"), ("first", "arm@b"), ("arm@a", "join"), ("arm@b", "join")}
    assert graph.nodes == ["first", "arm@a", "arm@b", "join"]
    assert graph.downstream({"arm@a"}) == {"arm@a", "join"}
    assert stale_nodes(toy.root) == set(graph.nodes)
    assert headline_metrics(toy.root) == {"join": [toy.root / "metrics" / "leaderboard.json"]}


def test_parents_come_first_whatever_the_order_of_the_text() -> None:
    graph = parse_dot('strict digraph { "z"; "c" -> "a"; "b" -> "a"; "d" -> "c"; }')
    for node in graph.nodes:
        assert all(graph.nodes.index(parent) < graph.nodes.index(node) for parent in graph.parents[node])
    assert graph.parents["a"] == {"b", "c"} and graph.parents["z"] == frozenset()
    assert stage_of("arm@a") == "arm" and stage_of("join") == "join"


def diamond() -> Graph:
    return parse_dot('strict digraph { "top" -> "left"; "top" -> "right"; "left" -> "end"; "right" -> "end"; }')


def test_walk_blocks_what_depends_on_a_failure_and_nothing_else() -> None:
    def work(node: str) -> Outcome:
        return Outcome(node, "failed" if node == "left" else "executed")

    graph = diamond()
    states = {outcome.node: outcome.state for outcome in walk(graph, set(graph.nodes), work)}
    assert states == {"top": "executed", "left": "failed", "right": "executed", "end": "blocked"}


def test_walk_leaves_what_is_not_stale_alone() -> None:
    asked = []

    def work(node: str) -> Outcome:
        asked.append(node)
        return Outcome(node, "executed")

    outcomes = walk(diamond(), {"right", "end"}, work, jobs=1)
    assert asked == ["right", "end"]
    assert [outcome.state for outcome in outcomes] == ["cached", "cached", "executed", "executed"]


def test_no_graph_is_written_down_in_flows() -> None:
    """Nobody but DVC states an edge: flows/ reads dvc.yaml in one place, for the names of metric files."""
    users = [
        path.name
        for path in sorted((REPOSITORY / "flows").rglob("*.py"))
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and ast.unparse(node).startswith("yaml.safe_load")
        and "dvc.yaml" in ast.unparse(node)
    ]
    assert users == ["graph.py"]
