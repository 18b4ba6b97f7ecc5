"""Nights, run for real: Prefect without and with a server, toy graph, MLflow in SQLite."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from flows.graph import read_graph
from flows.headline import headline
from tests.flows.conftest import REPOSITORY, Toy, until

ON = {"LENSMITH_TRACKING": "on", "PREFECT_LOGGING_LEVEL": "WARNING"}


@pytest.fixture(scope="module")
def nights(_fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Two nights in one working copy: everything executed, then everything cached."""
    toy = Toy(Path(shutil.copytree(_fresh, tmp_path_factory.mktemp("nights") / "copy", symlinks=True)))
    first = toy.lensmith("nightly", "--once", **ON)
    assert first.returncode == 0, first.stderr + first.stdout
    assert first.stderr == "", "a night without a fault says so quietly"
    assert sorted(toy.log()) == ["a", "b", "first", "join"]
    toy.forget_log()
    second = toy.lensmith("nightly", "--once", **ON)
    assert second.returncode == 0, second.stderr + second.stdout
    assert second.stderr == "" and "nothing executed" in second.stdout
    return toy


def rows(toy: Toy, query: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(toy.root / "mlruns" / "mlflow.db")) as database:
        return list(database.execute(query))


def parents(toy: Toy) -> list[str]:
    found = rows(
        toy,
        "select r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid"
        " where t.key = 'lensmith.kind' and t.value = 'night' order by r.start_time",
    )
    return [row[0] for row in found]


