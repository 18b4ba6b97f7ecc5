"""Where numbered labels stand so that none hides another: at their points where there is room, else beside them."""

import math
from collections.abc import Sequence

__all__ = ["placed"]

WIDTHS = (290.0, 620.0, 1080.0)
"""Widths of a plot, in pixels, at which labels must not overlap: a phone, a panel, a page."""
RINGS = (0, 20, 31, 42, 54, 68, 84)
"""Distances from the point at which a label is tried, in pixels."""
N_ANGLES = 16
GAP = 2


def placed(
    points: Sequence[tuple[float, float]], height: float, radius: float, others: Sequence[tuple[float, float]] = ()
) -> list[tuple[int, int]]:
    """(dx, dy) in pixels from each point to the middle of its label.

    Args:
        points: (share of the width, pixels from the top) of each, the most important first.
        height: of the plot, in pixels.
        radius: of a label.
        others: points without a label, which should be seen too.
    """
    found: list[tuple[int, int]] = []
    for i, point in enumerate(points):
        best, best_cost = (0, 0), math.inf
        for dx, dy in _offsets():
            cost = _overlap(point, (dx, dy), list(zip(points, found, strict=False)), radius)
            cost += _outside(point, (dx, dy), height, radius) + 0.01 * math.hypot(dx, dy) / radius
            # A label beside its point should not cover the point of another.
            hidden = [*points[:i], *points[i + 1 :]] if (dx, dy) != (0, 0) else []
            cost += 0.2 * _covered(point, (dx, dy), [*hidden, *others], radius)
            if cost < best_cost - 1e-9:
                best, best_cost = (dx, dy), cost
        found.append(best)
    return found


def _offsets() -> list[tuple[int, int]]:
    out = [(0, 0)]
    for ring in RINGS[1:]:
        for k in range(N_ANGLES):
            angle = 2 * math.pi * k / N_ANGLES - math.pi / 2
            out.append((round(ring * math.cos(angle)), round(ring * math.sin(angle))))
    return out


def _overlap(
    point: tuple[float, float],
    offset: tuple[int, int],
    others: Sequence[tuple[tuple[float, float], tuple[int, int]]],
    radius: float,
) -> float:
    """By how much a label would lie over those placed, at the worst width; as a multiple of the radius, times 10."""
    worst = 0.0
    for width in WIDTHS:
        x, y = point[0] * width + offset[0], point[1] + offset[1]
        near = [math.hypot(x - a * width - dx, y - b - dy) for (a, b), (dx, dy) in others]
        worst = max(worst, *(2 * radius + GAP - distance for distance in near), 0.0)
    return 10 * worst / radius


def _covered(
    point: tuple[float, float], offset: tuple[int, int], others: Sequence[tuple[float, float]], radius: float
) -> int:
    return sum(
        math.hypot((point[0] - a) * width + offset[0], point[1] + offset[1] - b) < radius + 4
        for width in WIDTHS
        for a, b in others
    )


def _outside(point: tuple[float, float], offset: tuple[int, int], height: float, radius: float) -> float:
    y = point[1] + offset[1]
    out = max(0.0, radius - y, y - (height - radius))
    for width in WIDTHS:
        x = point[0] * width + offset[0]
        out = max(out, -x - radius, x - width - radius)
    return 3 * out / radius
