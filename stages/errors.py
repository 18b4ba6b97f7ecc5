"""The kinds of failure that are told apart: the user's (exit code 2), a method's, and ours (exit code 1)."""

import errno
import os
import sys
import time
from collections.abc import Callable

__all__ = ["InfraError", "MethodError", "UserError", "run_stage"]


class UserError(ValueError):
    """Something the user gave is wrong. The message is one line: the value, what is allowed, the remedy."""


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
        super().__init__(f"method {method!r} failed in {place}: {cause}. {remedy}")
        self.method, self.place, self.cause, self.remedy, self.layer = method, place, cause, remedy, layer

    def __reduce__(self) -> tuple[type["MethodError"], tuple[str, str, str, str, str]]:
        # An exception with its own signature does not survive the trip back from a worker process by itself.
        return (MethodError, (self.method, self.place, self.cause, self.remedy, self.layer))


class InfraError(RuntimeError):
    """The machinery failed, not the method: there is no score, and nothing is learned from it. Run it again."""


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage's ``main``; a failure becomes one line on stderr. Exit code 2: the user's mistake, 1: ours.

    ``LENSMITH_DEBUG=1`` (set by ``lensmith --debug``) shows the traceback.
    """
    started = time.perf_counter()
    try:
        main()
        # Imports lie outside: what a stage spends beyond this is the price of being a process of its own.
        print(f"computation_s={time.perf_counter() - started:.3f}", flush=True)
    except Exception as error:
        if os.environ.get("LENSMITH_DEBUG") == "1":
            raise
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            where = error.filename or "the disk"
            print(f"error: no space left at {where}: free some (`dvc gc --workspace`), then run again", file=sys.stderr)
            sys.exit(1)
        mine = not isinstance(error, UserError)
        kind = f"{type(error).__name__}: " if mine else ""
        hint = " (a fault of ours: run again with --debug and report it)" if mine else ""
        print(f"error: {kind}{' '.join(str(error).split())}{hint}", file=sys.stderr)
        sys.exit(1 if mine else 2)
