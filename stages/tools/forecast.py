"""When can a machine do open-ended interpretability research by itself? An extrapolation from task horizons.

The model is that of Pfau and Irving 2025 ("Prospects for Alignment Automation: Interpretability Case Study"), with two
inputs more. A task horizon is the length, in hours of a human expert, of tasks that a system does half of the time
(Kwa et al. 2025, arXiv:2503.14499). It doubles at a constant pace:

    needed = hours * serial share * margin
    date   = as_of + doubling_days * max(0, log2(needed / horizon))

The serial share is the part of a project that must be one chain of work; the rest may be divided among copies, so it
asks for no longer horizon. By Amdahl's law the same share bounds what copies gain: 1 / share.

Nothing here is measured by this project, and the model knows of no ceiling, no shortage of compute and no speed-up by
the machines themselves.
"""

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy.special import ndtri
from scipy.stats import qmc

from stages.base import paths
from stages.base.params import Params, load
from stages.errors import UserError

__all__ = ["Forecast", "Inputs", "Range", "Swing", "forecast", "inputs_of"]

POWER = 15
"""2 to this power points of a scrambled Sobol sequence: quantiles of dates to about a day."""
LEVELS = (0.1, 0.17, 0.5, 0.83, 0.9)
FloatArray = npt.NDArray[np.float64]


class Range(Params):
    """What is believed of a positive number: it lies between two ends with a given probability."""

    low: float = Field(gt=0, allow_inf_nan=False)
    high: float = Field(gt=0, allow_inf_nan=False)
    within: float = Field(default=0.8, gt=0, le=1)
    """Below 1: log-normal, as much of it below ``low`` as above ``high``. 1: log-uniform, nothing outside."""
    source: str = ""
    """Who says so, and when."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low = {self.low:g} is above high = {self.high:g}; exchange them")
        return self

    def quantile(self, u: FloatArray | float) -> FloatArray:
        """Values below which a share ``u`` in (0, 1) of the belief lies."""
        middle, half = np.log(self.low * self.high) / 2, np.log(self.high / self.low) / 2
        at = 2 * np.asarray(u) - 1 if self.within == 1 else ndtri(u) / ndtri((1 + self.within) / 2)
        return np.asarray(np.exp(middle + half * at), dtype=np.float64)


class Inputs(Params):
    """Five beliefs and a date."""

    hours: Range
    """Hours of an expert's work that are one open-ended project."""
    serial_share: Range
    """Part of it that must be one chain of work: at most 1."""
    margin: Range
    """Times that a horizon must exceed the work. 1: succeeds half of the time; about 5: four times in five."""
    horizon: Range
    """Hours that the best system does half of the time, at ``as_of``."""
    as_of: date
    doubling_days: Range
    """Days in which horizons double."""
    not_before: date | None = None
    """Given that it had not happened by this day; null: nothing is given."""

    @model_validator(mode="after")
    def _share(self) -> Self:
        share = self.serial_share
        if share.high > 1 or (share.within < 1 and share.low < share.high):
            raise ValueError(
                f"serial_share = {share.low:g} to {share.high:g} within {share.within:g} reaches beyond 1, and a share"
                " cannot: write `high` of at most 1 and `within: 1`"
            )
        return self

    @property
    def ranges(self) -> dict[str, Range]:
        return {name: value for name in type(self).model_fields if isinstance(value := getattr(self, name), Range)}


class Swing(NamedTuple):
    """What one input does to the date, the others at their medians."""

    name: str
    low: float
    """Its 10% quantile."""
    high: float
    """Its 90% quantile."""
    at_low: date
    """The date with the first."""
    at_high: date
    """The date with the second."""

    @property
    def days(self) -> int:
        return abs((self.at_high - self.at_low).days)


class Forecast(NamedTuple):
    median: date
    within_80: tuple[date, date]
    """10% of the belief is earlier, 10% later."""
    within_66: tuple[date, date]
    reached: float
    """Share of the belief in which the horizon sufficed at ``as_of`` already."""
    excluded: float
    """Share that ``not_before`` rules out."""
    swings: tuple[Swing, ...]
    """The largest first."""
    years: dict[int, float]
    """Share of each calendar year; what lies after the last, with it."""
    speed_up: float
    """The most that copies beside one another gain: one over the median serial share."""


def inputs_of(given: str) -> Inputs:
    """Inputs by name of a file in params/forecasts, or by path.

    Raises:
        UserError: no such inputs, or a value is out of range.
    """
    own = given.endswith((".yaml", ".yml"))
    path = Path(given) if own else paths.params_file(f"forecasts/{given}")
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in paths.params_file("forecasts/any").parent.glob("*.yaml")))
        raise UserError(f"there are no inputs {given!r}: use {known}, or the path of a copy of one of them (.yaml)")
    return load("forecast", Inputs, path)


def forecast(inputs: Inputs) -> Forecast:
    """The distribution of the date; the same inputs give the same dates.

    Raises:
        UserError: ``not_before`` rules out everything, or a date lies beyond the year 9999.
    """
    ranges = inputs.ranges
    points = qmc.Sobol(len(ranges), seed=0).random_base2(POWER)
    values = {name: one.quantile(points[:, i]) for i, (name, one) in enumerate(ranges.items())}
    days = days_of(values)
    reached = float((days == 0).mean())
    kept = days if inputs.not_before is None else days[days >= (inputs.not_before - inputs.as_of).days]
    if not len(kept):
        raise UserError(f"not_before = {inputs.not_before} rules out all of it: the ranges are too narrow; widen them")
    low, low_66, median, high_66, high = (_day(inputs.as_of, one) for one in np.quantile(kept, LEVELS))
    return Forecast(
        median,
        (low, high),
        (low_66, high_66),
        reached,
        1 - len(kept) / len(days),
        _swings(inputs),
        _years(inputs.as_of, kept, high.year),
        1 / float(inputs.serial_share.quantile(0.5)),
    )


def days_of(values: Mapping[str, FloatArray]) -> FloatArray:
    """Days after ``as_of``: the model."""
    needed = values["hours"] * values["serial_share"] * values["margin"]
    return values["doubling_days"] * np.maximum(0.0, np.log2(needed / values["horizon"]))


def _swings(inputs: Inputs) -> tuple[Swing, ...]:
    ranges = inputs.ranges
    middle = {name: one.quantile(0.5) for name, one in ranges.items()}

    def at(name: str, value: FloatArray) -> date:
        return _day(inputs.as_of, float(days_of({**middle, name: value})))

    ends = {name: (one.quantile(0.1), one.quantile(0.9)) for name, one in ranges.items()}
    found = [Swing(name, float(a), float(b), at(name, a), at(name, b)) for name, (a, b) in ends.items()]
    return tuple(sorted(found, key=lambda one: (-one.days, one.name)))


def _years(start: date, days: FloatArray, last: int) -> dict[int, float]:
    bounds = [(date(year + 1, 1, 1) - start).days for year in range(start.year, last)]
    at = np.searchsorted(bounds, days, side="right")
    return {start.year + i: float((at == i).mean()) for i in range(len(bounds) + 1)}


def _day(start: date, days: float) -> date:
    try:
        return start + timedelta(days=round(float(days)))
    except OverflowError as error:
        raise UserError(
            f"a date {days:.0f} days after {start} is beyond the calendar: choose a smaller doubling_days or hours"
        ) from error
