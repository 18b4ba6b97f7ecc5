"""Rank correlation of metrics with rewards: interval, null, and what is left once something else is held fixed.

Shape legend: N = dictionaries, G = groups (dictionaries that differ by seed alone).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import fdtri
from scipy.stats import rankdata

from stages.base.intervals import percentile_interval
from stages.contracts.record import Estimate
from stages.reward.inference import Estimated, over_units

__all__ = ["correlate", "icc", "over_targets", "partial", "ranks", "spearman"]

FloatArray = npt.NDArray[np.float64]
NEARLY_1 = 0.999
"""Largest correlation whose Fisher z is taken: that of 1 is infinite."""


def ranks(values: FloatArray, strata: npt.NDArray[np.int64]) -> FloatArray:
    """(N,) average ranks within each stratum, scaled to mean 0 and length 1 a stratum; 0 where all are the same.

    So several targets can be pooled without their different levels passing for a correlation.
    """
    out = np.zeros(len(values))
    for stratum in np.unique(strata):
        at = strata == stratum
        centred = rankdata(values[at]) - (at.sum() + 1) / 2
        length = np.sqrt((centred**2).sum())
        out[at] = centred / length * np.sqrt(at.sum()) if length > 0 else 0.0
    return out


def spearman(x: FloatArray, y: FloatArray, strata: npt.NDArray[np.int64] | None = None) -> float:
    """Spearman's rank correlation (ties averaged), within strata if given; NaN where one side never varies."""
    at = np.zeros(len(x), dtype=np.int64) if strata is None else strata
    return _correlation(ranks(x, at), ranks(y, at))


def partial(x: FloatArray, y: FloatArray, held: FloatArray, strata: npt.NDArray[np.int64] | None = None) -> float:
    """Partial rank correlation (Kendall 1942 for Spearman's form): of what the ranks of ``held`` leave of both.

    NaN where nothing is left, such as when the metric is a monotone function of ``held``.
    """
    at = np.zeros(len(x), dtype=np.int64) if strata is None else strata
    z = ranks(held, at)
    left = [_residual(ranks(side, at), z) for side in (x, y)]
    return _correlation(*left)


def over_targets(found: Sequence[float]) -> tuple[Estimate, Estimated | None]:
    """Correlations of several targets as a sample of targets like these: mean and t interval of Fisher's z, back as a
    correlation; and the z itself, for its p-value.

    Args:
        found: one correlation per target; those that are not defined are left out. Fewer than two give no interval.
    """
    known = np.array([one for one in found if math.isfinite(one)])
    z = np.arctanh(known.clip(-NEARLY_1, NEARLY_1))
    mean = over_units(z.tolist())
    if mean is None:
        return Estimate.of(float(known[0]) if len(known) else math.nan), None
    low, high = mean.interval()
    return Estimate.of(math.tanh(mean.value), math.tanh(low), math.tanh(high)), mean


def icc(values: Sequence[float], groups: Sequence[str], strata: Sequence[str]) -> Estimate:
    """Reliability of one dictionary's rank: the share of the variance of ranks that lies between groups.

    ICC(1) of a one-way analysis of variance with groups drawn at random (Shrout and Fleiss 1979; its interval from F,
    McGraw and Wong 1996), on ranks within strata, which is what ``spearman`` correlates. It may be below 0, where
    members of a group differ more than groups do. Not defined where no group has two members, or nothing varies.

    Args:
        values: (N,); groups: (N,) which differ by seed alone; strata: (N,) target of each.
    """
    at = np.unique([str(one) for one in strata], return_inverse=True)[1].astype(np.int64)
    ranked = ranks(np.asarray(values, dtype=np.float64), at)
    members = [one for of in _members(groups, at) for one in of]
    n, sizes = len(ranked), np.array([len(one) for one in members], dtype=np.float64)
    between_df, within_df = len(members) - len(set(at.tolist())), n - len(members)
    if between_df < 1 or within_df < 1:
        return Estimate(value=None)
    means = np.array([ranked[one].mean() for one in members])
    between = float(sizes @ means**2) / between_df  # the mean of each stratum's ranks is 0
    within = float(sum(((ranked[one] - mean) ** 2).sum() for one, mean in zip(members, means, strict=True))) / within_df
    if between + within < 1e-12:
        return Estimate(value=None)
    size = (n - float(sizes @ sizes) / n) / (len(members) - 1)
    if within < 1e-12:
        return Estimate.of(1.0)

    def of(ratio: float) -> float:
        return (ratio - 1) / (ratio + size - 1)

    ratio = between / within
    low = of(ratio / float(fdtri(between_df, within_df, 0.975)))
    high = of(ratio * float(fdtri(within_df, between_df, 0.975)))
    return Estimate.of(of(ratio), low, high)


