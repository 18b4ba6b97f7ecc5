"""No process outlives the command that started it, even one ended by kill -9."""

import contextlib
import ctypes
import os
import signal

__all__ = ["die_with_parent"]

_SET_PARENT_DEATH_SIGNAL = 1


def die_with_parent(orchestrator: int) -> None:
    """Ask the kernel to end this process when the one that started it ends, however that ends.

    Args:
        orchestrator: process id of that one; nothing happens in itself.
    """
    if os.getpid() == orchestrator:
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != orchestrator:
        os._exit(1)  # it ended before we asked
