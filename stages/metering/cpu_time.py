"""Layer (c): what the CPU time of a method's process says, read from outside, where nothing inside can change it.

CPU time varies from run to run, so it decides whether a result counts and is reported beside it; it never becomes
part of an
output that another stage reads.

A process may use, without question:
    ALLOWANCE_S for the interpreter, PER_CALL_S for each operation on the target (packing and unpacking),
    PER_OP_S for each op it declares (up to MAX_OPS of them), and SLACK times what its declared FLOPs take at the slow,
    pointwise rate of this machine.
What it used beyond that is converted at the fast, dense rate: the most it could have computed. The charge is the
larger of that and
what was counted, and a result in which it exceeds FACTOR times the counted FLOPs is void.
"""

import time
from dataclasses import dataclass

import torch

__all__ = ["ALLOWANCE_S", "FACTOR", "Calibration", "Unexplained", "calibrate"]

ALLOWANCE_S = 0.25
PER_CALL_S = 2e-3
PER_OP_S = 6e-5
MAX_OPS = 20_000
SLACK = 4.0
FACTOR = 8.0
_SIDE, _LENGTH = 256, 1 << 20


@dataclass(frozen=True)
class Calibration:
    """FLOP rates of one thread of this machine, at this moment."""

    dense: float
    """FLOP/s of a product of two matrices of 256 x 256."""
    pointwise: float
    """FLOP/s of adding two vectors of 1,048,576 numbers."""
    spread: float
    """(largest - smallest) / median of the dense rate over the repeats."""
    n: int

    def facts(self) -> dict[str, float]:
        return {
            "dense_flops_per_s": self.dense,
            "pointwise_flops_per_s": self.pointwise,
            "spread": self.spread,
            "n": self.n,
        }


def calibrate(repeats: int = 9) -> Calibration:
    """Measure this machine: about a tenth of a second."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        square, vector = torch.ones(_SIDE, _SIDE), torch.ones(_LENGTH)
        dense = sorted(2 * _SIDE**3 / _seconds(lambda: square @ square, 20) for _ in range(repeats))
        pointwise = sorted(_LENGTH / _seconds(lambda: vector + vector, 10) for _ in range(repeats))
    finally:
        torch.set_num_threads(threads)
    middle = dense[repeats // 2]
    return Calibration(middle, pointwise[repeats // 2], (dense[-1] - dense[0]) / middle, repeats)


def _seconds(work: object, times: int) -> float:
    assert callable(work)
    work()
    started = time.thread_time()
    for _ in range(times):
        work()
    return max(time.thread_time() - started, 1e-9) / times


@dataclass(frozen=True)
class Unexplained:
    """CPU time of one job against what the other two layers counted."""

    cpu_s: float
    allowed_s: float
    flops: float
    """What the rest could have computed at the dense rate."""
    counted: float
    """Layers (a) and (b) together."""

    @classmethod
    def of(
        cls, cpu_s: float, calls: int, ops: int, target_flops: float, own_flops: float, rates: Calibration
    ) -> "Unexplained":
        allowed = ALLOWANCE_S + PER_CALL_S * calls + PER_OP_S * min(ops, MAX_OPS) + SLACK * own_flops / rates.pointwise
        return cls(cpu_s, allowed, rates.dense * max(0.0, cpu_s - allowed), target_flops + own_flops)

    @property
    def charge(self) -> float:
        """The largest of what the layers say."""
        return max(self.counted, self.flops)

    @property
    def void(self) -> str:
        """Why the result is void; empty: it is not."""
        if self.flops <= FACTOR * self.counted:
            return ""
        return (
            f"its process used {self.cpu_s:.2f} s of CPU, {self.allowed_s:.2f} s are explained: the rest is worth"
            f" {self.flops:.2g} FLOPs, more than {FACTOR:g} times the {self.counted:.2g} that were counted"
        )
