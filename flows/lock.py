"""One run at a time in one working copy. The lock is the kernel's, so it goes with the process,
however that ends.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows.environment import state_dir
from stages.errors import UserError

__all__ = ["holder", "run_lock"]


@contextmanager
def run_lock(root: Path, purpose: str, *, shared: bool = False) -> Iterator[None]:
    """Hold the working copy while the block runs.

    Args:
        root: the working copy.
        purpose: what the holder does, told to whoever comes second.
        shared: only read results; several readers may, but not beside a run, which deletes outputs
            before it
            makes them again.

    Raises:
        UserError: somebody else holds it; says who and what to do.
    """
    path = state_dir(root) / "run.lock"
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:
            who = holder(root) or "another process"
            raise UserError(
                f"{root} is in use by {who}: wait for it to end (`lensmith status`), or stop it, then try again"
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(f"{os.getpid()} {purpose}\n")
        lock.flush()
        yield


def holder(root: Path) -> str | None:
    """``lensmith run (process 123)`` if somebody holds the lock, else None."""
    path = root / ".lensmith" / "run.lock"
    if not path.is_file():
        return None
    with path.open("r", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid, _, purpose = lock.read().strip().partition(" ")
            return f"{purpose or 'lensmith'} (process {pid or 'unknown'})"
    return None
