"""From draws and values to an estimate with its error: what an interval, a p-value and a smallest difference rest on.

Two kinds of estimate, both with a t quantile:

- ``measured``: one task, kept as it is. Its instances and its seeds could have been others.
- ``over_units``: families (or clusters of them) as a sample of families like these.

The error of one task. A seed s deals the N instances to calibration (n) and evaluation (E = N - n). Let A be the
variance that the reward owes to which instances there are, and B what it owes, given those, to one seed. The mean over
S seeds has the variance A + B / S.

- Resampling the S seeds gives (S - 1) / S of B / S, as any plug-in variance of S values does: 2/3 for three seeds. So
  seeds are not resampled: B is their unbiased variance (dividing by S - 1), which is that rescaling, exactly.
- Resampling instances with the seeds fixed gives A + C / S, where C is the part of B that comes from evaluating on E of
  N instances; B has it already. Between two different seeds the covariance of the draws is A alone, so A is the mean
  covariance over pairs of seeds.
- Refitting is not part of a draw: a calibrator that saw other instances would predict otherwise. Splits share
  instances, so seeds show only a share 1 - n / N of that variance, and averaging over seeds does not remove the rest
  (Nadeau and Bengio 2003, "Inference for the generalization error", section 3, with calibration in the place of their
  test sets). Were all of B - C due to it, (B - C) n / E would be missing. That is added: an upper bound, since
  black-box draws are in B - C as well.
- B has S - 1 degrees of freedom, A has E - 1; together by Satterthwaite (1946), so the quantile is that of t.

Shape legend: W = resamples of the instances (row 0 the original), S = seeds.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import gammaincinv, ndtr, stdtr, stdtrit

__all__ = ["ALPHA", "POWER", "Estimated", "combined", "holm", "measured", "over_units", "units_needed"]

FloatArray = npt.NDArray[np.float64]
ALPHA = 0.05
"""Two-sided level of every interval and test."""
POWER = 0.8
"""With what probability the smallest visible difference would have been seen."""
LARGEST_DF = 1e6
N_MIDDLES = 500
MOST_UNITS = 1000
"""Families that nobody will build more of."""


class Estimated(NamedTuple):
    """A number with its standard error."""

    value: float
    se: float
    df: float
    """Degrees of freedom of the standard error, at least 1."""

    def interval(self) -> tuple[float, float]:
        """(low, high): the two-sided 95% interval."""
        half = float(stdtrit(self.df, 1 - ALPHA / 2)) * self.se
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """Two-sided, of the value being 0. Without any error: 0 where the value is not 0, else 1."""
        if self.se == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stdtr(self.df, -abs(self.value) / self.se))

    @property
    def visible(self) -> float | None:
        """The smallest true difference from 0 whose interval would have excluded 0 in 80% of repetitions; None where
        nothing varied, which says nothing of what would have been seen."""
        if self.se == 0:
            return None
        return _visible(round(min(self.df, LARGEST_DF), 2)) * self.se


def measured(draws: FloatArray, n_instances: int, n_evaluated: int) -> Estimated:
    """One task: mean over seeds of the original, with the error that instances and seeds leave. See above.

    Args:
        draws: (W, S) under resampled instances, one column a seed.
        n_instances: of the task, N.
        n_evaluated: of one seed, E; the others calibrate.

    Raises:
        ValueError: no resample, or sizes that no split has.
    """
    if len(draws) < 3:
        raise ValueError(f"{len(draws)} rows of draws: the original and at least 2 resamples are needed")
    if not 0 < n_evaluated <= n_instances:
        raise ValueError(f"{n_evaluated} of {n_instances} instances evaluated: at least one, at most all of them")
    n_seeds = draws.shape[1]
    covariance = np.atleast_2d(np.cov(draws[1:], rowvar=False))
    own = float(np.trace(covariance)) / n_seeds
    if n_seeds == 1:  # what one seed owes to its split cannot be told apart from what it owes to its instances
        instances, seeds, degrees = own, 0.0, 1
    else:
        shared = (float(covariance.sum()) - n_seeds * own) / (n_seeds * (n_seeds - 1))
        instances = max(shared, 0.0)
        spread = float(draws[0].var(ddof=1))
        refitting = max(spread - (own - shared), 0.0) * (n_instances - n_evaluated) / n_evaluated
        seeds, degrees = spread / n_seeds + refitting, n_seeds - 1
    variance = instances + seeds
    if variance < 1e-24:  # last digits of a constant
        return Estimated(float(draws[0].mean()), 0.0, max(n_evaluated - 1, 1))
    df = variance**2 / (instances**2 / max(n_evaluated - 1, 1) + seeds**2 / degrees)
    return Estimated(float(draws[0].mean()), variance**0.5, max(df, 1.0))


def combined(parts: Sequence[Estimated], weights: Sequence[float] | None = None) -> Estimated:
    """A weighted sum of independent estimates, by default their mean; degrees of freedom by Satterthwaite.

    Tasks share neither instances nor splits, so they are independent once tasks and targets are fixed.
    """
    if not parts:
        raise ValueError("no estimate to combine: at least one task is needed")
    shares = np.full(len(parts), 1 / len(parts)) if weights is None else np.asarray(weights, dtype=np.float64)
    variances = np.array([one.se**2 for one in parts]) * shares**2
    value = float(shares @ np.array([one.value for one in parts]))
    degrees = np.array([one.df for one in parts])
    total = float(variances.sum())
    if total == 0:
        return Estimated(value, 0.0, float(degrees.min()))
    return Estimated(value, total**0.5, float(total**2 / (variances**2 / degrees).sum()))


def over_units(values: Sequence[float]) -> Estimated | None:
    """Mean over units drawn from a population of such units: Student's t. None for fewer than two.

    What each unit's own value is uncertain by is in how far they lie apart.
    """
    if len(values) < 2:
        return None
    found = np.asarray(values, dtype=np.float64)
    spread = float(found.std(ddof=1))
    error = 0.0 if spread < 1e-12 else spread / len(found) ** 0.5
    return Estimated(float(found.mean()), error, float(len(found) - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of one family of hypotheses (Holm 1979): the probability of any false rejection is kept."""
    adjusted, largest = [0.0] * len(p), 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = largest
    return adjusted


