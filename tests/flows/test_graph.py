"""The graph that flows walk is the graph that DVC has."""

import ast
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pydot

from flows.execution import Execution
from flows.graph import Graph, headline_metrics, ordered, read_graph, read_state, stage_of
from flows.outcome import Outcome
from tests.flows.conftest import REPOSITORY, Toy
from tests.house import nodes


def test_graph_equals_dvc_dag() -> None:
    text = subprocess.run(
        [sys.executable, "-m", "dvc", "dag", "--dot"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
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
    assert graph.edges == {
        ("first", "arm@a"),
        ("first", "arm@b"),
        ("arm@a", "join"),
        ("arm@b", "join"),
    }
    assert graph.nodes == ["first", "arm@a", "arm@b", "join"]
    assert graph.downstream({"arm@a"}) == {"arm@a", "join"}
    assert read_state(toy.root) == (graph, set(graph.nodes))
    assert headline_metrics(toy.root) == {"join": [toy.root / "metrics" / "leaderboard.json"]}


def test_stale_is_what_dvc_status_says(done_toy: Toy) -> None:
    assert read_state(done_toy.root)[1] == set()
    (done_toy.root / "source" / "a.txt").write_text("2\n")
    (done_toy.root / "metrics" / "leaderboard.json").unlink()
    told = json.loads(done_toy.dvc("status", "--json"))
    assert read_state(done_toy.root)[1] == set(told) == {"arm@a", "join"}


def test_a_graph_that_dvc_cannot_read_is_one_line(toy: Toy) -> None:
    (toy.root / "dvc.yaml").write_text("stages:\n  first:\n    comand: x\n")
    done = toy.lensmith("run")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "DVC cannot read" in done.stderr and "dvc.yaml" in done.stderr


def test_parents_come_first_by_depth_and_name() -> None:
    parents = {"d": {"c"}, "a": {"b", "c"}, "z": set(), "c": set(), "b": set()}
    graph = Graph(ordered(parents))
    assert graph.nodes == ["b", "c", "z", "a", "d"]
    assert graph.parents["a"] == {"b", "c"} and graph.parents["z"] == frozenset()
    assert stage_of("arm@a") == "arm" and stage_of("join") == "join"


def diamond() -> Graph:
    return Graph(ordered({"top": set(), "left": {"top"}, "right": {"top"}, "end": {"left", "right"}}))


def in_order(execution: Execution) -> dict[str, str]:
    """Do what the flow does, without Prefect: a task is not called where a parent failed."""
    for node, parents in execution.graph.parents.items():
        states = {outcome.node: outcome.state for outcome in execution.outcomes}
        if all(states[parent] in {"executed", "cached"} for parent in parents):
            execution.reproduce(node)
    return {outcome.node: outcome.state for outcome in execution.outcomes}


def test_a_failure_blocks_what_depends_on_it_and_nothing_else() -> None:
    ended = []
    graph = diamond()
    execution = Execution(
        graph,
        set(graph.nodes),
        lambda node, on_line: Outcome(node, "failed" if node == "left" else "executed"),
        on_end=lambda outcome: ended.append((outcome.node, outcome.state)),
    )
    states = {"top": "executed", "left": "failed", "right": "executed", "end": "blocked"}
    assert in_order(execution) == states
    assert sorted(ended) == sorted(states.items()), "each is told once"


def test_what_is_not_stale_is_left_alone() -> None:
    asked = []

    def reproduce(node: str, on_line: object) -> Outcome:
        asked.append(node)
        return Outcome(node, "executed")

    states = in_order(Execution(diamond(), {"right", "end"}, reproduce, jobs=1))
    assert asked == ["right", "end"]
    assert states == {"top": "cached", "left": "cached", "right": "executed", "end": "executed"}


def test_no_more_nodes_at_work_than_jobs_and_none_after_a_stop() -> None:
    graph = Graph(ordered({str(number): set() for number in range(6)}))
    at_work, most, lock = 0, 0, threading.Lock()

    def reproduce(node: str, on_line: object) -> Outcome:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        time.sleep(0.05)
        with lock:
            at_work -= 1
        return Outcome(node, "executed")

    execution = Execution(graph, set(graph.nodes), reproduce, jobs=2)
    threads = [threading.Thread(target=execution.reproduce, args=(node,)) for node in graph.nodes[:5]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 2
    execution.stop()
    assert execution.reproduce("5").state == "interrupted"


def test_no_graph_is_written_down_in_flows() -> None:
    """Nobody but DVC states an edge: flows/ reads dvc.yaml in one place, for the names of metric
    files.
    """
    users = [
        path.name
        for path in sorted((REPOSITORY / "flows").rglob("*.py"))
        for node in ast.walk(ast.parse(Path(path).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and "load(" in ast.unparse(node).partition("dvc.yaml")[0]
        and "dvc.yaml" in ast.unparse(node)
    ]
    assert users == ["graph.py"]
