"""`lensmith score` on the toy graph: a good method, a bad one, and every way to be broken."""

import json
import subprocess
import sys
import textwrap
import unicodedata
from pathlib import Path

import pytest

from flows.terminal import to_json
from stages.contracts.score_result import ScoreResult
from stages.errors import MethodError, UserError
from stages.scoring.score import score_method
from tests import toy
from tests.sandbox.walls import needs_sandbox

HEAD = """
import os, time, torch
from lensmith import Attribute, Interpretation, Method, Represent

class Mine(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        return None
"""


def write(folder: Path, body: str) -> Path:
    path = folder / "mine.py"
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "), encoding="utf-8")
    return path


def scored(path: Path, **options: float) -> ScoreResult:
    return score_method(path, progress=lambda said: None, **({"fresh": False} | options))


def test_a_method_is_shown_next_to_the_built_in_ones(graph, tmp_path):
    result = scored(toy.ROOT / "examples" / "my_method.py")
    assert ScoreResult.model_validate_json(to_json(result), strict=True) == result
    for split in ("train", "validation"):
        assert {row.method for row in result.rows if row.split == split} == {*toy.METHODS, "my_method"}
    assert {row.family for row in result.per_task} == {"active_learning", "few_shot_shapley"}
    assert result.verdict in ("better", "not distinguishable", "worse")
    assert "placebo" in result.verdict_text and "noise floor" in result.verdict_text


def test_declining_everything_is_exactly_zero(graph, tmp_path):
    result = scored(write(tmp_path, ""))
    mine = [row for row in result.rows if row.method == "mine"]
    assert all(row.reward_mean == row.reward_low == row.reward_high == 0.0 for row in mine)
    assert result.verdict == "not distinguishable"


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("def answer(self, query, interpretation, target): return torch.ones(3, 2)", "it has shape"),
        (
            "def answer(self, query, interpretation, target): return query.inputs.flatten(1)[:, :4] * float('nan')",
            "NaN|has shape",
        ),
        ("def answer(self, query, interpretation, target): raise KeyError('lost')", "KeyError"),
        ("def answer(self, query, interpretation, target): return 'a string'", "it returned str"),
        ("def answer(self, query, interpretation, target): time.sleep(600)", "longer than 2 s"),
        ("def answer(self, query, interpretation, target): os._exit(0)", "its process ended"),
        (
            "def answer(self, query, interpretation, target): return torch.ones(query.inputs.shape[0], 9999)",
            "has shape|9999",
        ),
    ],
)
def test_failing_to_answer_is_a_result_at_the_baselines_score(graph, tmp_path, body, cause):
    import re

    result = scored(write(tmp_path, body), timeout_s=2)
    assert {row.status for row in result.per_task} == {"failed"}
    assert all(re.search(cause, row.reason) for row in result.per_task)
    assert all(row.reward_mean <= 0 for row in result.per_task)
    assert "It failed on" in result.verdict_text


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("def interpret(self, target, budget): raise RuntimeError('no')", "RuntimeError: no"),
        ("def interpret(self, target, budget): return {'a': 1}", "not an Interpretation"),
        ("def interpret(self, target, budget): time.sleep(600)", "longer than 2 s"),
        (
            "def interpret(self, target, budget): return Interpretation({'big': torch.zeros(4_000_000)})",
            "16,000,000 bytes, 8,000,000 are allowed",
        ),
        (
            "def interpret(self, target, budget): return Interpretation({'x': torch.full((3,), float('inf'))})",
            "NaN or inf",
        ),
        ("def interpret(self, target, budget): return Interpretation({}, {'f': 1j})", "cannot be sent|not JSON"),
    ],
)
def test_failing_to_interpret_is_one_line_and_changes_nothing(graph, tmp_path, body, cause):
    before = {file: file.stat().st_mtime_ns for file in graph.rglob("*") if file.is_file()}
    with pytest.raises(MethodError, match=cause) as caught:
        scored(write(tmp_path, body), timeout_s=2)
    assert "\n" not in str(caught.value) and isinstance(caught.value, UserError)
    assert {file: file.stat().st_mtime_ns for file in graph.rglob("*") if file.is_file()} == before


def test_without_a_run_it_says_what_to_run(tmp_path):
    toy.write_params(tmp_path)
    with toy.rooted(tmp_path), pytest.raises(UserError, match="lensmith run"):
        scored(toy.ROOT / "examples" / "my_method.py")


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("import nonexistent_thing", 2, "ModuleNotFoundError"),
        (HEAD.replace("return Interpretation()", "raise ValueError('why not')"), 2, "why not"),
        (HEAD, 0, "verdict"),
    ],
)
def test_on_the_command_line_a_broken_method_is_one_line_and_exit_code_2(graph, tmp_path, source, code, said):
    path = tmp_path / "mine.py"
    path.write_text(source, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "flows.command", "score", str(path)],
        cwd=toy.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr
    if code:
        progress, *errors = done.stderr.strip().splitlines()
        assert progress.endswith("scoring: started") and "Traceback" not in done.stderr
        assert len([line for line in errors if not line.startswith("[")]) == 1


HOSTILE = """
from lensmith import Interpretation, Method


class Evil(Method):
    \'\'\'<script>alert(1)</script>\'\'\'
    name = "=1+1<b>\\x1b[31m"

    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        raise ValueError("\\x1b[2J\\x1b]0;owned\\x07[bold red]@SUM(1)\\u202e<script>alert(1)</script>\\r\\nforged line")
"""


@needs_sandbox
def test_what_a_method_says_is_shown_and_does_nothing(graph, tmp_path):
    path = tmp_path / "=1+1 [red].py"
    path.write_text(HOSTILE, encoding="utf-8")
    command = [sys.executable, "-m", "flows.command", "score", str(path), "--json", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=toy.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = (tmp_path / "out.json").read_text(encoding="utf-8")
    for shown in (done.stdout, done.stderr, result):
        assert not [c for c in shown if c != "\n" and unicodedata.category(c) in ("Cc", "Cf")]
        assert "\nforged line" not in shown
    said = json.loads(result)
    assert said["method"] == "_1_1__red_" and "forged line" in said["reason"]
    assert "[bold red]" in "".join(done.stdout.split("\n")).replace(" ", "").replace("boldred", "bold red")
