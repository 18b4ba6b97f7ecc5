"""What became of a node: the stage's own note, and what is inferred where it left none."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.outcome import NodeStatus, infer_cause, outcome_of, read_status
from tests.flows.conftest import REPOSITORY

EXITED = "ERROR: failed to reproduce 'x@a': failed to run: python -m stages.x a, exited with {}"
FAILED = NodeStatus("failed", None, "params/x.yaml: unknown key 'stepz'", True)


def test_the_note_of_a_stage_is_the_cause() -> None:
    outcome = outcome_of("x@a", 1.0, 255, FAILED, ["error: another text", EXITED.format(1)])
    assert (outcome.state, outcome.cause, outcome.users_fault) == ("failed", FAILED.cause, True)


def test_executed_if_the_stage_left_a_note_else_cached() -> None:
    done = outcome_of("x", 1.0, 0, NodeStatus("done", 0.5, "", False), [])
    assert (done.state, done.computation_s) == ("executed", 0.5)
    assert outcome_of("x", 1.0, 0, None, ["Stage 'x' didn't change, skipping"]).state == "cached"


def test_a_stage_that_ended_well_and_dvc_that_did_not() -> None:
    text = "ERROR: output 'data/x' does not exist"
    outcome = outcome_of("x", 1.0, 255, NodeStatus("done", 0.5, "", False), [text])
    assert (outcome.state, outcome.cause) == ("failed", "output 'data/x' does not exist")


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (["Running stage 'x':", EXITED.format(-9)], "killed, most likely for memory"),
        (["Running stage 'x':", EXITED.format(137)], "killed, most likely for memory"),
        (
            ["OSError: [Errno 28] No space left on device: 'data/x'", EXITED.format(1)],
            "no space left",
        ),
        (["ERROR: output 'data/x' is a symlink"], "output 'data/x' is a symlink"),
        (
            ["SyntaxError: invalid syntax", EXITED.format(1)],
            "SyntaxError: invalid syntax (exit status 1)",
        ),
        ([], "it printed nothing (exit status 255)"),
    ],
)
def test_what_is_inferred_without_a_note(output: list[str], cause: str) -> None:
    assert cause in infer_cause(255, output)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", ("done", "", False, 0)),
        ("raise UserError('steps = -1')", ("failed", "steps = -1", True, 2)),
        ("raise KeyError('x')", ("failed", "KeyError: 'x'", False, 1)),
        ("raise OSError(28, 'full', 'data/x')", ("failed", "no space left at data/x", False, 1)),
    ],
)
def test_what_a_stage_notes(tmp_path: Path, code: str, status: tuple[str, str, bool, int]) -> None:
    text = f"from stages.errors import *\ndef main():\n    {code}\nrun_stage(lambda: main)"
    path = tmp_path / "x.json"
    environment = {"PYTHONPATH": str(REPOSITORY), "LENSMITH_STATUS": str(path)}
    done = subprocess.run([sys.executable, "-c", text], env=environment, capture_output=True, text=True)
    noted = read_status(path)
    assert noted is not None
    state, cause, users_fault, exit_code = status
    assert (noted.state, noted.users_fault, done.returncode) == (state, users_fault, exit_code)
    assert cause in noted.cause and (noted.computation_s is not None) == (state == "done")
    assert done.stderr == (f"error: {noted.cause}\n" if cause else "")
    assert list(tmp_path.iterdir()) == [path]


def test_no_note_without_a_run(tmp_path: Path) -> None:
    text = "from stages.errors import run_stage\nrun_stage(lambda: lambda: None)"
    environment = {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-c", text], env=environment, cwd=tmp_path, check=True)
    assert list(tmp_path.iterdir()) == []
    assert read_status(tmp_path / "none.json") is None


def test_a_stage_starts_light() -> None:
    heavy = {"json", "socket", "torch", "numpy"}
    code = f"import sys, stages.__main__; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-S", "-c", code]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout == "[]\n"
