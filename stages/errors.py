"""Three kinds of error: user errors (exit code 2), method errors, and internal errors (exit code
1).

Imported before anything else of a stage, so only light modules of the standard library are imported
here.
"""

import contextlib
import errno
import gc
import os
import sys
import time
from collections.abc import Callable

__all__ = ["STATUS", "InfraError", "MethodError", "UserError", "run_stage"]

STATUS = "LENSMITH_STATUS"
"""Names the file in which a stage notes how it ended; set by a run, absent under a plain ``dvc
repro``.
"""


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
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = error.filename or "the disk"
        return f"no space left at {where}: free some (`dvc gc --workspace`), then run again", False
    hint = "(a fault of ours: run again with --debug and report it)"
    return f"{type(error).__name__}: {text} {hint}", False


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
