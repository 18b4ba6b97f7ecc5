"""The two commands of the README, as far as they can be seen without installing again."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house import ROOT

TOOLS = ("bash", "make", "env", "sh")


@pytest.fixture
def bin_dir(tmp_path: Path) -> Path:
    """A PATH with nothing on it but what make itself needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return folder


def command(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def interpreter(bin_dir: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["make", "--silent", "--no-print-directory", "interpreter", *words],
        cwd=ROOT,
        env={"PATH": str(bin_dir)},
        capture_output=True,
        text=True,
    )


def test_a_command_that_exists_and_fails_is_passed_over(bin_dir: Path) -> None:
    command(bin_dir / "python3.11", "echo 'command not found' >&2; exit 127")
    command(bin_dir / "python3", f'exec {sys.executable} "$@"')
    done = interpreter(bin_dir)
    assert done.stdout.strip() == "python3", done.stderr


def test_no_usable_python_is_one_line_with_the_remedy(bin_dir: Path) -> None:
    command(bin_dir / "python3", "exit 1")
    done = interpreter(bin_dir)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("make: no Python")]
    assert len(said) == 1 and "PYTHON=" in said[0]


def test_python_can_be_named(bin_dir: Path) -> None:
    assert interpreter(bin_dir, f"PYTHON={sys.executable}").stdout.strip() == sys.executable


def test_constraints_pin_every_installed_dependency_and_name_no_host() -> None:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    pin = re.compile(r"^[A-Za-z0-9_.-]+==[^\s;]+(?: ; .+)?$")  # a marker says where a version counts
    assert all(pin.match(line) for line in lines), "one `name==version` a line"
    assert "://" not in text
    project = (ROOT / "pyproject.toml").read_text()
    wanted = re.findall(
        r'^    "([a-z-]+)",', project.split("dependencies = [", 1)[1].split("\n]\n\n[project.scripts]")[0], re.M
    )
    pinned = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines}
    assert "torch" in wanted and "pytest" in wanted
    assert {name.lower() for name in wanted} <= pinned


def test_ci_run_is_executable_and_calls_test_and_check() -> None:
    path = ROOT / ".ci" / "run"
    assert os.access(path, os.X_OK)
    assert {"make test", "make check"} <= set(path.read_text().splitlines())
