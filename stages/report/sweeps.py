"""Dictionaries against their sparsity: one panel per metric, one line per architecture, baselines dashed and hollow."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from stages.contracts.dictionary_rows import DictionaryRow
from stages.contracts.record import Estimate
from stages.report.drawing import Plot, Shape, symbol
from stages.report.scales import linear, logarithmic
from stages.report.wording import number, spread

__all__ = ["BASELINES", "PANELS", "Style", "key", "points", "styles", "sweep"]

PANELS = (
    ("explained_variance", "explained variance"),
    ("loss_recovered", "loss recovered"),
    ("probe_5_sparse", "probe on 5 latents, balanced accuracy"),
    ("reward", "reward of the method that uses it"),
)
ARCHITECTURES = ("standard", "topk", "batchtopk")
"""These keep their colours whatever else there is."""
BASELINES = ("identity", "pca", "ica", "random")
"""Directions that nobody trained to be sparse."""
SHAPES: tuple[Shape, ...] = ("circle", "triangle", "diamond", "square")
N_COLOURS = 8


class Style(NamedTuple):
    kind: str
    """Class of the style sheet."""
    shape: Shape


class Point(NamedTuple):
    """One architecture of one size at one sparsity: means over seeds."""

    l0: float
    value: float
    low: float | None
    """Lowest end of the seeds' intervals."""
    high: float | None
    sparsity: float
    n_seeds: int
    n_latents: int


def styles(architectures: Iterable[str]) -> dict[str, Style]:
    """How each architecture is drawn, trained ones first; baselines are alike whatever else there is."""
    names = set(architectures)
    trained = [name for name in ARCHITECTURES if name in names]
    trained += sorted(names - set(ARCHITECTURES) - set(BASELINES))
    place = {name: i for i, name in enumerate([*ARCHITECTURES, *(n for n in trained if n not in ARCHITECTURES)])}
    out = {
        name: Style(f"s{place[name] % N_COLOURS}", SHAPES[(place[name] + place[name] // N_COLOURS) % len(SHAPES)])
        for name in trained
    }
    return out | {name: Style(f"untrained u{i}", SHAPES[::-1][i]) for i, name in enumerate(BASELINES) if name in names}


def points(rows: Sequence[DictionaryRow], metric: str) -> dict[str, list[Point]]:
    """By architecture, ordered by L0. Rows without the metric are left out."""
    groups: dict[tuple[str, int, float], list[tuple[DictionaryRow, float, Estimate]]] = {}
    for row in rows:
        found = row.metric(metric)
        if found is not None and found.value is not None and row.l0.value:
            groups.setdefault((row.architecture, row.n_latents, row.sparsity), []).append((row, found.value, found))
    out: dict[str, list[Point]] = {}
    for (architecture, n_latents, sparsity), of in sorted(groups.items(), key=lambda item: item[0]):
        out.setdefault(architecture, []).append(
            Point(
                sum(row.l0.value or 0.0 for row, _, _ in of) / len(of),
                sum(value for _, value, _ in of) / len(of),
                min((one.low for _, _, one in of if one.low is not None), default=None),
                max((one.high for _, _, one in of if one.high is not None), default=None),
                sparsity,
                len({row.seed for row, _, _ in of}),
                n_latents,
            )
        )
    return {name: sorted(of) for name, of in out.items()}


def _line(of: Sequence[Point]) -> list[Point]:
    """The points of the size that has most of them (of equals, the larger): only these lie on one curve."""
    sizes = [point.n_latents for point in of]
    size = max(set(sizes), key=lambda n: (sizes.count(n), n))
    return [point for point in of if point.n_latents == size]


def sweep(rows: Sequence[DictionaryRow], metric: str, title: str, style: dict[str, Style]) -> Plot | None:
    """One metric against L0 at one hook point; None if no row has it.

    Args:
        rows: all dictionaries of the hook point; their L0 sets the horizontal axis, so that panels line up.
    """
    series = points(rows, metric)
    every = [point for of in series.values() for point in of]
    if not every:
        return None
    x = logarithmic([row.l0.value for row in rows if row.l0.value])
    y = linear([v for p in every for v in (p.value, p.low, p.high) if v is not None], n_ticks=4)
    place = f"{rows[0].target}, {rows[0].hook_point}"
    plot = Plot(x, 190, f"{title} against L0 of the dictionaries at {place}", y)
    plot.axis_y()
    plot.axis_x("L0: latents active per row (log scale)")
    # Baselines first, so that they lie below.
    for name in [n for n in reversed(style) if n in series]:
        for one, other in pairwise(_line(series[name])):
            plot.line(one.l0, one.value, other.l0, other.value, f"trace {style[name].kind}")
    for name in [n for n in reversed(style) if n in series]:
        line = _line(series[name])
        for point in series[name]:
            kind = "" if point in line else " pale"
            said = f" {spread(point.low, point.high)}" if point.low is not None else ""
            plot.mark(
                point.l0, point.value, f"dictionary {style[name].kind}{kind}",
                f"{name}, {point.n_latents} latents, sparsity {point.sparsity:g}: L0 {number(point.l0, 2)},"
                f" {title} {number(point.value)}{said}, {point.n_seeds} seed{'s' if point.n_seeds > 1 else ''}",
                y_interval=(point.low, point.high), radius=4.5 if point in line else 3.5, shape=style[name].shape,
            )  # fmt: skip
    return plot


def key(style: Style) -> str:
    """A line with its marker, for the legend."""
    return (
        f'<svg class="linekey" width="34" height="14" aria-hidden="true"><line class="trace {style.kind}"'
        f' x1="0" x2="34" y1="7" y2="7"/><g class="mark {style.kind}">{symbol(style.shape, "17", 7, 4.5)}</g></svg>'
    )
