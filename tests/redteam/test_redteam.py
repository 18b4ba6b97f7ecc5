"""The red team on the toy graph: nothing gets through, and what got through would be noticed."""

import textwrap
from pathlib import Path

import pytest

from stages.errors import UserError
from stages.redteam.red_team import (
    CONTROLS,
    EXPLOITS,
    QUICK,
    _constants,
    failures,
    red_team,
)
from tests.sandbox.walls import needs_sandbox

HEAD = """
import torch
from lensmith import Interpretation, Method
"""


def write(tmp_path, text: str):
    path = tmp_path / "mine.py"
    path.write_text(HEAD + textwrap.dedent(text), encoding="utf-8")
    return path


@needs_sandbox
def test_the_cross_section_holds(graph):
    found = red_team(quick=True)
    rows = found.rows
    assert (found.generated, found.above_nothing, found.punished, found.faults) == (40, 0, 0, [])
    assert found.honest == 40 and set(found.by_end) == {"priced", "refused"}
    assert failures(rows) == []
    names = {row["name"] for row in rows}
    assert set(QUICK) < names and any(row["kind"] == "control" for row in rows)
    assert {"void", "blocked", "ok"} == {row["outcome"] for row in rows}
    assert all(set(row) >= {"name", "kind", "outcome", "charged_flops", "reward", "layer"} for row in rows)
    assert all(row["reward"] is None for row in rows if row["outcome"] == "void")


@needs_sandbox
@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (
            """
            class Mine(Method):
                def interpret(self, target, budget): raise RuntimeError("BREACH: on purpose")
                def answer(self, query, interpretation, target): return None
            """,
            "breached",
        ),
        (
            """
            TRUE_FLOPS = 10**15
            class Mine(Method):
                adaptive = True
                def interpret(self, target, budget): return Interpretation()
                def answer(self, query, interpretation, target): return torch.zeros(len(query.inputs), 1)
            """,
            "uncharged",
        ),
    ],
)
def test_what_gets_through_is_a_failure(graph, tmp_path, text, outcome):
    """Wrong on purpose: the red team must be able to lose."""
    (row,) = red_team(file=write(tmp_path, text)).rows
    assert row["outcome"] == outcome and failures([row]) == [row]


def test_every_test_of_the_list_is_covered():
    from stages.redteam import pipeline_attacks as house_rows

    covered = {n for path in EXPLOITS.glob("*.py") for n in _constants(path).get("TESTS", ())}
    text = Path(house_rows.__file__).read_text(encoding="utf-8")
    covered |= {n for n in range(1, 29) if f"({n}," in text or f", {n})" in text}
    assert covered >= set(range(1, 29))
    assert len([p for p in EXPLOITS.glob("*.py") if 23 in _constants(p).get("TESTS", ())]) >= 20
    assert len(list(CONTROLS.glob("*.py"))) >= 3


def test_every_exploit_says_what_it_tries():
    for path in (*EXPLOITS.glob("*.py"), *CONTROLS.glob("*.py")):
        assert path.read_text(encoding="utf-8").startswith('"""'), path.name


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        red_team(file=tmp_path / "none.py")
