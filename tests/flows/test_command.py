"""The command line: help, and one-line answers to bad use."""

import json
import subprocess

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from flows.command import app
from tests.flows.conftest import Toy

COMMANDS = {
    "bench",
    "compare",
    "doctor",
    "leaderboard",
    "mlflow",
    "nightly",
    "redteam",
    "report",
    "research",
    "run",
    "score",
    "status",
    "tabulate",
    "tasks",
}  # fmt: skip


def every_help() -> dict[str, str]:
    top = get_command(app)
    assert isinstance(top, TyperGroup)
    found = {name: str(command.help) for name, command in top.commands.items()}
    group = top.commands["tasks"]
    assert isinstance(group, TyperGroup)
    return found | {f"tasks {name}": str(command.help) for name, command in group.commands.items()}


def test_every_command_is_there_with_an_example() -> None:
    helps = every_help()
    assert set(helps) >= COMMANDS | {f"tasks {name}" for name in ("audit", "instances", "list", "show")}
    for name, text in helps.items():
        assert f"Example: lensmith {name}" in text, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runn"], "No such command"),
        (["run", "--jobs", "0"], "--jobs"),
        (["run", "--jobs", "two"], "--jobs"),
        (["leaderboard", "--split", "both"], "use validation, test or train"),
        (["leaderboard", "--split", "test"], "test.json is missing"),
        (["score"], "METHOD"),
        (["score", "nowhere.py"], "is not a file"),
        (["nightly"], "--once"),
        (["nightly", "--serve"], "PREFECT_API_URL is not set"),
        (["bench", "everything"], "pipeline"),
        (["report"], "is missing"),
        (["research", "--name", "../x"], "--name"),
        (["research", "--space", "words"], "use specs or programs"),
        (["compare"], "make it with `lensmith tabulate`"),
        (["compare", "--seeds", "1"], "--seeds"),
        (["compare", "--researchers", " , "], "names nobody"),
        (["research", "--methods", "source", "--researcher", "search"], "--researcher would change nothing"),
        (["nightly", "--once", "--cron", "0 3 * * *"], "--cron would change nothing"),
        (["nightly", "--once", "--cron", "0 3 * * *", "--timezone", "UTC"], "--cron and --timezone would"),
        (["redteam", "--file", "dvc.yaml", "--quick"], "--quick would change nothing"),
        (["redteam", "--json", "--markdown"], "--markdown would change nothing"),
        (["bench", "cache", "--jobs", "2"], "--jobs would change nothing"),
        (["run", "--scheduler", "tcp://127.0.0.1:1"], "--runner dask"),
    ],
)
def test_mistakes_are_one_line_with_exit_code_2(done_toy: Toy, words: list[str], said: str) -> None:
    done = done_toy.lensmith(*words)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0], done.stderr
    assert done.stdout == ""


def test_leaderboard_and_status_speak_json(done_toy: Toy) -> None:
    rows = json.loads(done_toy.lensmith("leaderboard", "--json").stdout)
    assert rows[0]["method"] == "pca" and rows[0]["split"] == "validation"
    status = json.loads(done_toy.lensmith("status", "--json").stdout)
    assert status["stale"] == [] and status["n_nodes"] == 4 and status["at_work"] is None
    assert set(status["times"]) == {"first", "arm@a", "arm@b", "join"}


def test_doctor_names_places_and_remedies(done_toy: Toy) -> None:
    done = done_toy.lensmith("doctor", "--json")
    checks = {check["what"]: check for check in json.loads(done.stdout)}
    assert checks["torch"]["state"] == "ok" and checks["working copy"]["found"] == str(done_toy.root)
    for check in checks.values():
        assert check["remedy"] or check["state"] in {"ok", "fact"}, check


def test_a_run_at_work_keeps_readers_of_results_out(done_toy: Toy) -> None:
    (done_toy.root / "source" / "a.txt").write_text("3\n")
    done_toy.ask("a", "hang")
    running = done_toy.start("run")
    try:
        while "a" not in done_toy.log()[-1:]:
            assert running.poll() is None
        (done_toy.root / "method.py").write_text("")
        done = done_toy.lensmith("score", "method.py")
        assert done.returncode == 2 and f"lensmith run (process {running.pid})" in done.stderr
    finally:
        running.terminate()
        running.wait(600)


def test_a_reader_that_has_enough_is_no_error(done_toy: Toy) -> None:
    words = " ".join(done_toy.arguments("leaderboard", "--json"))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -c 5; exit ${{PIPESTATUS[0]}}"],
        cwd=done_toy.root,
        env=done_toy.environment(),
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr and done.returncode == 0, done.stderr
