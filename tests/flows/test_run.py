"""`lensmith run`: what is executed, what is shown, and what survives."""

import json
import shutil
import signal
from pathlib import Path

import psutil
import pytest
import yaml

from tests.flows.conftest import Toy, until

NODES = {"first", "arm@a", "arm@b", "join"}


def locked(toy: Toy) -> set[str]:
    return set(yaml.safe_load((toy.root / "dvc.lock").read_text())["stages"])


def one_line_error(text: str) -> str:
    assert "Traceback" not in text
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, text
    return errors[0]


def test_first_run_executes_every_node_and_shows_leaderboard_and_places(toy: Toy) -> None:
    done = toy.lensmith("run", LENSMITH_TRACKING="on")
    assert done.returncode == 0, done.stderr
    assert sorted(toy.log()) == ["a", "b", "first", "join"]
    assert locked(toy) == NODES
    assert "leaderboard, validation families" in done.stdout and "+0.250" in done.stdout
    assert "time per stage" in done.stdout and "4 nodes executed, 0 cached" in done.stdout
    assert f"sqlite:///{toy.root}/mlruns/mlflow.db" in done.stdout
    assert json.loads(toy.dvc("status", "--json")) == {}


def test_second_run_executes_nothing(done_toy: Toy) -> None:
    done_toy.forget_log()
    done = done_toy.lensmith("run")
    assert done.returncode == 0, done.stderr
    assert done_toy.log() == []
    assert "everything is up to date: nothing executed" in done.stdout
    assert "+0.250" in done.stdout and "time per stage" in done.stdout
    assert "Running stage" not in done_toy.dvc("repro")


def test_arms_run_side_by_side_in_one_workspace(toy: Toy) -> None:
    for arm in ("a", "b"):
        toy.ask(arm, "slow")
    assert toy.lensmith("run", "--jobs", "2").returncode == 0
    lines = [line.split() for line in (toy.root / "executions.log").read_text().splitlines()]
    at = {(what, name): float(when) for what, name, when, _ in lines}
    assert at["start", "a"] < at["end", "b"] and at["start", "b"] < at["end", "a"], "they did not overlap"
    assert locked(toy) == NODES
    assert toy.log("end").count("a") == toy.log("end").count("b") == 1


def test_one_changed_arm_runs_that_arm_and_what_follows(done_toy: Toy) -> None:
    done_toy.forget_log()
    (done_toy.root / "source" / "a.txt").write_text("2\n")
    done = done_toy.lensmith("run")
    assert done.returncode == 0, done.stderr
    assert done_toy.log() == ["a", "join"]
    assert "2 nodes executed, 2 cached" in done.stdout


def test_a_new_arm_leaves_the_other_arms_alone(done_toy: Toy) -> None:
    done_toy.forget_log()
    (done_toy.root / "params" / "arms.yaml").write_text("arms: [a, b, c]\n")
    (done_toy.root / "source" / "c.txt").write_text("1\n")
    assert done_toy.lensmith("run").returncode == 0
    assert done_toy.log() == ["c", "join"]


def test_missing_output_is_made_again(done_toy: Toy) -> None:
    (done_toy.root / "metrics" / "leaderboard.json").unlink()
    done = done_toy.lensmith("leaderboard")
    assert done.returncode == 2 and "is missing" in one_line_error(done.stderr)
    assert "lensmith run" in done.stderr
    assert done_toy.lensmith("run").returncode == 0
    assert done_toy.lensmith("leaderboard").returncode == 0


@pytest.mark.parametrize(
    ("wish", "code", "said"),
    [
        ("user", 2, "params/toy.yaml: steps = -1"),
        ("ours", 1, "shape (3,) is not (4,)"),
        ("full", 1, "no space left"),
    ],
)
def test_failing_stage_is_one_line_and_keeps_the_others(toy: Toy, wish: str, code: int, said: str) -> None:
    toy.ask("a", wish)
    done = toy.lensmith("run")
    assert done.returncode == code, done.stderr
    error = one_line_error(done.stderr)
    assert "arm@a failed" in error and said in error and "lensmith run" in error
    assert locked(toy) == {"first", "arm@b"}, "the other arm is kept, the join was not tried"
    assert Path(error.split("Its output is in ")[1].split(";")[0]).is_file()
    toy.grant("a")
    toy.forget_log()
    assert toy.lensmith("run").returncode == 0
    assert toy.log() == ["a", "join"], "nothing is lost or repeated"


