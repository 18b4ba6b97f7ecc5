"""`lensmith editing removal` on a target saved in a working copy of its own."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.command import app
from stages.contracts.target import Target
from stages.targets.storage import save_target

RUNNER = CliRunner()


def test_the_command_prints_json_and_tables(mlp: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    save_target(mlp, tmp_path / "data" / "targets" / "digits_mlp")
    asked = ["editing", "removal", "digits_mlp", "--behaviour", "3", "--seeds", "1", "--draws", "1"]
    shown = RUNNER.invoke(app, [*asked, "--json"])
    assert shown.exit_code == 0, shown.output
    found = json.loads(shown.stdout)
    assert {row["behaviour"] for row in found["rows"]} == {"answer 3"} and found["digest"] == mlp.digest
    table = RUNNER.invoke(app, asked)
    assert table.exit_code == 0 and "task-vector" in table.output and "disjoint circuit" in table.output
    wrong = RUNNER.invoke(app, ["editing", "removal", "digits_mlp", "--behaviour", "77"])
    assert wrong.exit_code != 0 and "answer 77 is not one of digits_mlp" in str(wrong.exception)
