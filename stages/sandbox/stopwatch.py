"""How long a job of a method has taken, measured so that the same job takes the same on a busy machine.

What counts is what the method does with the time: CPU time of its process tree, CPU time that our side spends on its
calls, and the time in which it sleeps. What does not count is what others do with the machine: waiting for a CPU while
it could run, and waiting for our side to get one.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stages.sandbox.groups import waits

__all__ = ["FAR", "Stopwatch"]

FAR = 20.0
"""Times the limit that a job may take by the clock on the wall: what takes longer is the machine's failure."""


class Stopwatch:
    """
    Args:
        root: the process tree.
        cpu_seconds: CPU time of it so far.
        limit_s: what a job may take.
    """

    def __init__(self, root: int, cpu_seconds: Callable[[], float], limit_s: float) -> None:
        self._root, self._cpu_seconds, self.limit_s = root, cpu_seconds, limit_s
        self._wall, self._cpu, self._waits = time.monotonic(), cpu_seconds(), waits(root)
        self._served_wall = self._served_cpu = 0.0

    @property
    def deadline(self) -> float:
        """The far one, on ``time.monotonic()``'s clock."""
        return self._wall + FAR * self.limit_s

    @contextmanager
    def serving(self) -> Iterator[None]:
        """While our side does something for it."""
        wall, cpu = time.monotonic(), time.thread_time()
        try:
            yield
        finally:
            self._served_wall += time.monotonic() - wall
            self._served_cpu += time.thread_time() - cpu

    def seconds(self) -> float:
        """What it has taken so far."""
        cpu = self._cpu_seconds() - self._cpu
        # Of all threads the one that waited longest: several that wait at once are no longer wait.
        waited = max((now - self._waits.get(thread, 0.0) for thread, now in waits(self._root).items()), default=0.0)
        wall = time.monotonic() - self._wall - self._served_wall
        return cpu + self._served_cpu + max(0.0, wall - waited - cpu)

    def over(self) -> bool:
        return time.monotonic() - self._wall > self.limit_s and self.seconds() > self.limit_s
