"""Plots that compare methods: the forest of rewards, the arms of each task, score against FLOPs."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from stages.contracts.record import Verdict
from stages.contracts.reward_rows import BudgetRow, LeaderboardRow, TaskRow
from stages.report.drawing import Plot
from stages.report.labels import placed
from stages.report.scales import linear, logarithmic
from stages.report.wording import flops, interval, number, ratio, sample, score, shorten, signed, spread

__all__ = ["arms", "cost_curve", "forest", "pareto", "pareto_front", "task_caption"]

ROW = 46
ARM_ROW = 22


def forest(rows: Sequence[LeaderboardRow]) -> Plot:
    """Reward of each method with its interval, its placebo below it, and the noise floor as a band."""
    floor = max((row.noise_floor for row in rows), default=0.0)
    x = linear(
        [end for row in rows for end in (row.reward_low, row.reward_high, row.placebo_low, row.placebo_high)],
        include=(0.0, floor, -floor),
        n_ticks=7,
    )
    plot = Plot(x, ROW * len(rows) + 6, "Reward of each method with its 95% interval, and of its placebo")
    plot.band_x(-floor, floor, "band")
    plot.axis_x("reward (score gained + \u03bb \u00d7 share of compute saved)")
    plot.vertical(0.0, "zero")
    for i, row in enumerate(rows):
        y = ROW * i + 23
        plot.text("-12", y, shorten(row.method, 22), "rowlabel", "end")
        plot.text("100%", y, row.verdict, f"verdict {_verdict(row.verdict)}", "start")
        low, high = row.placebo_low, row.placebo_high
        plot.mark(
            row.placebo_reward, y + 11, "placebo",
            f"placebo of {row.method}: {signed(row.placebo_reward)} {interval(low, high)}",
            x_interval=(low, high), radius=3.5,
        )  # fmt: skip
        plot.mark(
            row.reward_mean, y, f"assisted {_verdict(row.verdict)}",
            f"{row.method}: reward {signed(row.reward_mean)} {interval(row.reward_low, row.reward_high)},"
            f" {row.verdict} ({sample(row)})",
            x_interval=(row.reward_low, row.reward_high), radius=5.5,
        )  # fmt: skip
    return plot


def arms(rows: Sequence[TaskRow], x_title: str = "score") -> Plot:
    """One task: the baseline as a band, and each method's assisted and placebo arm. One row per method."""
    arms_of = ("baseline_score", "assisted_score", "placebo_score")
    known = [row.estimate(arm) for row in rows for arm in arms_of]
    x = linear([end for one in known for end in (one.low, one.high)], n_ticks=4)
    task = f"{rows[0].family} on {rows[0].target}"
    plot = Plot(x, ARM_ROW * len(rows) + 8, f"{task}: score of the assisted and the placebo arm beside the baseline")
    base = rows[0]
    plot.band_x(base.baseline_score_low, base.baseline_score_high, "band baseline")
    plot.axis_x(x_title)
    plot.vertical(base.baseline_score_mean, "baseline")
    for i, row in enumerate(rows):
        y = ARM_ROW * i + 15
        quiet = "" if row.status == "ok" else " quiet"
        label = row.method if row.status == "ok" else f"{row.method} ({row.status})"
        plot.text("-8", y, shorten(label, 26), f"armlabel {_verdict(row.verdict)}{quiet}", "end")
        n = f"n = {row.n_instances} instances, {row.n_seeds} seeds"
        plot.mark(
            row.placebo_score_mean, y + 5, f"placebo{quiet}",
            f"{row.method}, placebo: {score(row.estimate('placebo_score'))}",
            x_interval=(row.placebo_score_low, row.placebo_score_high), radius=3,
        )  # fmt: skip
        plot.mark(
            row.assisted_score_mean, y - 2, f"assisted {_verdict(row.verdict)}{quiet}",
            f"{row.method}, assisted: {score(row.estimate('assisted_score'))};"
            f" baseline {score(row.estimate('baseline_score'))}; {n};"
            f" {flops(row.flops_assisted)} instead of {flops(row.flops_baseline)}; {row.verdict}",
            x_interval=(row.assisted_score_low, row.assisted_score_high), radius=4.5,
        )  # fmt: skip
    return plot


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other beats in both cost (lower) and gain (higher), cheapest first."""
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[i][1] > points[front[-1]][1]:
            front.append(i)
    return front


def pareto(rows: Sequence[LeaderboardRow], ranges: Mapping[str, tuple[float, float]]) -> Plot:
    """Score gained against FLOPs, both relative to the baseline; a number is the place on the leaderboard.

    The front is drawn over all points, the baseline (no gain at the full price) included.

    Args:
        rows: the leaderboard, best first.
        ranges: lowest and highest FLOP ratio over tasks of each method, where known.
    """
    ends = [end for row in rows for end in ranges.get(row.method, ())]
    x = logarithmic([row.flop_ratio for row in rows], include=(1.0, *ends))
    y = linear([end for row in rows for end in (row.performance_gain_low, row.performance_gain_high)], include=(0.0,))
    plot = Plot(x, 340, "Score gained by each method against the share of the baseline's FLOPs it used", y)
    plot.axis_y()
    plot.axis_x("FLOPs relative to the baseline (log scale)")
    plot.horizontal(0.0, "zero")
    plot.vertical(1.0, "zero")
    points = [(1.0, 0.0), *((row.flop_ratio, row.performance_gain) for row in rows)]
    front = pareto_front(points)
    for a, b in pairwise(front):
        (x1, y1), (x2, y2) = points[a], points[b]
        plot.line(x1, y1, x2, y1, "front")
        plot.line(x2, y1, x2, y2, "front")
    if front:
        plot.line(points[front[-1]][0], points[front[-1]][1], x.high, points[front[-1]][1], "front")
    plot.mark(1.0, 0.0, "baseline", "baseline: no method, all of its FLOPs", radius=14, shape="square")
    spots = [(x.at(row.flop_ratio), plot.py(row.performance_gain)) for row in rows]
    labels = placed(spots, plot.height, 9.5)
    # Drawn from the last place to the first, so that the best lies on top.
    for i, row in reversed(list(enumerate(rows))):
        kind = "on-front" if i + 1 in front else "off-front"
        gain = interval(row.performance_gain_low, row.performance_gain_high)
        plot.mark(
            row.flop_ratio, row.performance_gain, f"ranked {kind}",
            f"{i + 1}. {row.method}: gain {signed(row.performance_gain)} {gain} at {ratio(row.flop_ratio)}"
            f" of the baseline's FLOPs ({sample(row)})",
            y_interval=(row.performance_gain_low, row.performance_gain_high),
            x_interval=ranges.get(row.method), radius=9.5, text=str(i + 1), label=labels[i],
        )  # fmt: skip
    return plot


def cost_curve(rows: Sequence[TaskRow], places: Mapping[str, int]) -> Plot:
    """One task: score against FLOPs of every arm at every compute budget.

    The baseline is a line with its intervals. Of the methods, those on the front over all points are numbered by their
    place on the leaderboard; the others are dots. Points that several budgets share are drawn once.

    Args:
        rows: one row per method, with ``by_budget``.
        places: place of each method on the leaderboard.
    """
    base = {(one.flops_baseline, one.baseline_score): one for row in rows for one in row.by_budget}
    points: dict[tuple[float, float, str], tuple[BudgetRow, str]] = {}
    for row in rows:
        for one in row.by_budget if row.status == "ok" else ():
            key = (max(one.flops_assisted, 1.0), one.assisted_score, row.method)
            budgets = f"{points[key][1]}, {one.budget}" if key in points else one.budget
            points[key] = (one, budgets)
    x = logarithmic([key[0] for key in [*base, *points]])
    ends = [end for one in base.values() for end in (one.baseline_low, one.baseline_high)]
    ends += [end for one, _ in points.values() for end in (one.assisted_low, one.assisted_high)]
    y = linear(ends, n_ticks=4)
    plot = Plot(x, 210, f"Score against FLOPs on {rows[0].family}, {rows[0].target}, at each compute budget", y)
    plot.axis_y()
    plot.axis_x("FLOPs per instance (log scale)")
    line = sorted(base)
    for (x1, y1), (x2, y2) in pairwise(line):
        plot.line(x1, y1, x2, y2, "baseline")
    for (cost, value), one in sorted(base.items()):
        numbers = f"{number(value)} {spread(one.baseline_low, one.baseline_high)}"
        plot.mark(
            cost, value, "baseline", f"baseline: score {numbers} at {flops(cost)}",
            y_interval=(one.baseline_low, one.baseline_high), radius=3.5, shape="square",
        )  # fmt: skip
    everything = [*line, *((cost, value) for cost, value, _ in points)]
    front = set(pareto_front(everything))
    numbered = [i for i in sorted(front) if i >= len(line)]
    spots = [(x.at(everything[i][0]), plot.py(everything[i][1])) for i in numbered]
    obstacles = [(x.at(cost), plot.py(value)) for cost, value in line]
    labels = dict(zip(numbered, placed(spots, plot.height, 8, obstacles), strict=True))
    # Those on the front last, on top.
    ordered = sorted(enumerate(points.items(), start=len(line)), key=lambda item: item[0] in front)
    for i, ((cost, value, method), (one, budgets)) in ordered:
        numbers = f"{number(value)} {spread(one.assisted_low, one.assisted_high)}"
        on_front = i in front
        plot.mark(
            cost, value, f"ranked {'on-front' if on_front else 'off-front minor'}",
            f"{method}, {budgets} budget: score {numbers} at {flops(cost)}",
            y_interval=(one.assisted_low, one.assisted_high) if on_front else None,
            radius=8 if on_front else 3, text=str(places.get(method, "")) if on_front else "",
            label=labels.get(i, (0, 0)),
        )  # fmt: skip
    return plot


def _verdict(verdict: Verdict) -> str:
    """Class of the style sheet for a verdict."""
    return {"better": "better", "worse": "worse"}.get(verdict, "same")


def task_caption(row: TaskRow) -> str:
    """What the baseline of a task did, and on how much."""
    return (
        f"baseline {score(row.estimate('baseline_score'))} at {flops(row.flops_baseline)} per instance;"
        f" n = {row.n_instances} instances, {row.n_seeds} seeds"
    )
