"""docs/estimation.svg: error against FLOPs of every estimator, from the JSON of `lensmith bench estimation`.

lensmith bench estimation --json > rows.json
python -m stages benchmarks.estimation_figure rows.json docs/estimation.svg
"""

import json
import math
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from stages.benchmarks.estimation import EstimationRow
from stages.errors import UserError

__all__ = ["figure", "main"]

PANEL, HIGH, GAP, LEFT, TOP = 210, 150, 46, 58, 74
COLOURS = {
    "sampling": "#5c656d",
    "sampling in pairs": "#3f6b8f",
    "Gaussian margin (GLD)": "#a8722a",
    "pairs of parts (QLD)": "#8a5a9e",
    "moved inputs (ITGIS)": "#1f7a5a",
    "propagation, units independent": "#d08c94",
    "propagation, covariances": "#b0413e",
}
STYLE = """
text{font:11.5px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;fill:#1f2428}
.head{font-size:13px;font-weight:600}.soft{fill:#5c656d}.grid{stroke:#e3dfd6}.floor{stroke:#5c656d;stroke-dasharray:2 3}
@media (prefers-color-scheme:dark){text{fill:#e8e5df}.soft{fill:#a2a9af}.grid{stroke:#30363b}.floor{stroke:#a2a9af}}
"""


def figure(rows: Sequence[EstimationRow]) -> str:
    """One panel per kind of network (down) and question (across); whiskers are 95% intervals over networks, the dotted
    line the truth's own error."""
    groups = list(dict.fromkeys(row.group for row in rows))
    questions = list(dict.fromkeys(row.question for row in rows))
    shown = [name for name in COLOURS if any(row.estimator == name for row in rows)]
    wide = LEFT + (PANEL + GAP) * len(questions)
    high = TOP + (HIGH + GAP) * len(groups) + 16
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {high}" width="{wide}" role="img"'
        ' aria-label="Squared error of estimators against FLOPs, with 95% intervals over networks">',
        f"<style>{STYLE}</style>",
    ]
    for i, name in enumerate(shown):
        x, y = LEFT + 190 * (i % 4), 16 + 18 * (i // 4)
        parts.append(f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{COLOURS[name]}"/>')
        parts.append(f'<text x="{x + 9}" y="{y}">{escape(name)}</text>')
    for i, group in enumerate(groups):
        for j, question in enumerate(questions):
            of = [row for row in rows if (row.group, row.question) == (group, question)]
            parts += _panel(of, LEFT + (PANEL + GAP) * j, TOP + (HIGH + GAP) * i)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(rows: Sequence[EstimationRow], left: float, top: float) -> list[str]:
    if not rows:
        return []
    floor = rows[0].floor
    # Points and the floor are in the panel; a whisker that is longer ends at its edge.
    points = [math.log10(value) for row in rows for value in (row.error, floor)]
    low, high = math.floor(min(points)), math.ceil(max(points))
    costs = [math.log10(row.flops) for row in rows]
    first, last = math.floor(min(costs)), math.ceil(max(costs))

    def px(flops: float) -> float:
        return round(left + PANEL * (math.log10(flops) - first) / max(1, last - first), 1)

    def py(error: float) -> float:
        share = (math.log10(max(error, 1e-30)) - low) / max(1, high - low)
        return round(top + HIGH * (1 - min(1.0, max(0.0, share))), 1)

    about = "mean output" if rows[0].question == "mean" else f"event of about {rows[0].question}"
    parts = [
        f'<text class="head" x="{left}" y="{top - 20}">{escape(rows[0].group)}</text>',
        f'<text class="soft" x="{left}" y="{top - 7}">{escape(about)}: squared error, FLOPs</text>',
        f'<line class="floor" x1="{left}" x2="{left + PANEL}" y1="{py(floor)}" y2="{py(floor)}"/>',
    ]
    for tick in range(low, high + 1, max(1, (high - low) // 4)):
        y = py(10.0**tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + PANEL}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="soft" x="{left - 6}" y="{y + 4}" text-anchor="end">1e{tick}</text>')
    for tick in range(first, last + 1):
        x = px(10.0**tick)
        parts.append(f'<text class="soft" x="{x}" y="{top + HIGH + 14}" text-anchor="middle">1e{tick}</text>')
    for estimator in dict.fromkeys(row.estimator for row in rows):
        colour = COLOURS.get(estimator, "#000")
        of = {row.flops: row for row in rows if row.estimator == estimator}  # propagation costs the same at any budget
        line = " ".join(f"{px(row.flops)},{py(row.error)}" for row in of.values())
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for row in of.values():
            x = px(row.flops)
            parts.append(f'<line x1="{x}" x2="{x}" y1="{py(row.low)}" y2="{py(row.high)}" stroke="{colour}"/>')
            parts.append(f'<circle cx="{x}" cy="{py(row.error)}" r="3" fill="{colour}"/>')
    return parts


def main() -> None:
    """Read rows, write the figure.

    Raises:
        UserError: the file is not there, or holds something else.
    """
    if len(sys.argv) != 3:
        raise UserError("name two files: rows from `lensmith bench estimation --json`, and the figure to write")
    source, drawing = sys.argv[1:]
    try:
        rows = [EstimationRow(**row) for row in json.loads(Path(source).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{source}: {error}; make it with `lensmith bench estimation --json > {source}`") from error
    Path(drawing).write_text(figure(rows), encoding="utf-8")
