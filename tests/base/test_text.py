"""Text of other people's is shown, and does nothing."""

import unicodedata

import pytest

from stages.base.text import plain, safe_name, shown_word
from stages.base.users_code import words
from stages.errors import MethodError

HOSTILE = [
    "\x1b[2J\x1b]0;title\x07", "a\r\nb\tc", "\u202egnp.exe", "\u2028line", "null\x00",
    "\x9b31m", "\ud800", "\u200b", "\ue000",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_unseen_is_left(text):
    for said in (plain(text), words(ValueError(text)), str(MethodError(text, "here", text, text))):
        assert said.isprintable() and "\n" not in said
        assert not [c for c in said if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]


def test_ordinary_text_stays_as_it_is():
    text = "shapes (3, 4) and (5,) do not fit: größer als 5 — [red] <b> =1+1 日本"
    assert plain(text) == text
    assert plain("x" * 5000) == "x" * 2000


@pytest.mark.parametrize(
    "name", ["=cmd|'/C calc'!A0", "../../etc/passwd", "-rf", "@SUM(1)", "<script>", "a b", "[red]x", ""]
)
def test_a_name_is_no_path_option_formula_or_markup(name):
    found = safe_name(name)
    assert found and found[0] not in "=+-@." and not set(found) & set("/<>[]|'!() ")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_word_shows_blanks_and_line_ends_and_nothing_unseen(text):
    said = shown_word(text)
    assert said.isprintable() and said and len(said) <= 41
    assert not [c for c in said if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")]


def test_a_word_keeps_what_tells_it_from_others():
    assert shown_word(" the") == " the" != shown_word("the")
    assert (
        shown_word("\n\n   ") == "\u21b5\u21b5   " and shown_word("\t") == "\u21e5" and shown_word("\u00a0") == "\u00b7"
    )
    assert shown_word("   ") == "\u00b7" * 3 and shown_word("a\u00a0b") == "a b"
    assert shown_word("") == "?" and shown_word("x" * 50) == "x" * 40 + "\u2026"
    assert shown_word("<b>&amp;") == "<b>&amp;", "markup is text: the page escapes it"