def test_debug_shows_the_traceback(toy: Toy) -> None:
    toy.ask("first", "ours")
    done = toy.lensmith("run", "--debug")
    assert done.returncode == 1 and "Traceback" in done.stderr
    assert "RuntimeError: shape (3,)" in (toy.root / ".lensmith" / "logs" / "first.log").read_text()


def test_two_runs_at_once_second_says_who_is_at_work(toy: Toy) -> None:
    toy.ask("first", "hang")
    running = toy.start("run")
    until(lambda: toy.log() == ["first"])
    second = toy.lensmith("run")
    assert second.returncode == 2
    assert f"lensmith run (process {running.pid})" in one_line_error(second.stderr)
    reader = toy.lensmith("status")
    assert reader.returncode == 0 and f"{running.pid}) first" in reader.stdout
    running.send_signal(signal.SIGINT)
    assert running.wait(600) == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_children_and_the_next_run_continues(toy: Toy, number: signal.Signals) -> None:
    toy.ask("a", "hang")
    running = toy.start("run")
    until(lambda: "a" in toy.log() and "b" in toy.log("end"))
    until(lambda: "arm@b" in locked(toy))
    worker = int((toy.root / "executions.log").read_text().split("start a ")[1].split()[1])
    running.send_signal(number)
    _, said = running.communicate(timeout=600)
    assert running.returncode == 130
    assert "continues from there" in one_line_error(said)
    until(lambda: not psutil.pid_exists(worker))
    toy.grant("a")
    toy.forget_log()
    done = toy.lensmith("run")
    assert done.returncode == 0, done.stderr
    assert toy.log() == ["a", "join"]


def test_kill_9_leaves_nothing_behind_and_the_next_run_continues(toy: Toy) -> None:
    toy.ask("a", "hang")
    running = toy.start("run")
    until(lambda: "a" in toy.log() and "b" in toy.log("end"))
    until(lambda: "arm@b" in locked(toy))
    worker = int((toy.root / "executions.log").read_text().split("start a ")[1].split()[1])
    running.kill()
    running.wait(600)
    # The parent that forked it ends it as a rule; what it could not end, the next run does.
    toy.grant("a")
    toy.forget_log()
    done = toy.lensmith("run")
    assert done.returncode == 0, done.stderr + done.stdout
    assert toy.log() == ["a", "join"]
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE


def test_source_archive_without_git_runs(toy: Toy) -> None:
    shutil.rmtree(toy.root / ".git")
    done = toy.lensmith("run")
    assert done.returncode == 0, done.stderr
    assert "no_scm = true" in (toy.root / ".dvc" / "config.local").read_text()
    again = toy.lensmith("run")
    assert "nothing executed" in again.stdout


def test_unreachable_mlflow_store_costs_nothing_but_a_warning(toy: Toy) -> None:
    done = toy.lensmith("run", LENSMITH_TRACKING="on", MLFLOW_TRACKING_URI="sqlite:////proc/nowhere/mlflow.db")
    assert done.returncode == 0, done.stderr
    assert locked(toy) == NODES
    warnings = [line for line in done.stdout.splitlines() if "warning: MLflow at sqlite:////proc/nowhere" in line]
    assert warnings and "Remedy" in warnings[0]


def test_computation_cannot_see_tracking_in_its_outputs(toy: Toy) -> None:
    assert toy.lensmith("run").returncode == 0
    before = (toy.root / "dvc.lock").read_bytes()
    toy.dvc("repro", "-f")
    assert (toy.root / "dvc.lock").read_bytes() == before


def test_not_a_working_copy(tmp_path: Path, toy: Toy) -> None:
    done = toy.lensmith("run", LENSMITH_ROOT=str(tmp_path / "empty"))
    assert done.returncode == 2 and one_line_error(done.stderr)
