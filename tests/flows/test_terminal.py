"""Tables where there is little room, and progress where there is no terminal."""

import io
import re
import sys
import time

import pytest
from rich.console import Console
from rich.table import Table

from flows import progress
from flows.outcome import Outcome
from flows.progress import telling
from flows.tables import print_table
from flows.terminal import print_rows
from tests.flows.conftest import REPOSITORY, Toy

NUMBERS = ("-0.12345678", "+0.053..+0.153", "x1.12", "12,345,678")


def printed(width: int, terminal: bool = True) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    table = Table("method", "reward", "95% interval", "FLOPs", "n", "", title="leaderboard")
    table.add_row("raw_activations", *NUMBERS, "not distinguishable from the baseline, which is a long text")
    print_table(console, table)
    return out.getvalue()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 200])
def test_no_number_is_cut_or_broken_however_narrow_it_is(width: int) -> None:
    text = printed(width)
    for number in NUMBERS:
        assert number in text, text
    assert max(map(len, text.splitlines())) <= width and "\u2026" not in text
    assert "raw_activations" in text and "leaderboard" in text


def test_rows_are_stacked_with_their_names_where_they_do_not_fit_side_by_side() -> None:
    narrow, wide = printed(40), printed(120)
    assert re.search(r"reward: -0\.12345678", narrow) and re.search(r"95% interval: \+0\.053", narrow)
    assert "reward:" not in wide and sum("raw_activations" in line for line in wide.splitlines()) == 1


def test_a_file_has_no_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    text = printed(80, terminal=False)
    assert any(all(number in line for number in NUMBERS) for line in text.splitlines())


def test_what_a_row_says_is_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(Console(width=100), [{"name": "[bold]x[/bold]", "value": 1.0}])
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_a_leaderboard_in_a_narrow_window_has_all_its_numbers(done_toy: Toy) -> None:
    text = done_toy.lensmith("leaderboard", COLUMNS="38").stdout
    assert all(number in text for number in ("+0.250", "+0.100..+0.400", "+0.200", "x0.50")), text
    assert max(map(len, text.splitlines())) <= 38


def test_off_a_terminal_progress_is_lines_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "OFTEN_S", 0.2)
    monkeypatch.setattr(progress, "SELDOM_S", 0.5)
    with telling(Console(file=sys.stdout, force_terminal=False), "scoring") as tell:
        for i in range(30):
            tell(f"task {i}")
        time.sleep(1.5)
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert said.out == "", "stdout is for the result"
    assert all(re.match(r"\[ *\d+:\d\d\] scoring: ", line) for line in lines)
    assert lines[0].endswith("started") and "done after" in lines[-1]
    assert sum("task 29" in line for line in lines) >= 2, "the last word, and that it is still at work"
    assert any("still at work: task 29" in line for line in lines)
    assert len(lines) < 12, "many messages are few lines"


def test_off_a_terminal_a_run_names_the_nodes_that_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "SELDOM_S", 0.3)
    out = io.StringIO()
    with progress.progress_view(Console(file=out, force_terminal=False), 3) as view:
        view.start("a")
        view.start("b")
        time.sleep(1)
        view.end(Outcome("a", "executed", 1.0))
        time.sleep(1)
    beats = [line for line in out.getvalue().splitlines() if "at work: " in line]
    assert any("a 0:0" in line and "b 0:0" in line for line in beats), "both, and how long"
    assert "a 0:0" not in beats[-1] and "b 0:0" in beats[-1], "what has ended is not named"
    assert len(out.getvalue().splitlines()) < 12


def test_on_a_terminal_it_is_one_line_that_changes(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    with telling(Console(file=out, force_terminal=True, width=80), "scoring") as tell:
        tell("[red]x")
    assert "scoring" in out.getvalue() and capsys.readouterr().err == ""


def test_a_failure_ends_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError), telling(Console(force_terminal=False), "work"):
        raise ZeroDivisionError
    assert "done" not in capsys.readouterr().err


def test_long_commands_tell_their_progress_off_a_terminal_too() -> None:
    """rich's own status prints nothing there."""
    folder = REPOSITORY / "flows" / "commands"
    told = {path.stem for path in folder.glob("*.py") if "telling(" in path.read_text(encoding="utf-8")}
    assert told >= {"results", "redteam", "tasks", "bench", "editing", "store"}
    assert not [name for name in told if ".status(" in (folder / f"{name}.py").read_text(encoding="utf-8")]
