"""Code of the user's own that runs inside ours: where it failed, in one line with file, line and that line's text.

A function, a module or a file that somebody gave is not our fault when it raises, and a user cannot mend it without
knowing where. What fails in our own code on the way stays an error of ours.
"""

import inspect
import linecache
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from stages.base.text import plain
from stages.errors import UserError

__all__ = ["blame", "failed_at", "file_of", "given_by_the_user", "users_module", "words"]

LIBRARIES = tuple(
    str(Path(found).resolve()) for found in {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")}
)
"""What a user's code calls: an error raised in there is told by the line that called it."""


@contextmanager
def given_by_the_user(what: str, ours: tuple[str, ...] = ()) -> Iterator[None]:
    """Turn what the block raises into one line that says where in the user's code it happened.

    Args:
        what: what failed at what, such as "the module fails on inputs (4, 3)".
        ours: files of code that the user's may call back: an error raised there is passed on as it is.

    Raises:
        UserError: the block raised; an error that already is one is passed on.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        place = failed_at(error)
        if place.startswith(ours):
            raise
        said = plain(error) or "no message"
        raise UserError(f"{what} with {type(error).__name__}: {said[:300]}{_shown(place)}; mend it") from error


def users_module(path: Path) -> ModuleType:
    """Import a file of the user's, with the user's rights.

    Raises:
        UserError: it raised; says file, line and that line's text.
    """
    spec = spec_from_file_location(f"given.{path.stem}", path)
    assert spec is not None and spec.loader is not None, "a file that ends in .py has a loader"
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    with given_by_the_user(f"{path} does not import"):
        spec.loader.exec_module(module)
    return module


def failed_at(error: BaseException) -> str:
    """ "file:line" where it was raised, or of the last line outside of libraries that led there; "" if unknown."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return f"{error.filename}:{error.lineno}"
    # The first two frames are the block that waits for the error and who opened it: ours.
    frames = [frame for frame in traceback.extract_tb(error.__traceback__)[2:] if not frame.filename.startswith("<")]
    own = [frame for frame in frames if not str(Path(frame.filename).resolve()).startswith(LIBRARIES)]
    last = own[-1:]
    return f"{last[0].filename}:{last[0].lineno}" if last else ""


def _shown(place: str) -> str:
    """ " at file.py:3 `text of the line`"."""
    file, _, line = place.rpartition(":")
    if not file:
        return ""
    linecache.checkcache(file)
    text = linecache.getline(file, int(line)).strip()
    return f" at {place}" + (f" `{text[:120]}`" if text else "")


def words(error: BaseException) -> str:
    """What an exception says, on one line, its type in front."""
    said = plain(error)
    return f"{plain(type(error).__name__, 80)}: {said}" if said else plain(type(error).__name__, 80)


def blame(error: BaseException, file: str | Path, shown: str = "") -> str:
    """ "name.py line 12 (`the line`): ValueError: ...": the innermost frame that lies in ``file``; without one the
    words alone.

    Args:
        shown: name of the file in the message; empty: its own.
    """
    path = str(file)
    if isinstance(error, SyntaxError) and error.filename == path:
        place, text = error.lineno or 0, plain(error.text or "")
    else:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        if not frames:
            return words(error)
        place = frames[-1].lineno or 0
        text = plain(frames[-1].line or linecache.getline(path, place))
    line = f" (`{text[:120]}`)" if text else ""
    return f"{shown or Path(path).name} line {place}{line}: {words(error)}"


def file_of(thing: object) -> str:
    """The file that an object's class is written in; a class of a notebook has one of its own."""
    try:
        return inspect.getfile(type(thing))
    except (TypeError, OSError):
        return ""
