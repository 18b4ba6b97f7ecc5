"""What the CPU time of an adaptive method's process says, read from outside, where nothing inside can change it.

An answer that is recorded needs no such meter: its price is known before it runs. An ``adaptive`` one computes in its
own process, and every second of CPU there is charged at the fastest rate this machine has, except what was measured to
be needed for an empty answer, and for reading what the target's side sent. What that allowance could have computed is
what may go unseen; it is stated beside every such result. CPU time varies from run to run, so these FLOPs do too.
"""

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

__all__ = ["Calibration", "calibrate"]

_SIDE = 1024
MARGIN = 2.0
"""On top of the fastest rate seen, since rates vary with what else runs: what is charged must not fall below what was
computed."""


@dataclass(frozen=True)
class Calibration:
    """FLOP rate of one thread of this machine at this moment, and what an empty answer takes."""

    dense: float
    """FLOP/s of a product of two matrices of 1024 x 1024, in torch or numpy: the fastest of the repeats."""
    spread: float
    """(largest - smallest) / median of the rate over the repeats."""
    n: int
    empty_s: float = 0.0
    """CPU seconds of an answer that declines at once: the median of a few; 0 until measured."""
    byte_s: float = 0.0
    """CPU seconds per byte of what the target's side sends; 0 until measured."""

    def allowed_s(self, served_bytes: int) -> float:
        """CPU seconds that are not charged."""
        return self.empty_s + self.byte_s * served_bytes

    def flops(self, cpu_s: float) -> float:
        """The most that so much CPU time could have computed."""
        return MARGIN * self.dense * max(0.0, cpu_s)


@lru_cache(maxsize=4)
def calibrate(repeats: int = 9) -> Calibration:
    """Measure this machine's rate, once a process: a fifth of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square = torch.ones(_SIDE, _SIDE)
        other = square.numpy()
        dense = sorted(
            2 * _SIDE**3 / _seconds(product, 1)
            for _ in range(repeats)
            for product in (lambda: square @ square, lambda: other @ other)
        )
    finally:
        torch.set_num_threads(threads)
    return Calibration(dense[-1], (dense[-1] - dense[0]) / dense[len(dense) // 2], len(dense))


def _seconds(work: object, times: int) -> float:
    assert callable(work)
    work()
    started = time.thread_time()
    for _ in range(times):
        work()
    return max(time.thread_time() - started, 1e-9) / times
