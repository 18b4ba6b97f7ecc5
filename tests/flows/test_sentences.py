"""What may be said of methods, on a terminal: three reaches, the smallest visible reward, the strongest in words."""

import io

import pytest
from rich.console import Console

from flows.terminal import print_difference, print_leaderboard, print_statements, statement_rows
from stages.contracts.reward_rows import STATEMENTS, StatementRow
from stages.reward.statements import stated
from tests.reward.test_statements import effect

KINDS = ("Attribute", "Compare", "Localise", "Propose", "Represent", "Steer")


def said() -> tuple[StatementRow, ...]:
    """Three families a kind; `pca` helps on Localise alone and declines Steer; a control that helps nowhere."""
    effects = []
    for kind in KINDS:
        for i in range(3):
            helps = 0.30 + 0.001 * i if kind == "Localise" else 0.0001 * i
            effects.append(effect("pca", f"{kind}{i}", helps, kind, answered=kind != "Steer"))
            effects.append(effect("random_features", f"{kind}{i}", 0.001 * (-1) ** i, kind))
    return stated(effects, "validation")


def shown(rows: tuple[StatementRow, ...], width: int = 100) -> str:
    out = io.StringIO()
    print_statements(Console(file=out, width=width, force_terminal=True, color_system=None), rows, "validation")
    return out.getvalue()


def test_all_kinds_of_question_fit_in_a_hundred_columns_and_what_is_better_is_marked() -> None:
    text = shown(said())
    assert max(len(line) for line in text.splitlines() if not line.startswith("On ")) <= 100
    assert "on families like these 18 validation families" in text
    line = next(line for line in text.splitlines() if ">+0.301 (3)" in line)
    assert line.split()[0] == "pca" and line.split()[-1] == "-", "it declines Steer"
    assert "On questions of kind Localise (3 validation families) pca is better than the agent alone" in text
    assert "random_features is better" not in text


@pytest.mark.parametrize("width", [38, 60])
def test_no_number_is_lost_in_a_narrow_window(width: int) -> None:
    text = shown(said(), width)
    row = next(row for row in said() if (row.method, row.scope) == ("pca", "families"))
    assert row.low is not None and row.high is not None and row.visible is not None
    assert f"{row.low:+.3f}..{row.high:+.3f}" in text and f"{row.visible:.3f}" in text


def test_a_difference_names_the_rival_everywhere() -> None:
    rows = tuple(row.model_copy(update={"against": "sae", "split": "test"}) for row in said() if row.method == "pca")
    out = io.StringIO()
    print_difference(Console(file=out, width=100), rows, "test")
    text = out.getvalue()
    assert "reward over that of sae" in text and "~ sae" in text and "baseline" not in text
    assert "better than sae" in text and "keeps no draws" in text


def test_a_leaderboard_without_sentences_is_shown_as_before(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that has not come to them, or one of an older version."""
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    assert statement_rows("validation") == []
    print_leaderboard(Console(width=100), [], "leaderboard")
    print_statements(Console(width=100), [], "validation")
    assert "leaderboard" in capsys.readouterr().out
    rows = (*said(), said()[0].model_copy(update={"split": "train+validation"}))
    STATEMENTS.save(rows)
    assert len(statement_rows("validation")) == len(rows) and len(statement_rows("train")) == 1
