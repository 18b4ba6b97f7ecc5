"""Where in somebody else's file an exception comes from: file, line and the line's text."""

import inspect
import linecache
import traceback
from pathlib import Path

__all__ = ["blame", "file_of", "words"]


def words(error: BaseException) -> str:
    """What an exception says, on one line, its type in front."""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def blame(error: BaseException, file: str | Path, shown: str = "") -> str:
    """ "name.py line 12 (`the line`): ValueError: ...": the innermost frame that lies in ``file``; without one the
    words alone.

    Args:
        shown: name of the file in the message; empty: its own.
    """
    path = str(file)
    if isinstance(error, SyntaxError) and error.filename == path:
        place, text = error.lineno or 0, (error.text or "").strip()
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if not frames:
            return words(error)
        place = frames[-1].lineno or 0
        text = (frames[-1].line or linecache.getline(path, place)).strip()
    line = f" (`{text[:120]}`)" if text else ""
    return f"{shown or Path(path).name} line {place}{line}: {words(error)}"


def file_of(thing: object) -> str:
    """The file that an object's class is written in; a class of a notebook has one of its own."""
    try:
        return inspect.getfile(type(thing))
    except (TypeError, OSError):
        return ""
