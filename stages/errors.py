"""Three kinds of error: user errors (exit code 2), method errors, and internal errors (exit code
1).

Imported before anything else of a stage, so only light modules of the standard library are imported
here.
"""

import contextlib
import errno
import gc
import os
import re
import sys
import time
from collections.abc import Callable, Iterator

from stages.base.progress import listening, now_and_then
from stages.base.text import plain

__all__ = ["STATUS", "InfraError", "MethodError", "UserError", "explain_os", "os_cause", "os_said", "run_stage"]

STATUS = "LENSMITH_STATUS"
"""Names the file in which a stage notes how it ended; set by a run, absent under a plain ``dvc
repro``.
"""
SAYS_EVERY = 15.0
"""Seconds between two lines about how far a stage has come."""


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: the value, what is allowed, the
    remedy.
    """


class MethodError(UserError):
    """A method broke its contract: it raised, hung, or returned something that is not an answer.

    Args:
        method: name of the method.
        place: where it broke, such as ``interpret on digits_mlp``.
        cause: what happened.
        remedy: what its author can do.
        layer: which limit or check it ran into, such as ``wall limit``.
    """

    def __init__(self, method: str, place: str, cause: str, remedy: str, layer: str = "answer check") -> None:
        # A method's own words come in here: they are shown in terminals, pages, logs and trackers.
        method, cause, remedy = plain(method, 200), plain(cause), plain(remedy)
        super().__init__(f"method {method!r} failed in {place}: {cause}{'.' * bool(remedy)} {remedy}".rstrip())
        self.method, self.place, self.cause, self.remedy, self.layer = method, place, cause, remedy, layer

    def __reduce__(self) -> tuple[type["MethodError"], tuple[str, str, str, str, str]]:
        # Else an exception with its own signature cannot be unpickled on its way back from a worker.
        return (MethodError, (self.method, self.place, self.cause, self.remedy, self.layer))


class InfraError(RuntimeError):
    """The machinery failed, not the method: there is no score, and nothing is learned from it. Run
    it again.
    """


def run_stage(load: Callable[[], Callable[[], None]]) -> None:
    """Run the ``main`` that ``load`` imports; a failure becomes one line on stderr, and an exit
    code.

    Exit code 2: the user's mistake, 1: ours. ``LENSMITH_DEBUG=1`` (set by ``lensmith --debug``)
    shows the traceback. How the stage ended is noted in the file that ``LENSMITH_STATUS`` names.
    """
    try:
        main = load()
        # The clock starts after the imports: they are the price of a process, not of the
        # computation.
        started = time.perf_counter()
        with listening(now_and_then(lambda message: print(message, flush=True), SAYS_EVERY)):
            main()
        computation_s = round(time.perf_counter() - started, 3)
        _write_status("done", computation_s, "", False)
        print(f"computation_s={computation_s:.3f}", flush=True)
        # The process ends, and its memory with it: without this the interpreter would first look at
        # every object of every library once more, for a second.
        gc.freeze()
    except Exception as error:
        cause, users_fault = _explain(error)
        _write_status("failed", None, cause, users_fault)
        if os.environ.get("LENSMITH_DEBUG") == "1":
            raise
        print(f"error: {cause}", file=sys.stderr)
        sys.exit(2 if users_fault else 1)


def _explain(error: Exception) -> tuple[str, bool]:
    """(what happened in one line, whether it is the user's mistake)."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text, True
    refused = os_cause(error)
    if refused is not None:
        return explain_os(refused)
    hint = "(a fault of ours: run again with --debug and report it)"
    return f"{type(error).__name__}: {text} {hint}", False


_READS = "what only reads goes on: `lensmith leaderboard`, `lensmith report`, `lensmith doctor`"
_AGAIN = "then run the same again: what is finished is kept"
_REFUSALS: dict[int, tuple[str, bool]] = {
    errno.ENOSPC: ("no space left at {where}: free some (`dvc gc --workspace`), then run again", False),
    errno.EDQUOT: ("no space left at {where}, by your quota: free some, then run again", False),
    errno.EROFS: (f"{{where}} cannot be written: the file system is read-only. {_READS[0].upper()}{_READS[1:]}. To"
                  " compute, mount it for writing, or copy the working copy to a place that can be written", True),
    errno.EACCES: (f"{{where}}: permission denied for user {os.getuid()}. Change its owner or mode, or work in a copy"
                   f" of your own; {_READS}", True),
    errno.EPERM: (f"{{where}}: not permitted for user {os.getuid()}. Change its owner or mode, or work in a copy"
                  f" of your own; {_READS}", True),
    errno.ENOENT: (f"{{where}} is not there: it was moved or deleted, or the path is misspelt. Mend the path, {_AGAIN}",
                   True),
    errno.ENOTDIR: (f"{{where}} goes through something that is no folder: move that away, {_AGAIN}", True),
    errno.EISDIR: (f"{{where}} is a folder where a file is wanted: move it away or give a file, {_AGAIN}", True),
    errno.EEXIST: (f"{{where}} is there already: move it away, {_AGAIN}", True),
    errno.ENOTEMPTY: (f"{{where}} is not empty: move its files away, {_AGAIN}", True),
    errno.ENAMETOOLONG: (f"{{where}}: the name is too long for this file system: use a shorter folder, {_AGAIN}", True),
    errno.ELOOP: (f"{{where}}: links that lead in a circle: mend them, {_AGAIN}", True),
    errno.ETXTBSY: (f"{{where}} is being executed: end that program, {_AGAIN}", True),
    errno.EMFILE: ("too many open files ({where}): raise the limit with `ulimit -n 4096`, then run again", False),
    errno.ENFILE: ("too many open files on this machine ({where}): close other programs, then run again", False),
    errno.ENOMEM: ("no memory left ({where}): close other programs or use --jobs 1, then run again", False),
    errno.EAGAIN: ("the system allows no more processes now ({where}): close other programs or use --jobs 1, then run"
                   " again", False),
}  # fmt: skip
"""What to say of a refusal of the operating system, and whether its user can mend it."""

_NUMBERED = re.compile(r"\[Errno (\d+)\]|\(os error (\d+)\)")
_NAMED = {
    "readonly database": errno.EROFS,
    "Read-only file system": errno.EROFS,
    "No space left on device": errno.ENOSPC,
    "database or disk is full": errno.ENOSPC,
    "unable to open database file": errno.EACCES,
    "disk I/O error": errno.EIO,
}
"""How libraries that hide the number say it (SQLite, safetensors)."""


def os_cause(error: BaseException) -> OSError | None:
    """What the operating system refused, where that is the cause of an error; libraries wrap it in their own."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno is not None:
            return one
        # Not an error of Python's own kinds: their texts are ours, and may quote anything.
        said = os_said(str(one)) if type(one).__module__ != "builtins" else None
        if said is not None:
            return said
    return None


def os_said(text: str) -> OSError | None:
    """The refusal of the operating system that a text quotes, if it quotes one."""
    found = _NUMBERED.search(text)
    number = int(found[1] or found[2]) if found else next((n for said, n in _NAMED.items() if said in text), None)
    if number is None:
        return None
    place = re.search(r"'(/[^']+)'", text)
    return OSError(number, os.strerror(number), place[1] if place else None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def explain_os(error: OSError) -> tuple[str, bool]:
    """(what the system refused in one line with the path, what still works and the remedy; whether its user can mend
    it). It is never a fault of the code that asked.
    """
    where = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    if isinstance(error.filename2, str | bytes):
        where += f" -> {os.fsdecode(error.filename2)}"
    known = _REFUSALS.get(error.errno or 0)
    if known is not None:
        text, users_fault = known
        return text.format(where=where or f"something in {os.getcwd()}"), users_fault  # noqa: PTH109
    said = error.strerror or str(error) or type(error).__name__
    place = f"{where}: " if where else ""
    return f"{place}{said} (the operating system's words): see that disk and network are well, {_AGAIN}", False


def _write_status(state: str, computation_s: float | None, cause: str, users_fault: bool) -> None:
    path = os.environ.get(STATUS)
    if not path:
        return
    import json

    status = {
        "state": state,
        "computation_s": computation_s,
        "cause": cause,
        "users_fault": users_fault,
    }
    # Where it cannot be written (a full disk), the run infers what it can from the exit status.
    with contextlib.suppress(OSError):
        with open(f"{path}.half", "w", encoding="utf-8") as file:  # noqa: PTH123 (pathlib takes 10 ms to import)
            file.write(json.dumps(status) + "\n")
        os.replace(f"{path}.half", path)  # noqa: PTH105