def units_needed(value: float, spread: float, tests: int = 1) -> int | None:
    """How many units (families) would have told a mean of this size from 0 in 80% of repetitions.

    Args:
        value: the mean.
        spread: standard deviation between units, of those that there are: with few of them, a rough figure.
        tests: how many are tested together, each at .05 over that number: what the first step of Holm asks.

    Returns:
        At least 2; None where the mean is 0 or more than ``MOST_UNITS`` were needed.
    """

    def seen(n: int) -> bool:
        return _visible(float(n - 1), ALPHA / tests) * spread / math.sqrt(n) <= abs(value)

    if value == 0 or not seen(MOST_UNITS):
        return None
    low, high = 1, MOST_UNITS  # not seen with low, seen with high: what is visible falls with every unit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if seen(middle) else (middle, high)
    return high


@lru_cache(maxsize=4096)
def _visible(df: float, alpha: float = ALPHA) -> float:
    """In standard errors: the noncentrality at which a two-sided t test at ``alpha`` rejects with probability .8."""
    limit = float(stdtrit(df, 1 - alpha / 2))
    middles = (np.arange(N_MIDDLES) + 0.5) / N_MIDDLES
    # What the estimated error is in units of the true one, at evenly spaced probabilities; scipy's noncentral t is not
    # a number at 1 degree of freedom.
    errors = np.sqrt(2 * gammaincinv(df / 2, middles) / df)

    def short(shift: float) -> float:
        return float((ndtr(shift - limit * errors) + ndtr(-shift - limit * errors)).mean()) - POWER

    return float(brentq(short, 0.0, 10 * limit, xtol=1e-6))
