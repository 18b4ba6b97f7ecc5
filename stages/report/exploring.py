"""Plots of what was made on the way: the campaign's learning curve, dictionaries, class histograms of latents."""

from collections.abc import Sequence
from itertools import pairwise

from stages.report.drawing import Plot
from stages.report.results import Row
from stages.report.scales import Scale, linear, logarithmic
from stages.report.wording import interval, number, signed, spread

__all__ = ["ARCHITECTURES", "campaign_curve", "dictionaries", "histogram"]

ARCHITECTURES = ("standard", "topk", "batchtopk", "random")


def campaign_curve(campaign: Row) -> Plot:
    """Each iteration's validation reward with its interval, the best so far, and the best built-in method."""
    iterations: Sequence[Row] = campaign["iterations"]
    scored = [one for one in iterations if one["status"] == "ok"]
    built_in = campaign.get("best_built_in") or {}
    known = [one[key] for one in scored for key in ("validation_low", "validation_high", "validation_reward")]
    known += [one.get("best_so_far") for one in iterations]
    y = linear(known, include=[0.0, *([built_in["reward_mean"]] if built_in else [])])
    numbers = [int(one["iteration"]) for one in iterations]
    step = max(1, -(-len(numbers) // 8))
    x = Scale(min(numbers) - 0.6, max(numbers) + 0.6, tuple(float(n) for n in numbers[::step]))
    plot = Plot(x, 300, "Validation reward of each iteration of the campaign, with the best so far", y)
    plot.axis_y()
    plot.axis_x("iteration", grid=False)
    plot.horizontal(0.0, "zero")
    if built_in:
        plot.horizontal(built_in["reward_mean"], "reference")
    best: list[tuple[float, float]] = [
        (float(one["iteration"]), float(one["best_so_far"])) for one in iterations if one.get("best_so_far") is not None
    ]
    for (x1, y1), (x2, y2) in pairwise(best):
        plot.line(x1, y1, x2, y1, "best")
        plot.line(x2, y1, x2, y2, "best")
    if best:
        plot.line(best[-1][0], best[-1][1], x.high, best[-1][1], "best")
    for one in iterations:
        at, who = float(one["iteration"]), f"{one['iteration']}. {one['name']}"
        if one["status"] != "ok":
            plot.cross(at, y.low + (y.high - y.low) * 0.04, f"{who}: {one['status']}, {one.get('reason', '')}")
            continue
        low, high = one.get("validation_low"), one.get("validation_high")
        plot.mark(
            at, one["validation_reward"], "accepted" if one["accepted"] else "proposed",
            f"{who}: validation {signed(one['validation_reward'])} {interval(low, high)}, train"
            f" {signed(one.get('train_reward'))}{', accepted' if one['accepted'] else ''}",
            y_interval=(low, high), radius=6 if one["accepted"] else 4.5,
        )  # fmt: skip
    return plot


def dictionaries(rows: Sequence[Row]) -> Plot:
    """Explained variance against L0 of the dictionaries at one hook point; pale points are further seeds."""

    def known(name: str) -> list[float]:
        return [row[name][key] for row in rows for key in ("value", "low", "high") if row[name].get(key) is not None]

    x, y = logarithmic(known("l0")), linear(known("explained_variance"), n_ticks=4)
    place = f"{rows[0]['target']}, {rows[0]['hook_point']}"
    plot = Plot(x, 190, f"Explained variance against L0 of the dictionaries at {place}", y)
    plot.axis_y()
    plot.axis_x("L0: latents active per row (log scale)")
    kept = min(row["seed"] for row in rows)
    # The kept dictionary last, on top.
    for row in sorted(rows, key=lambda row: (row["seed"] == kept, row["architecture"])):
        l0, variance = row["l0"], row["explained_variance"]
        if l0["value"] is None or variance["value"] is None:
            continue
        plot.mark(
            l0["value"], variance["value"], f"dictionary {row['architecture']}{'' if row['seed'] == kept else ' pale'}",
            f"{row['architecture']}, seed {row['seed']}:"
            f" L0 {number(l0['value'], 2)} {spread(l0['low'], l0['high'], 2)},"
            f" explained variance {number(variance['value'])} {spread(variance['low'], variance['high'])},"
            f" n = {row['n_validation_rows']} rows of {row['n_validation_examples']} examples",
            x_interval=(l0["low"], l0["high"]) if row["seed"] == kept else None,
            y_interval=(variance["low"], variance["high"]) if row["seed"] == kept else None,
            radius=5.5 if row["seed"] == kept else 3.5, square=row["architecture"] == "random",
        )  # fmt: skip
    return plot


def histogram(counts: Sequence[int], best: "int | None") -> str:
    """Firings per digit as ten bars with the digits below; the bar of class ``best`` stands out."""
    top = max([*counts, 1])
    bars = "".join(
        f'<rect class="{"bar best" if i == best else "bar"}" x="{10 * i + 1}%" width="8%"'
        f' y="{round(34 * (1 - n / top), 1)}" height="{round(max(34 * n / top, 0.5), 1)}">'
        f"<title>{i}: {n} firings</title></rect>"
        f'<text class="digit" x="{10 * i + 5}%" y="44" text-anchor="middle">{i}</text>'
        for i, n in enumerate(counts)
    )
    said = ", ".join(f"{i}: {n}" for i, n in enumerate(counts))
    return f'<svg class="histogram" role="img" aria-label="firings per digit: {said}" height="48">{bars}</svg>'
