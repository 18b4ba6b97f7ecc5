"""docs/leaderboard.svg: the forest plot for the README. Stands alone, follows the reader's light or dark scheme."""

from collections.abc import Sequence
from html import escape

from stages.contracts.reward_rows import LeaderboardRow, StatementRow
from stages.report.scales import linear
from stages.report.wording import interval, ratio, sample, shorten, signed, summary

__all__ = ["leaderboard_svg"]

WIDTH, LEFT, RIGHT, TOP, ROW = 820, 150, 220, 66, 42

STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif;fill:#1f2428}
.soft{fill:#5c656d}.title{font-size:15px;font-weight:600}.name{font-weight:600}.tick{font-size:11.5px;fill:#5c656d}
.grid{stroke:#e3dfd6}.zero{stroke:#5c656d}.band{fill:#8a8578;opacity:.16}
.same{stroke:#3f6b8f;fill:#3f6b8f}.better{stroke:#1f7a5a;fill:#1f7a5a}.worse{stroke:#b0413e;fill:#b0413e}
.placebo{stroke:#a8722a;fill:none}tspan.better,tspan.worse,tspan.same{stroke:none}tspan.better,tspan.worse{font-weight:600}
tspan.same,.note{fill:#5c656d}.note{font-size:12px}
@media (prefers-color-scheme:dark){text{fill:#e8e5df}.soft,.tick,.note,tspan.same{fill:#a2a9af}
.grid{stroke:#30363b}.zero{stroke:#a2a9af}
.same{stroke:#84b3d9;fill:#84b3d9}.better{stroke:#63c49c;fill:#63c49c}.worse{stroke:#ee8d86;fill:#ee8d86}.placebo{stroke:#dba65a}}
"""


def leaderboard_svg(rows: Sequence[LeaderboardRow], said: Sequence[StatementRow]) -> str:
    """Reward of each method on validation families with its interval, its placebo (hollow) and the noise floor (band).

    Args:
        rows: rows of metrics/leaderboard.json, at least one.
        said: rows of metrics/statements.json.
    """
    rows = sorted(rows, key=lambda row: (-row.reward_mean, row.method))
    floor = max(row.noise_floor for row in rows)
    scale = linear(
        [end for row in rows for end in (row.reward_low, row.reward_high, row.placebo_low, row.placebo_high)],
        include=(0.0, floor, -floor),
    )
    bottom = TOP + ROW * len(rows)

    def px(value: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * scale.at(value), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 62}" width="{WIDTH}" role="img"'
        f' aria-label="{escape(" ".join(summary(rows, said)))}">',
        f"<style>{STYLE}</style>",
        '<text x="0" y="18" class="title">Reward of each method on these validation tasks</text>',
        f'<text x="0" y="38" class="soft">95% intervals, {escape(sample(rows[0]))};'
        " hollow: placebo; band: noise floor</text>",
        f'<rect class="band" x="{px(-floor)}" y="{TOP - 10}" width="{round(px(floor) - px(-floor), 1)}"'
        f' height="{bottom - TOP + 10}"/>',
    ]
    for tick in scale.ticks:
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{px(tick)}" x2="{px(tick)}" y1="{TOP - 10}" y2="{bottom}"/>')
        parts.append(
            f'<text class="tick" x="{px(tick)}" y="{bottom + 18}" text-anchor="middle">{scale.label(tick)}</text>'
        )
    middle = round((LEFT + WIDTH - RIGHT) / 2, 1)
    parts.append(f'<text class="soft" x="{middle}" y="{bottom + 42}" text-anchor="middle">reward</text>')
    for i, row in enumerate(rows):
        y = TOP + ROW * i + 10
        kind = {"better": "better", "worse": "worse"}.get(row.verdict, "same")
        name = escape(shorten(row.method, 19))
        numbers = f"{signed(row.reward_mean)} {interval(row.reward_low, row.reward_high)}"
        parts += [
            f'<text class="name" x="{LEFT - 14}" y="{y + 4}" text-anchor="end">{name}</text>',
            _whisker("placebo", px(row.placebo_low), px(row.placebo_high), y + 9, 1),
            f'<circle class="placebo" cx="{px(row.placebo_reward)}" cy="{y + 9}" r="2.8"/>',
            _whisker(kind, px(row.reward_low), px(row.reward_high), y, 2),
            f'<circle class="{kind}" cx="{px(row.reward_mean)}" cy="{y}" r="4.5"/>',
            f'<text x="{WIDTH - RIGHT + 16}" y="{y + 3}">{numbers}</text>',
            f'<text class="note" x="{WIDTH - RIGHT + 16}" y="{y + 19}">'
            f'<tspan class="{kind}">{escape(row.verdict)}</tspan>, {ratio(row.flop_ratio)} FLOPs</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _whisker(kind: str, low: float, high: float, y: float, width: float) -> str:
    return f'<line class="{kind}" x1="{low}" x2="{high}" y1="{y}" y2="{y}" stroke-width="{width}"/>'