def test_tasks_and_their_order_are_those_of_the_graph() -> None:
    """What Prefect is given, in a process of its own since Prefect reads its settings on import."""
    code = """
import json
from pathlib import Path
from flows.environment import prefect_environment
prefect_environment(Path.cwd(), serve=False)
import flows.pipeline as pipeline
from flows.execution import Execution
from flows.graph import Graph, ordered
from flows.outcome import Outcome
from flows.prefect_api import without_server

edges = {"top": set(), "left": {"top"}, "right": {"top"}, "end": {"left", "right"}, "alone": set()}
graph, given, order = Graph(ordered(edges)), {}, []
submit = pipeline.reproduce.submit

def note(node, execution, wait_for):
    future = submit(node, execution, wait_for=wait_for)
    given[node] = [names[one] for one in wait_for]
    names[future] = node
    return future

def reproduce(node, on_line):
    order.append(node)
    return Outcome(node, "failed" if node == "left" else "executed")

names, pipeline.reproduce.submit = {}, note
execution = Execution(graph, set(graph.nodes), reproduce)
with without_server():
    pipeline.execute(execution)
states = {outcome.node: outcome.state for outcome in execution.outcomes}
print(json.dumps([given, order, states]))
"""
    environment = {key: value for key, value in os.environ.items() if "PREFECT" not in key}
    environment |= {"PYTHONPATH": str(REPOSITORY), "LENSMITH_TRACKING": "off"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    given, order, states = json.loads(done.stdout)
    assert given == {
        "top": [],
        "left": ["top"],
        "right": ["top"],
        "end": ["left", "right"],
        "alone": [],
    }
    assert sorted(order) == ["alone", "left", "right", "top"], "a task was called though a parent failed"
    assert order.index("top") < min(order.index("left"), order.index("right"))
    assert states.pop("left") == "failed" and states.pop("end") == "blocked"
    assert set(states.values()) == {"executed"}


@pytest.mark.parametrize("words", [("run",), ("nightly", "--once")])
def test_prefect_is_not_imported_where_nothing_is_stale(done_toy: Toy, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-P", "-X", "importtime", "-m", "flows.command", *words]
    environment = done_toy.environment(**ON)
    done = subprocess.run(command, cwd=done_toy.root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "nothing executed" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dvc.repo" in imported
    assert not imported & {"prefect", "torch", "numpy", "flows.pipeline"} - {"numpy"}


def test_second_night_executes_nothing_and_dvc_agrees(nights: Toy) -> None:
    assert nights.log() == []
    assert json.loads(nights.dvc("status", "--json")) == {}
    assert "Running stage" not in nights.dvc("repro")
    assert "nothing executed" in nights.lensmith("run").stdout


def test_row_of_a_cached_night_is_as_complete_as_the_first(nights: Toy) -> None:
    first, second = parents(nights)
    metrics = [
        dict(rows(nights, f"select key, value from latest_metrics where run_uuid = '{run}'")) for run in (first, second)
    ]
    assert metrics[0] == metrics[1] == headline(nights.root / "metrics" / "leaderboard.json")
    assert metrics[0]["leaderboard.validation.pca.reward_mean"] == 0.25
    tags = [dict(rows(nights, f"select key, value from tags where run_uuid = '{run}'")) for run in (first, second)]
    nodes = read_graph(nights.root).nodes
    # "@" is no character of a tag name in MLflow.
    assert [tags[0][f"stage.{node.replace('@', '_')}"] for node in nodes] == ["executed"] * 4
    assert [tags[1][f"stage.{node.replace('@', '_')}"] for node in nodes] == ["cached"] * 4
    assert all(set(tag) >= {"git_sha", "dvc_lock_sha"} for tag in tags)
    assert tags[0]["dvc_lock_sha"] == tags[1]["dvc_lock_sha"]
    assert "4 nodes executed" in tags[0]["mlflow.note.content"] and "4 nodes cached" in tags[1]["mlflow.note.content"]
    for run in (first, second):
        kept = nights.root / "mlruns" / "artifacts" / run / "artifacts" / "leaderboard.json"
        assert kept.read_bytes() == (nights.root / "metrics" / "leaderboard.json").read_bytes()


def test_stages_are_children_of_the_night_that_ran_them(nights: Toy) -> None:
    first, second = parents(nights)
    children = rows(nights, "select run_uuid, value from tags where key = 'mlflow.parentRunId'")
    assert len(children) == 4 and {parent for _, parent in children} == {first} and second
    assert {row[0] for row in rows(nights, "select distinct status from runs")} == {"FINISHED"}
    (location,) = rows(nights, "select artifact_location from experiments where name = 'lensmith'")[0]
    assert location == (nights.root / "mlruns" / "artifacts").as_uri()


def test_a_failed_node_fails_the_night_and_keeps_the_rest(toy: Toy) -> None:
    toy.ask("a", "user")
    done = toy.lensmith("nightly", "--once", **ON)
    assert done.returncode == 2, done.stdout + done.stderr
    last = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(last) == 1 and "arm@a failed: params/toy.yaml: steps = -1" in last[0]
    assert "Traceback" not in done.stderr + done.stdout
    tags = dict(rows(toy, f"select key, value from tags where run_uuid = '{parents(toy)[0]}'"))
    states = {node: tags[f"stage.{node}"] for node in ("first", "arm_a", "arm_b", "join")}
    assert states == {
        "first": "executed",
        "arm_a": "failed",
        "arm_b": "executed",
        "join": "blocked",
    }
    assert toy.log("end") == ["first", "b"]
    assert {row[0] for row in rows(toy, "select distinct status from runs")} == {
        "FINISHED",
        "FAILED",
    }


def test_headline_names_rows_by_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    rows = [{"method": "pca", "split": "test", "r": 0.5, "bad": None}]
    estimate = {"value": 0.25, "low": 0.1, "high": 0.4, "null": None}
    path.write_text(json.dumps({"n": 3, "ok": True, "rows": rows, "c": [1], "e": estimate, "long": [1] * 101}))
    assert headline(path) == {"x.n": 3.0, "x.rows.test.pca.r": 0.5, "x.c.0": 1.0, "x.e": 0.25}
    assert headline(tmp_path / "none.json") == {}


def test_headlines_are_few_and_those_of_all_tasks(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    row = {"method": "pca", "split": "test", "reward_mean": 0.5, "reward_low": 0.1, "noise_floor": 0.02, "n_tasks": 3}
    single = [{"method": "pca", "task": f"t{i}", "gap": 0.5} for i in range(60)]
    path.write_text(json.dumps({"board": [row], "fresh": [{"method": "pca", "task": "all", "gap": 0.1}, *single]}))
    assert headline(path) == {"x.board.test.pca.reward_mean": 0.5, "x.fresh.pca.gap": 0.1}


def free_port() -> int:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ask_server(url: str, path: str, body: object = None) -> Any:
    data = json.dumps(body or {}).encode()
    request = urllib.request.Request(f"{url}{path}", data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_served_nights_are_scheduled_and_stay_so(toy: Toy) -> None:
    """Against a real server: it must plan runs (with SQLAlchemy 2.1 it did not), and keep the plan
    when we stop.
    """
    url = f"http://127.0.0.1:{(port := free_port())}/api"
    environment = toy.environment(PREFECT_HOME=str(toy.root / ".prefect"), PREFECT_SERVER_ANALYTICS_ENABLED="false")
    with (toy.root / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)],
            env=environment,
            cwd=toy.root,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    serving = None
    try:
        until(lambda: answers(f"{url}/health"), 600)
        serving = toy.start(
            "nightly",
            "--serve",
            "--cron",
            "0 2 * * *",
            "--timezone",
            "Europe/Berlin",
            PREFECT_API_URL=url,
        )
        until(lambda: ask_server(url, "/flow_runs/filter"), 600)
        run = ask_server(url, "/flow_runs/filter")[0]
        assert run["state_type"] == "SCHEDULED" and run["auto_scheduled"]
        (deployment,) = ask_server(url, "/deployments/filter")
        (asked,) = [ask_server(url, f"/deployments/{deployment['id']}/create_flow_run")]
        until(lambda: state_of(url, asked["id"]) not in {"SCHEDULED", "PENDING", "RUNNING"})
        assert state_of(url, asked["id"]) == "COMPLETED"
        assert sorted(toy.log("end")) == ["a", "b", "first", "join"]
        tasks = {str(task["name"]): task for task in ask_server(url, "/task_runs/filter")}
        assert {"first", "arm@a", "arm@b", "join"} <= set(tasks)
        serving.terminate()
        serving.communicate(timeout=600)
        (deployment,) = ask_server(url, "/deployments/filter")
        assert deployment["name"] == "nightly" and deployment["paused"] is False
        assert deployment["schedules"][0]["schedule"]["timezone"] == "Europe/Berlin"
    finally:
        for process in (serving, server):
            if process is not None and process.poll() is None:
                process.terminate()
                process.wait(600)


def state_of(url: str, run: object) -> object:
    (found,) = ask_server(url, "/flow_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})
    return found["state_type"]


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
