"""SVG plots that fit any width: x in percent, y in pixels, text at its own size, colours from the page's style sheet.

There is no view box, so nothing is scaled: at 390 pixels a plot has the same letters as on a wide screen. What lies
outside the axes (labels, ticks) hangs over into margins that the style sheet keeps free.
"""

from html import escape
from typing import Literal, NamedTuple

from markupsafe import Markup

from stages.report.scales import Scale

__all__ = ["Drawn", "Plot", "Shape", "symbol"]

Anchor = Literal["start", "middle", "end"]
Shape = Literal["circle", "square", "triangle", "diamond"]


def symbol(shape: Shape, x: str, y: float, radius: float) -> str:
    """A marker around (x, y), an SVG length and pixels; all shapes cover about the same area."""
    if shape == "circle":
        return f'<circle class="dot" cx="{x}" cy="{y}" r="{radius}"/>'
    if shape == "square":
        side = 2 * radius - 1
        return (
            f'<rect class="dot" x="{x}" y="{y}" width="{side}" height="{side}"'
            f' transform="translate({-side / 2} {-side / 2})"/>'
        )
    r = round(radius * 1.2, 2)
    path = f"M0 {-r}L{r} 0L0 {r}L{-r} 0Z" if shape == "diamond" else f"M0 {-r}L{r} {0.8 * r:g}L{-r} {0.8 * r:g}Z"
    # A path has no percentages: a nested element carries it to its place.
    return f'<svg x="{x}" y="{y}" overflow="visible"><path class="dot" d="{path}"/></svg>'


