"""Researchers compared on the table: with the best of n random programs, the optimum and each other.

What each found is compared with the exact null; so is its validation reward, which it was not chosen by alone. Beside
the numbers at each mark there are a performance profile over validation tasks, and reward against compute.
"""

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from stages.base.intervals import percentile_interval
from stages.contracts.compare_rows import (
    BestOfRow,
    CompareRow,
    Comparison,
    ProfileRow,
    ScalingPoint,
    ScalingRow,
    TabledRow,
)
from stages.errors import UserError
from stages.research.programs.exact import STEP, Null, best_program, contributions, null_of
from stages.research.programs.grammar import every_fragment, text_of
from stages.research.programs.table import Column, Table
from stages.research.replay import Path, replay
from stages.research.researchers import has_islands, make_researcher

__all__ = ["compare", "marks", "profile", "scaling", "tabled"]

DRAWS = 2000
"""Resamples of the seeds."""
N_TAU = 41
"""Points of a performance profile."""
FloatArray = npt.NDArray[np.float64]
Progress = Callable[[str], None]


def marks(budget: int) -> list[int]:
    """Numbers of proposals at which campaigns are compared: powers of two from 8, and the budget."""
    return sorted({*(2**i for i in range(3, 14) if 2**i < budget), budget})


def compare(
    names: Sequence[str],
    table: Table,
    budget: int,
    seeds: int,
    progress: Progress = print,
    islands: Sequence[int] = (1,),
) -> Comparison:
    """Every researcher at every mark, over the same seeds.

    Args:
        names: researchers by name or path; ``random`` and ``search`` propose programs here.
        islands: a researcher that has islands is replayed with each of these numbers of them.

    Raises:
        UserError: two of them have one name, or there are islands and nobody has them.
    """
    if set(islands) != {1} and not any(map(has_islands, names)):
        raise UserError(f"none of {', '.join(names)} has islands: name programs, or leave --islands out")
    nulls = {split: null_of(contributions(table, split)) for split in ("train", "validation")}
    optimum = best_program(table, "train")
    found: dict[str, list[Path]] = {}
    whom = [(name, n) for name in names for n in (islands if has_islands(name) else (1,))]
    for name, n_islands in whom:
        who = make_researcher(name, 0, "programs").name + (f", {n_islands} islands" if n_islands > 1 else "")
        if who in found:
            raise UserError(f"two researchers are called {who!r}: name each once, or give the class another `name`")
        found[who] = []
        for seed in range(seeds):
            found[who].append(replay(make_researcher(name, seed, "programs", n_islands), table, budget))
            progress(f"{who}: campaign {seed + 1} of {seeds}")
    every = np.array([path.chosen_tasks[-1] for paths in found.values() for path in paths])
    taus = np.linspace(min(float(every.min()), 0.0), float(every.max()), N_TAU)
    return Comparison(
        budget=budget,
        seeds=seeds,
        optimum_train=optimum,
        optimum_validation=best_program(table, "validation"),
        null=tuple(_null_row(nulls["train"], n) for n in marks(budget)),
        rows=tuple(
            _row(who, n, paths, nulls["train"], nulls["validation"], optimum)
            for who, paths in found.items()
            for n in marks(budget)
        ),
        profiles=tuple(row for who, paths in found.items() for row in profile(who, paths, taus)),
        scaling=tuple(scaling(who, paths, optimum) for who, paths in found.items()),
        tasks=tuple(tabled(table, column) for column in table.columns),
    ).rounded()


def tabled(table: Table, column: Column) -> TabledRow:
    """What all fragments together earn on one task."""
    cells = [table.cells[text_of(fragment), column.task] for fragment in every_fragment(column.kind)]
    answered = [cell for cell in cells if cell.status == "ok"]
    best = max(answered, key=lambda cell: cell.reward) if answered else cells[0]
    return TabledRow(
        task=column.task,
        split=column.split,
        kind=column.kind,
        fragments=len(cells),
        answered=len(answered),
        beyond=sum(cell.low > cell.noise_floor for cell in answered),
        median=statistics.median([cell.reward for cell in answered]) if answered else 0.0,
        best=best.reward,
        best_low=best.low,
        best_high=best.high,
        fragment=best.fragment if answered else "",
    ).rounded()


def _null_row(null: Null, n: int) -> BestOfRow:
    return BestOfRow(n=n, mean=null.best_of(n), low=null.quantile(0.025, n), high=null.quantile(0.975, n)).rounded()


