"""The line of a user's file that an exception is told by."""

import linecache
from pathlib import Path

import pytest

from stages.base.users_code import blame, failed_at, given_by_the_user, words
from stages.errors import UserError


def caught(file: Path, code: str) -> Exception:
    """What a function ``f`` of a file raises."""
    file.write_text(code)
    space: dict[str, object] = {}
    try:
        exec(compile(code, str(file), "exec"), space)
        space["f"]()  # type: ignore[operator]
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_the_innermost_line_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    code = "def g(x):\n    return [] + x\ndef f():\n    y = 1\n    return g(y)\n"
    said = 'mine.py line 2 (`return [] + x`): TypeError: can only concatenate list (not "int") to list'
    error = caught(file, code)
    assert blame(error, file) == blame(error, str(file)) == said
    assert blame(error, file, "yours.py").startswith("yours.py line 2 (")
    assert blame(error, tmp_path / "other.py") == words(error), "no frame of it is in there"


def test_a_file_whose_text_is_known_without_its_frame(tmp_path: Path) -> None:
    file = tmp_path / "gone.py"
    error = caught(file, "def f():\n    raise ValueError('no')\n")
    linecache.clearcache()
    file.unlink()
    assert blame(error, file) == "gone.py line 2: ValueError: no", "the text is gone, and the line is told"


def test_a_syntax_error_is_where_the_parser_says(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    error = caught(file, "x = 1\ndef f(:\n    pass\n")
    assert blame(error, file) == "mine.py line 2 (`def f(:`): SyntaxError: invalid syntax (mine.py, line 2)"
    assert failed_at(error) == f"{file}:2"
    inside = caught(file, "def f():\n    compile('(', 'theirs.py', 'exec')\n")
    assert blame(inside, file).startswith("mine.py line 2 (`compile('(', 'theirs.py', 'exec')`): SyntaxError")
    without = SyntaxError("bad", (str(file), None, None, None))
    assert blame(without, file) == "mine.py line 0: SyntaxError: bad (mine.py)"


def test_what_an_exception_says_is_one_line_of_a_bounded_length() -> None:
    assert words(ValueError()) == "ValueError" and words(KeyError("a\nb")) == r"KeyError: 'a\nb'"
    long = type("E" * 100, (Exception,), {})
    assert words(long("x")) == "E" * 80 + ": x" and words(long()) == "E" * 80


def test_an_edited_file_is_shown_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    for line in ("assert 1 == 2", "assert 11 == 22"):
        code = f"def f():\n    {line}\n"
        file.write_text(code)
        space: dict[str, object] = {}
        exec(compile(code, str(file), "exec"), space)
        with pytest.raises(UserError) as raised, given_by_the_user("it fails"):
            space["f"]()  # type: ignore[operator]
        assert str(raised.value).endswith(f"mine.py:2 `{line}`; mend it")


def test_without_a_place_the_words_alone_are_said() -> None:
    with pytest.raises(UserError, match=r"^it fails with ValueError: no; mend it$"), given_by_the_user("it fails"):
        exec("raise ValueError('no')")
