"""No process outlives the command that started it, even one ended by kill -9.

A small process waits for the end of this one: the pipe between them closes, however that happens. Then it ends whatever
carries this process's mark in its environment, which children inherit. Asking each worker to end with its parent would
not do: one that is still starting when the parent dies waits for it for ever.
"""

import atexit
import contextlib
import gc
import os
import subprocess
import sys
import time
import warnings
from typing import Any

from joblib import Parallel

from stages.base.fanout import SCHEDULER, cluster_pool

__all__ = ["MARK", "process_pool"]

MARK = "LENSMITH_ORCHESTRATOR"
_WATCH = """
import os, sys, time
pipe, mark = int(sys.argv[1]), sys.argv[2].encode()
said = b""
while part := os.read(pipe, 16):
    said += part
for _ in range(0 if said == b"done" else 50):
    found = False
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and mark in open(f"/proc/{name}/environ", "rb").read().split(bytes(1)):
                found = True
                os.kill(int(name), 9)
        except OSError:
            pass
    if not found:
        break
    time.sleep(0.1)
"""
_watched: int | None = None
"""Process id of the process that is watched: a fork of it is not."""


def process_pool(n_jobs: int, **options: Any) -> Parallel:
    """joblib's pool of ``n_jobs`` processes, which end with this one; or of a Dask cluster's workers, where
    ``LENSMITH_DASK`` names its scheduler."""
    if n_jobs > 1 and os.environ.get(SCHEDULER):
        return cluster_pool(n_jobs, **options)
    # joblib replaces a worker whose memory has grown and says so each time; nothing is lost by it.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
    if n_jobs > 1:
        _watch()
    return Parallel(n_jobs=n_jobs, initializer=_leave_at_once, **options)


def _watch() -> None:
    global _watched
    if _watched == os.getpid() or not os.path.isdir("/proc/self"):  # noqa: PTH112
        return
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    os.environ[MARK] = mark
    read, write = os.pipe()
    with contextlib.suppress(OSError):
        # A session of its own: what ends our process group must not end the one that cleans up after it.
        subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(read), f"{MARK}={mark}"],
            pass_fds=[read], env={}, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    os.close(read)
    _watched = os.getpid()
    atexit.register(_done, write, os.getpid())


def _done(pipe: int, pid: int) -> None:
    """Ended in good order: nobody is to be killed from outside."""
    if os.getpid() == pid:
        with contextlib.suppress(OSError):
            os.write(pipe, b"done")


def _leave_at_once() -> None:
    """In a worker: its memory ends with it, so the interpreter need not look at every object of every library again,
    for a second, while joblib waits for it."""
    atexit.register(gc.freeze)