def _row(who: str, n: int, paths: Sequence[Path], train: Null, validation: Null, optimum: float) -> CompareRow:
    found = np.array([path.train[n - 1] for path in paths])
    chosen = np.array([path.validation[n - 1] for path in paths])
    gaps = np.array([path.chosen_train[n - 1] - path.validation[n - 1] for path in paths])
    beats = np.array([train.beats(value, n) for value in found])
    above = np.array([validation.beats(value, 1) for value in chosen])
    numbers = (
        _over_seeds("train", found)
        | _over_seeds("better", beats)
        | _over_seeds("validation", chosen)
        | _over_seeds("validation_better", above)
        | _over_seeds("of_optimum", found / optimum if optimum > 0 else np.zeros(len(found)))
    )
    return CompareRow(
        researcher=who, n=n, seeds=len(paths), random_train=train.best_of(n), gap=float(gaps.mean()), **numbers
    ).rounded()


def profile(who: str, paths: Sequence[Path], taus: FloatArray) -> list[ProfileRow]:
    """Share of (seed, validation task) pairs on which what was found at the end earns more than each tau.

    Agarwal et al. 2021, section 4.2. Seeds are resampled.
    """
    above = np.array([path.chosen_tasks[-1] for path in paths])[:, :, None] > taus  # (seeds, tasks, taus)
    shares = above.mean(1)
    drawn = shares[_resampled(len(paths))].mean(1)  # (draws, taus)
    rows = []
    for tau, share, draws in zip(taus, shares.mean(0), drawn.T, strict=True):
        low, high = percentile_interval(draws)
        row = ProfileRow(researcher=who, tau=float(tau), share=float(share), low=float(low), high=float(high))
        rows.append(row.rounded())
    return rows


def scaling(who: str, paths: Sequence[Path], optimum: float) -> ScalingRow:
    """Best train reward against the CPU seconds of judging, at powers of the root of two, with a power law.

    The optimum is known, so only the speed at which the distance to it falls is fitted: least squares in logs over the
    points that are below the optimum. The interval resamples seeds and fits again.
    """
    budget = len(paths[0].train)
    at = sorted({min(round(2 ** (i / 2)), budget) for i in range(2 * budget.bit_length() + 1)})
    train = np.array([[path.train[n - 1] for n in at] for path in paths])
    cost = np.array([[path.cpu_s[n - 1] for n in at] for path in paths])
    fitted = _power_law(cost.mean(0), optimum - train.mean(0))
    drawn = [_power_law(cost[one].mean(0), optimum - train[one].mean(0)) for one in _resampled(len(paths))]
    ends = percentile_interval([one[0] for one in drawn if one is not None])
    points = []
    for i, n in enumerate(at):
        seconds = float(cost[:, i].mean())
        of_train = percentile_interval(train[:, i][_resampled(len(paths))].mean(1))
        curve = None if fitted is None or seconds <= 0 else optimum - fitted[1] * seconds ** -fitted[0]
        points.append(
            ScalingPoint(
                n=n, cpu_s=seconds, train=float(train[:, i].mean()), train_low=of_train.low, train_high=of_train.high,
                fitted=curve,
            ).rounded()
        )  # fmt: skip
    return ScalingRow(
        researcher=who,
        exponent=None if fitted is None else fitted[0],
        exponent_low=ends.low if fitted is not None and math.isfinite(ends.low) else None,
        exponent_high=ends.high if fitted is not None and math.isfinite(ends.high) else None,
        factor=None if fitted is None else fitted[1],
        points=tuple(points),
    ).rounded()


def _power_law(cost: FloatArray, distance: FloatArray) -> tuple[float, float] | None:
    """(exponent, factor) of distance = factor * cost ^ -exponent; None where fewer than three points can be used."""
    known = (distance > STEP) & (cost > 0)
    if known.sum() < 3 or np.ptp(cost[known]) == 0:
        return None
    slope, height = np.polyfit(np.log(cost[known]), np.log(distance[known]), 1)
    return float(-slope), float(np.exp(height))


def _resampled(n: int) -> npt.NDArray[np.int64]:
    """(DRAWS, n): which seeds; the same resamples for every researcher."""
    return np.random.default_rng(0).integers(0, n, size=(DRAWS, n))


def _over_seeds(name: str, values: FloatArray) -> dict[str, float]:
    """The mean over seeds and its percentile interval."""
    low, high = percentile_interval(values[_resampled(len(values))].mean(1))
    return {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
