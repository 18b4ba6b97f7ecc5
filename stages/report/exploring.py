"""Plots of what was made on the way: the campaign's learning curve."""

from itertools import pairwise

from stages.contracts.journal import CampaignSummary
from stages.contracts.reward_rows import LeaderboardRow
from stages.report.drawing import Plot
from stages.report.scales import Scale, linear
from stages.report.wording import signed

__all__ = ["campaign_curve"]


def campaign_curve(campaign: CampaignSummary, built_in: LeaderboardRow | None) -> Plot:
    """Each iteration's validation reward as the gate let it through, the best so far, and the best built-in method."""
    iterations = campaign.iterations
    scored = [one for one in iterations if one.status == "ok"]
    known = [one.validation_reward for one in scored]
    known += [one.best_so_far for one in iterations]
    y = linear(known, include=[0.0, *([built_in.reward_mean] if built_in else [])])
    numbers = [int(one.iteration) for one in iterations]
    step = max(1, -(-len(numbers) // 8))
    x = Scale(min(numbers) - 0.6, max(numbers) + 0.6, tuple(float(n) for n in numbers[::step]))
    plot = Plot(x, 300, "Validation reward of each iteration of the campaign, with the best so far", y)
    plot.axis_y()
    plot.axis_x("iteration", grid=False)
    plot.horizontal(0.0, "zero")
    if built_in:
        plot.horizontal(built_in.reward_mean, "reference")
    best = [(float(one.iteration), one.best_so_far) for one in iterations]
    for (x1, y1), (x2, y2) in pairwise(best):
        plot.line(x1, y1, x2, y1, "best")
        plot.line(x2, y1, x2, y2, "best")
    if best:
        plot.line(best[-1][0], best[-1][1], x.high, best[-1][1], "best")
    for one in iterations:
        at, who = float(one.iteration), f"{one.iteration}. {one.name}"
        if one.status != "ok" or one.validation_reward is None:
            plot.cross(at, y.low + (y.high - y.low) * 0.04, f"{who}: {one.status}, {one.reason}")
            continue
        plot.mark(
            at, one.validation_reward, "accepted" if one.accepted else "proposed",
            f"{who}: validation {signed(one.validation_reward)}, train"
            f" {signed(one.train_reward)}{', accepted' if one.accepted else ''}",
            radius=6 if one.accepted else 4.5,
        )  # fmt: skip
    return plot
