"""Rows about researchers compared: replayed on the table of fragments, and in campaigns for real."""

from typing import ClassVar

from stages.contracts.record import Ends, Record
from stages.contracts.research_rows import CommandFile

__all__ = [
    "COMPARISON",
    "LIVE",
    "BestOfRow",
    "CompareRow",
    "Comparison",
    "LiveRow",
    "ProfileRow",
    "ScalingPoint",
    "ScalingRow",
    "TabledRow",
]


class CompareRow(Record):
    """A researcher after n proposals, over its seeds."""

    ESTIMATES: ClassVar[Ends] = {
        name: (name, f"{name}_low", f"{name}_high")
        for name in ("train", "better", "validation", "validation_better", "of_optimum")
    }

    researcher: str
    """Name of the researcher."""
    n: int
    """Proposals."""
    seeds: int
    """Campaigns."""
    train: float
    """Best train reward found, mean over seeds."""
    train_low: float
    """Lower end of its 95% interval: seeds are resampled, tasks and instances are fixed."""
    train_high: float
    """Upper end of its 95% interval."""
    of_optimum: float
    """The same as a share of the best program's."""
    of_optimum_low: float
    """Lower end of its 95% interval."""
    of_optimum_high: float
    """Upper end of its 95% interval."""
    better: float
    """Probability of improvement: that its best train reward exceeds that of the best of n random programs."""
    better_low: float
    """Lower end of its 95% interval."""
    better_high: float
    """Upper end of its 95% interval."""
    random_train: float
    """Expected train reward of the best of n random programs, exactly."""
    validation: float
    """Validation reward of the program with the best value (train and rounded validation)."""
    validation_low: float
    """Lower end of its 95% interval."""
    validation_high: float
    """Upper end of its 95% interval."""
    validation_better: float
    """Probability that this exceeds the validation reward of one random program."""
    validation_better_low: float
    """Lower end of its 95% interval."""
    validation_better_high: float
    """Upper end of its 95% interval."""
    gap: float
    """Train reward of that program less its validation reward: the tasks differ, and it was chosen more by train."""


class BestOfRow(Record):
    """The best train reward of n random programs, exactly."""

    n: int
    """Programs."""
    mean: float
    """Expected."""
    low: float
    """2.5% quantile."""
    high: float
    """97.5% quantile."""


class ProfileRow(Record):
    """How often what a researcher found earns at least so much: one point of a performance profile.

    A run is one campaign on one validation task (Agarwal et al. 2021, section 4.2).
    """

    researcher: str
    """Name of the researcher."""
    tau: float
    """Reward."""
    share: float
    """Share of runs with a reward above it."""
    low: float
    """Lower end of its 95% interval: seeds are resampled, tasks are fixed."""
    high: float
    """Upper end of its 95% interval."""


class ScalingPoint(Record):
    """Best train reward after so much compute."""

    n: int
    """Proposals."""
    cpu_s: float
    """CPU seconds that judging them takes, mean over seeds."""
    train: float
    """Best train reward found, mean over seeds."""
    train_low: float
    """Lower end of its 95% interval over seeds."""
    train_high: float
    """Upper end of its 95% interval."""
    fitted: float | None
    """The fitted curve there; null without a fit."""


class ScalingRow(Record):
    """Reward against compute: optimum - reward = factor x CPU seconds ^ -exponent, least squares in logs."""

    ESTIMATES: ClassVar[Ends] = {"exponent": ("exponent", "exponent_low", "exponent_high")}

    researcher: str
    """Name of the researcher."""
    exponent: float | None
    """How fast the distance from the optimum falls; null where fewer than three points are below it."""
    exponent_low: float | None
    """Lower end of its 95% interval: seeds are resampled."""
    exponent_high: float | None
    """Upper end of its 95% interval."""
    factor: float | None
    """Distance from the optimum after one CPU second, by the fit."""
    points: tuple[ScalingPoint, ...]
    """What the fit goes through."""


class TabledRow(Record):
    """What the table of fragments says of one task."""

    ESTIMATES: ClassVar[Ends] = {"best": ("best", "best_low", "best_high")}

    task: str
    """<family>.<target>."""
    split: str
    """train or validation."""
    kind: str
    """Kind of question."""
    fragments: int
    """Fragments of the grammar for questions of this kind."""
    answered: int
    """Of them, how many answered; the others declined, failed or broke a rule."""
    beyond: int
    """Of those, how many have a reward whose interval lies above the noise floor."""
    median: float
    """Median reward of those that answered; 0 where none did."""
    best: float
    """Largest reward, by chance too: it is the best of as many as answered."""
    best_low: float
    """Lower end of its 95% interval."""
    best_high: float
    """Upper end of its 95% interval."""
    fragment: str
    """Which fragment that is; of equals the first."""


class Comparison(Record):
    """metrics/compare.json."""

    budget: int
    """Proposals of a campaign."""
    seeds: int
    """Campaigns of each researcher."""
    optimum_train: float
    """Mean train reward of the best program of the grammar."""
    optimum_validation: float
    """Mean validation reward of the best program of the grammar."""
    null: tuple[BestOfRow, ...]
    """The best of n random programs."""
    rows: tuple[CompareRow, ...]
    """Every researcher at every number of proposals."""
    profiles: tuple[ProfileRow, ...]
    """What they found after the whole budget, over validation tasks."""
    scaling: tuple[ScalingRow, ...]
    """Reward against compute."""
    tasks: tuple[TabledRow, ...] = ()
    """What the table says of each task."""


COMPARISON = CommandFile("compare", Comparison, "lensmith compare", "researchers compared on the table of fragments")


class LiveRow(Record):
    """A researcher after n proposals, over campaigns that were run and not replayed."""

    ESTIMATES: ClassVar[Ends] = {
        name: (name, f"{name}_low", f"{name}_high") for name in ("train", "validation", "over_random")
    }

    researcher: str
    """Name of the researcher."""
    n: int
    """Proposals."""
    seeds: int
    """Campaigns."""
    train: float
    """Best train reward so far, mean over campaigns; nothing found counts as 0."""
    train_low: float
    """Lower end of its 95% t interval over campaigns."""
    train_high: float
    """Upper end."""
    validation: float
    """Validation reward of the incumbent, as the gate lets it through, mean over campaigns; 0 before there is one."""
    validation_low: float
    """Lower end of its 95% t interval over campaigns."""
    validation_high: float
    """Upper end."""
    over_random: float | None
    """Best train reward less that of random after as many proposals, mean over campaigns; null where random is not
    there."""
    over_random_low: float | None
    """Lower end of its 95% t interval (Welch): campaigns are independent."""
    over_random_high: float | None
    """Upper end."""
    scored: float
    """Share of proposals that have a reward: the others failed, were void, or the machinery failed."""


LIVE = CommandFile("compare_live", tuple[LiveRow, ...], "lensmith compare --live", "researchers compared in campaigns")
