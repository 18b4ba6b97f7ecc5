"""Text of other people's (names, exceptions, files) made fit to be shown: one line, nothing that a terminal, a log or a
reader would act on."""

import re
import unicodedata

__all__ = ["plain", "plain_lines", "safe_name", "shown_word"]

ODD = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Unicode categories of what is not seen: control, format (writing direction too), surrogate, private, unassigned, line
and paragraph separators."""


def plain(text: object, limit: int = 2000) -> str:
    """The text on one line: white space is one blank, what cannot be seen is a question mark, and no more than
    ``limit`` characters."""
    joined = " ".join(str(text).split())
    return "".join("?" if unicodedata.category(char) in ODD else char for char in joined)[:limit]


def plain_lines(text: object, limit: int) -> str:
    """As ``plain``, with line ends and blanks kept."""
    joined = str(text).replace("\r\n", "\n").expandtabs(4)[:limit]
    shown = ("\n" if char == "\n" else " " if unicodedata.category(char) == "Zs" else plain(char) for char in joined)
    return "".join(shown)


SIGNS = {"\n": "\u21b5", "\r": "\u2190", "\t": "\u21e5"}
"""What stands for white space that would not be seen in a word."""


def shown_word(word: str, limit: int = 40) -> str:
    """A word of a model as a reader sees it: blanks stay (in a word of nothing else they are dots), line ends and tabs
    have signs, what else cannot be seen is a question mark. No more than ``limit`` characters; never empty."""

    def seen(char: str) -> str:
        if char in SIGNS:
            return SIGNS[char]
        category = unicodedata.category(char)
        return "?" if category in ODD else " " if category == "Zs" else char

    shown = "".join(map(seen, word[:limit])) + ("\u2026" if len(word) > limit else "")
    return shown if shown.strip() else "\u00b7" * len(shown) or "?"


def safe_name(text: object) -> str:
    """A name of letters, digits, dots, dashes and underscores that does not begin like a formula or an option."""
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(text))[:64]
    return name if re.match(r"[A-Za-z0-9_]", name) else f"_{name}"[:64]
