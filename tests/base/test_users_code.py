"""Where code of the user's own failed, and how far long work has come."""

from pathlib import Path

import pytest

from flows.progress import counting
from stages.base.progress import listening, report
from stages.base.users_code import given_by_the_user
from stages.errors import UserError


def run(tmp_path: Path, code: str, ours: tuple[str, ...] = ()) -> None:
    file = tmp_path / "mine.py"
    file.write_text(code)
    space: dict[str, object] = {}
    exec(compile(code, str(file), "exec"), space)
    with given_by_the_user("mine fails", ours=ours):
        space["f"]()  # type: ignore[operator]


def test_the_last_line_of_the_users_own_is_named(tmp_path: Path) -> None:
    inner = "import json\ndef g(text):\n    return json.loads(text)\ndef f():\n    return g('{')\n"
    with pytest.raises(
        UserError, match=r"mine fails with JSONDecodeError: .* at .*mine.py:3 `return json.loads\(text\)`"
    ):
        run(tmp_path, inner)
    with pytest.raises(UserError, match=r"AssertionError: no message at .*mine.py:2 `assert 1 == 2`"):
        run(tmp_path, "def f():\n    assert 1 == 2\n")
    with pytest.raises(UserError, match=r"^already said$"):
        run(tmp_path, "from stages.errors import UserError\ndef f():\n    raise UserError('already said')\n")


def test_what_fails_in_our_own_code_is_passed_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, "def f():\n    return 1 / 0\n", ours=(str(tmp_path),))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "def f():\n    raise KeyboardInterrupt\n")


def test_reports_go_to_who_listens() -> None:
    said: list[tuple[str, int, int]] = []
    report("nobody", 0, 1)
    with listening(lambda *given: said.append(given)):
        report("work", 1, 3)
    report("nobody", 0, 1)
    assert said == [("work", 1, 3)]


def test_lines_off_a_terminal_and_a_bar_on_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting("search"):
        report("work", 0, 3)
        report("work", 1, 3)
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines() == [
        "[  0:00] search: started",
        "[  0:00] search: done after 0:00",
    ]
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with counting("search"):
        report("work", 1, 3)
    shown = capsys.readouterr()
    assert shown.out == "" and "\x1b" in shown.err