class Plot:
    """One set of axes.

    Args:
        x: domain of the horizontal axis.
        height: of the plotting area, in pixels.
        label: what the plot shows, for readers who cannot see it.
        y: domain of the vertical axis, upwards; None: y is given in pixels, downwards.
    """

    def __init__(self, x: Scale, height: int, label: str, y: Scale | None = None) -> None:
        self.x, self.y, self.height = x, y, height
        self._label = label
        self._parts: list[str] = []
        self.n_marks = 0

    def px(self, value: float) -> str:
        return f"{100 * self.x.at(value):.2f}%"

    def py(self, value: float) -> float:
        return round(value if self.y is None else self.height * (1 - self.y.at(value)), 1) + 0.0

    def axis_x(self, title: str, grid: bool = True) -> None:
        """Ticks below the area, with faint lines across it."""
        for tick in self.x.ticks:
            if grid:
                self._add(f'<line class="grid" x1="{self.px(tick)}" x2="{self.px(tick)}" y1="0" y2="{self.height}"/>')
            self.text(self.px(tick), self.height + 16, self.x.label(tick), "tick", "middle")
        self.text("50%", self.height + 36, title, "axis", "middle")

    def axis_y(self) -> None:
        assert self.y is not None, "y is in pixels"
        for tick in self.y.ticks:
            at = self.py(tick)
            self._add(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
            self.text("-8", at, self.y.label(tick), "tick", "end")

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._add(f'<line class="{kind}" x1="{self.px(x1)}" y1="{self.py(y1)}" x2="{self.px(x2)}" y2="{self.py(y2)}"/>')

    def vertical(self, x: float, kind: str) -> None:
        self._add(f'<line class="{kind}" x1="{self.px(x)}" x2="{self.px(x)}" y1="0" y2="{self.height}"/>')

    def horizontal(self, y: float, kind: str) -> None:
        self._add(f'<line class="{kind}" x1="0" x2="100%" y1="{self.py(y)}" y2="{self.py(y)}"/>')

    def band_x(self, low: float, high: float, kind: str) -> None:
        width = 100 * (self.x.at(high) - self.x.at(low))
        self._add(f'<rect class="{kind}" x="{self.px(low)}" width="{width:.2f}%" y="0" height="{self.height}"/>')

    def tick(self, x: float, y: float, half: float, kind: str) -> None:
        """A short upright line at a point: something to compare a mark with."""
        top, bottom = self.py(y) - half, self.py(y) + half
        self._add(f'<line class="{kind}" x1="{self.px(x)}" x2="{self.px(x)}" y1="{top}" y2="{bottom}"/>')

    def mark(
        self,
        x: float,
        y: float,
        kind: str,
        title: str,
        x_interval: "tuple[float | None, float | None] | None" = None,
        y_interval: "tuple[float | None, float | None] | None" = None,
        radius: float = 5,
        text: str = "",
        shape: Shape = "circle",
        label: tuple[int, int] = (0, 0),
        href: str = "",
    ) -> None:
        """A data point with its intervals; ``title`` is shown on hover and read aloud.

        Args:
            label: where the symbol with its text stands, in pixels from the point; a line leads there from a dot.
            href: a place of the page that it leads to.
        """
        parts = [f"<title>{escape(title)}</title>"]
        at_x, at_y = self.px(x), self.py(y)
        if x_interval and x_interval[0] is not None and x_interval[1] is not None:
            low, high = self.px(x_interval[0]), self.px(x_interval[1])
            parts.append(f'<line class="whisker" x1="{low}" x2="{high}" y1="{at_y}" y2="{at_y}"/>')
        if y_interval and y_interval[0] is not None and y_interval[1] is not None:
            low_y, high_y = self.py(y_interval[0]), self.py(y_interval[1])
            parts.append(f'<line class="whisker" x1="{at_x}" x2="{at_x}" y1="{low_y}" y2="{high_y}"/>')
        drawn = [symbol(shape, at_x, at_y, radius)]
        if text:
            drawn.append(
                f'<text class="inside" x="{at_x}" y="{at_y}" dy=".35em" text-anchor="middle">{escape(text)}</text>'
            )
        if label != (0, 0):
            dx, dy = label
            # A line has no lengths that mix percent and pixels: a nested element carries it to the point.
            parts.append(
                f'<svg x="{at_x}" y="{at_y}" overflow="visible"><line class="leader" x2="{dx}" y2="{dy}"/></svg>'
                f'{symbol("circle", at_x, at_y, 2.5)}<g transform="translate({dx} {dy})">{"".join(drawn)}</g>'
            )
        else:
            parts += drawn
        self._add(_linked(f'<g class="mark {kind}">{"".join(parts)}</g>', href))
        self.n_marks += 1

    def cross(self, x: float, y: float, title: str, href: str = "") -> None:
        """A data point without a value: something failed here."""
        drawn = (
            f'<g class="mark cross"><title>{escape(title)}</title>'
            f'<text x="{self.px(x)}" y="{self.py(y)}" dy=".35em" text-anchor="middle">\u2715</text></g>'
        )
        self._add(_linked(drawn, href))
        self.n_marks += 1

    def text(self, x: str, y: float, text: str, kind: str, anchor: Anchor = "start", dx: int = 0) -> None:
        """Text at (x, y), given as SVG lengths; vertically centred."""
        shift = f' dx="{dx}"' if dx else ""
        at = f'x="{x}" y="{round(y, 1)}" dy=".35em"{shift}'
        self._add(f'<text class="{kind}" {at} text-anchor="{anchor}">{escape(text)}</text>')

    def svg(self) -> str:
        """The element; as wide as its container less the margins."""
        return (
            f'<svg class="canvas" role="img" aria-label="{escape(self._label)}" height="{self.height}"'
            f' data-marks="{self.n_marks}">{"".join(self._parts)}</svg>'
        )

    def _add(self, element: str) -> None:
        self._parts.append(element)


def _linked(element: str, href: str) -> str:
    return f'<a href="{escape(href)}">{element}</a>' if href else element


class Drawn(NamedTuple):
    """A plot as the template shows it."""

    svg: Markup
    n_marks: int

    @classmethod
    def of(cls, plot: Plot) -> "Drawn":
        return cls(Markup(plot.svg()), plot.n_marks)