def _residual(values: FloatArray, on: FloatArray) -> FloatArray:
    length = float(on @ on)
    out: FloatArray = values - (values @ on / length) * on if length > 0 else values
    return np.where(np.abs(out) < 1e-12, 0.0, out)


def _correlation(x: FloatArray, y: FloatArray) -> float:
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 1e-12 else math.nan


def correlate(
    x: Sequence[float], y: Sequence[float], held: Mapping[str, Sequence[float]], groups: Sequence[str],
    strata: Sequence[str], draws: int, rng: np.random.Generator,
) -> dict[str, Estimate]:  # fmt: skip
    """Spearman's correlation of a metric with rewards, and the partial ones.

    Args:
        x: (N,) the metric; y: (N,) the rewards.
        held: {name: (N,)} what is held fixed in turn.
        groups: (N,) which dictionaries differ by seed alone: the bootstrap draws whole groups, within their stratum.
        strata: (N,) target of each; ranks are within strata.
        draws: bootstrap resamples, and as many permutations.

    Returns:
        "spearman" and "partial_<name>", with 95% intervals (cluster bootstrap): the null is the
        size that 95% of the correlations stay below when rewards are dealt to other groups of their stratum.
    """
    values, rewards = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    fixed = {name: np.asarray(of, dtype=np.float64) for name, of in held.items()}
    at = np.unique([str(one) for one in strata], return_inverse=True)[1].astype(np.int64)
    members = _members(groups, at)

    def all_of(index: npt.NDArray[np.int64], dealt: npt.NDArray[np.int64]) -> list[float]:
        a, b, s = values[index], rewards[dealt], at[index]
        return [spearman(a, b, s), *(partial(a, b, of[index], s) for of in fixed.values())]

    everything = np.arange(len(values))
    point = all_of(everything, everything)
    resampled = np.array([all_of(*2 * (_drawn(members, rng),)) for _ in range(draws)])
    null = np.abs([all_of(everything, _dealt(members, rng)) for _ in range(draws)])
    out: dict[str, Estimate] = {}
    for i, name in enumerate(["spearman", *(f"partial_{name}" for name in fixed)]):
        known = null[np.isfinite(null[:, i]), i]
        limit = float(np.quantile(known, 0.95)) if len(known) else math.nan
        out[name] = Estimate.of(point[i], *percentile_interval(resampled[:, i]).holding(point[i]), limit)
    return out


def _members(groups: Sequence[str], at: npt.NDArray[np.int64]) -> list[list[npt.NDArray[np.int64]]]:
    """Numbers of each group's members, by stratum."""
    found: dict[tuple[int, str], list[int]] = {}
    for i, (group, stratum) in enumerate(zip(groups, at, strict=True)):
        found.setdefault((int(stratum), str(group)), []).append(i)
    strata = sorted({key[0] for key in found})
    return [[np.array(found[key]) for key in sorted(found) if key[0] == stratum] for stratum in strata]


def _drawn(members: list[list[npt.NDArray[np.int64]]], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """As many groups as there are, with replacement."""
    return np.concatenate([of[i] for of in members for i in rng.integers(len(of), size=len(of))])


def _dealt(members: list[list[npt.NDArray[np.int64]]], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Whose reward each gets: groups keep theirs together, so that seeds do not pass for independent evidence."""
    out = np.zeros(sum(len(one) for of in members for one in of), dtype=np.int64)
    for of in members:
        for group, other in zip(of, rng.permutation(len(of)), strict=True):
            out[group] = np.resize(of[other], len(group))
    return out
