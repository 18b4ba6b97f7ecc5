"""Where a number goes on an axis, and which ticks the axis has."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Scale", "linear", "logarithmic"]


@dataclass(frozen=True)
class Scale:
    """A domain; ``at`` maps it to [0, 1]."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            return (math.log(max(value, self.low)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    def label(self, tick: float) -> str:
        """Shortest text that tells the ticks apart."""
        if tick == 0:
            return "0"
        if self.log:
            for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
                if tick >= size:
                    return f"{tick / size:g} {unit}"
            return f"{tick:g}"
        fine = 1e-6 * (self.high - self.low)
        places = next((n for n in range(15) if all(abs(t - round(t, n)) < fine for t in self.ticks)), 15)
        return f"{tick:.{places}f}".replace("-", "\u2212")


def linear(values: Iterable[Any], include: Iterable[float] = (), n_ticks: int = 5, pad: float = 0.05) -> Scale:
    """A domain around all finite values, with about ``n_ticks`` ticks at round numbers."""
    known = [float(v) for v in (*values, *include) if isinstance(v, int | float) and math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    room = (high - low) * pad or max(abs(high) * 0.1, 0.1)
    low, high = low - room, high + room
    raw = (high - low) / n_ticks
    size = 10.0 ** math.floor(math.log10(raw))
    # Rounding the step up may leave a short axis with a single tick, which tells no distance: then a finer one.
    for factor in (next((f for f in (1, 2, 5) if f * size >= raw), 10), 2, 1, 0.5):
        step = size * factor
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            break
    return Scale(low, high, tuple(round(i * step, 12) + 0.0 for i in range(first, last + 1)))


def logarithmic(values: Iterable[Any], include: Iterable[float] = ()) -> Scale:
    """A domain around all positive values, with ticks at powers of ten, and 2 and 5 times these on short axes."""
    known = [float(v) for v in (*values, *include) if isinstance(v, int | float) and math.isfinite(v) and v > 0] or [
        1.0
    ]
    low, high = min(known), max(known)
    room = max((high / low) ** 0.06, 1.15)
    low, high = low / room, high * room
    decades = math.log10(high / low)
    if decades < 0.8:
        even = linear([], include=(low, high), pad=0.0)
        return Scale(low, high, tuple(t for t in even.ticks if low <= t <= high), log=True)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1,) if decades > 2.5 else (1, 3) if decades > 1.6 else (1, 2, 5)
    every = max(1, math.ceil(decades / 6))
    ticks = [f * 10.0**e for e in exponents if e % every == 0 for f in factors]
    return Scale(low, high, tuple(float(f"{t:.6g}") for t in ticks if low <= t <= high), log=True)
