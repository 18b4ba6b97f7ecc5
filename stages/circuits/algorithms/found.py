"""What an algorithm returns, whichever it is."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from stages.circuits.engine.masked import Cost, MaskedForward

__all__ = ["Bill", "Found", "billed"]


@dataclass
class Bill:
    """What a search cost. One forward (backward) is one mask over the whole data."""

    seconds: float = 0.0
    forwards: int = 0
    backwards: int = 0

    def __add__(self, other: "Bill") -> "Bill":
        return Bill(self.seconds + other.seconds, self.forwards + other.forwards, self.backwards + other.backwards)


@dataclass(frozen=True)
class Found:
    """A circuit, or a ranking of edges."""

    scores: Tensor
    """(E,) float: higher = more part of the circuit; ties are ties."""
    mask: Tensor | None
    """(E,) 1 for the edges of the circuit; None where the method only ranks."""
    bill: Bill = field(compare=False)
    unpolished: Tensor | None = None
    """(E,) the mask before forwards-only polishing, for methods that polish."""


@contextmanager
def billed(engine: MaskedForward) -> Iterator[Bill]:
    """Time and passes of the block, filled in when it ends."""
    bill, before, started = Bill(), engine.cost.copy(), time.perf_counter()
    yield bill
    spent: Cost = engine.cost - before
    bill.seconds = time.perf_counter() - started
    bill.forwards, bill.backwards = spent.forwards, spent.backwards
