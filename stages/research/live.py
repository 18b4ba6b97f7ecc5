"""Researchers compared in campaigns that are run: what the table of fragments cannot show, since it knows them all.

Each campaign is one of ``lensmith research`` and keeps its journal, so a comparison that was interrupted goes on, and
a larger budget continues it. Campaigns of a researcher differ by their seed alone, and are independent.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scipy.stats import ttest_ind

from stages.base import paths
from stages.base.intervals import t_interval
from stages.contracts.compare_rows import LiveRow
from stages.contracts.journal import CampaignSummary, Iteration
from stages.errors import UserError
from stages.research.compare import marks
from stages.research.researchers import make_researcher
from stages.research.stage import campaign

__all__ = ["LivePath", "compare_live", "live_rows", "path_of"]

RANDOM = "random"
Progress = Callable[[str], None]


class LivePath(NamedTuple):
    """A campaign after each of its proposals."""

    train: list[float]
    """Best train reward so far; 0 before there is one."""
    validation: list[float]
    """Validation reward of the incumbent as the gate lets it through; 0 before there is one."""
    scored: list[bool]
    """Whether the proposal has a reward."""


def path_of(iterations: Sequence[Iteration]) -> LivePath:
    found, best = LivePath([], [], []), 0.0
    for one in iterations:
        best = max(best, one.train_reward or 0.0)
        found.train.append(best)
        found.validation.append(one.best_so_far)
        found.scored.append(one.train_reward is not None)
    return found


def compare_live(
    names: Sequence[str], budget: int, seeds: int, progress: Progress = print, jobs: int | None = None
) -> tuple[LiveRow, ...]:
    """Run a campaign of every researcher with every seed, in data/research/live-<researcher>-<seed>/.

    Args:
        names: researchers by name or path; ``random`` and ``search`` propose programs.
        budget: proposals of each.
        seeds: campaigns of each researcher, at least 2.
        progress: told one line per proposal.
        jobs: processes; None: one per core.

    Raises:
        UserError: two of them have one name; one stops before its budget is used up; or see ``campaign``.
    """
    authors = [make_researcher(name, 0, "programs").name for name in names]
    for who in authors:
        if authors.count(who) > 1:
            raise UserError(f"two researchers are called {who!r}: name each once, or give the class another `name`")
    found: dict[str, list[LivePath]] = {who: [] for who in authors}
    for seed in range(seeds):  # each seed of all of them, so that what there is when it is interrupted can be compared
        for who, name in zip(authors, names, strict=True):
            label = f"live-{who}-{seed}"
            say = _labelled(progress, label)
            summary = campaign(name, budget, seed, label, say, space="programs", workers=jobs)
            found[who].append(path_of(_whole(summary, budget)))
    return live_rows(found, budget)


def _labelled(progress: Progress, label: str) -> Progress:
    return lambda text: progress(f"{label}: {text}")


def _whole(summary: CampaignSummary, budget: int) -> Sequence[Iteration]:
    if len(summary.iterations) < budget:
        journal = paths.campaign_dir(summary.campaign) / "events.jsonl"
        raise UserError(
            f"campaign {summary.campaign} has {len(summary.iterations)} of {budget} proposals: the last line of"
            f" {journal} says why it stopped; mend that and run the same again, or give a smaller --budget"
        )
    return summary.iterations[:budget]


def live_rows(found: Mapping[str, Sequence[LivePath]], budget: int) -> tuple[LiveRow, ...]:
    """Every researcher at every mark."""
    rows = []
    for who, of in found.items():
        for n in marks(budget):
            train, validation = [one.train[n - 1] for one in of], [one.validation[n - 1] for one in of]
            control = [one.train[n - 1] for one in found.get(RANDOM, ())] if who != RANDOM else []
            difference = _difference(train, control)
            rows.append(
                LiveRow(
                    researcher=who,
                    n=n,
                    seeds=len(of),
                    over_random=difference[0],
                    over_random_low=difference[1],
                    over_random_high=difference[2],
                    scored=statistics.fmean(ok for one in of for ok in one.scored[:n]),
                    **_mean("train", train),
                    **_mean("validation", validation),
                ).rounded()
            )
    return tuple(rows)


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """With its t interval."""
    low, high = t_interval(values)
    return {name: statistics.fmean(values), f"{name}_low": low, f"{name}_high": high}


def _difference(
    values: Sequence[float], control: Sequence[float]
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Of two means, with Welch's interval; where neither varies it is a point."""
    if not control:
        return None, None, None
    difference = statistics.fmean(values) - statistics.fmean(control)
    if statistics.pvariance(values) + statistics.pvariance(control) == 0:
        low = high = difference
    else:
        low, high = ttest_ind(values, control, equal_var=False).confidence_interval(0.95)
    return difference, float(low), float(high)
