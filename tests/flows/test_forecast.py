"""`lensmith forecast` against closed forms, a quadrature, and the interval that was published."""

import json
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from typer.testing import CliRunner

from flows.command import app
from stages.errors import UserError
from stages.tools.forecast import Inputs, Range, forecast, inputs_of

REPOSITORY = Path(__file__).resolve().parents[2]
START = date(2025, 2, 24)
ONE = Range(low=1, high=1)
Z80 = stats.norm.ppf(0.9)


@pytest.fixture(autouse=True)
def inputs_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(REPOSITORY))


def inputs(**changed: object) -> Inputs:
    given = {"hours": ONE, "serial_share": ONE, "margin": ONE, "horizon": ONE, "doubling_days": ONE}
    return Inputs.model_validate({**given, "as_of": START, **changed})


def day(days: float) -> date:
    return START + timedelta(days=round(days))


def near(found: date, wanted: date, days: int = 2) -> bool:
    return abs((found - wanted).days) <= days


def test_nothing_uncertain_is_arithmetic() -> None:
    hundred, half = Range(low=100, high=100), Range(low=0.5, high=0.5)
    found = forecast(
        inputs(hours=Range(low=256, high=256), serial_share=half, margin=Range(low=2, high=2), doubling_days=hundred)
    )
    # 256 hours, half of them serial, twice over: 256 = 2^8 times the horizon of one hour.
    assert found.median == day(800) and set(found.within_80) == {day(800)}
    assert found.speed_up == 2 and found.reached == 0


def test_one_normal_belief_has_the_quantiles_of_a_log_normal() -> None:
    found = forecast(inputs(hours=Range(low=40, high=1000), doubling_days=Range(low=100, high=100)))
    assert near(found.median, day(100 * np.log2(200)))
    assert near(found.within_80[0], day(100 * np.log2(40))) and near(found.within_80[1], day(100 * np.log2(1000)))
    middle, sd = np.log2(200), np.log2(5) / Z80
    assert near(found.within_66[0], day(100 * stats.norm.ppf(0.17, middle, sd)))


def test_the_log_uniform_keeps_to_its_ends() -> None:
    one = Range(low=40, high=1000, within=1)
    assert np.allclose(one.quantile(np.array([0.0, 0.25, 1.0])), [40, 40 * 25**0.25, 1000])
    found = forecast(inputs(hours=one, doubling_days=Range(low=100, high=100)))
    wanted = stats.loguniform(40, 1000).ppf([0.1, 0.9])
    assert all(near(a, day(100 * np.log2(b))) for a, b in zip(found.within_80, wanted, strict=True))


def test_two_beliefs_agree_with_a_quadrature() -> None:
    found = forecast(inputs(hours=Range(low=40, high=1000), doubling_days=Range(low=100, high=250)))
    in_log = stats.norm(np.log(np.sqrt(25000)), np.log(2.5) / 2 / Z80)
    doublings = stats.norm(np.log2(200), np.log2(5) / Z80)

    def below(days: float) -> float:
        return integrate.quad(lambda x: in_log.pdf(x) * doublings.cdf(days / np.exp(x)), 2, 9, limit=200)[0]

    dates = (found.within_80[0], found.within_66[0], found.median, found.within_66[1], found.within_80[1])
    for at, level in zip(dates, (0.1, 0.17, 0.5, 0.83, 0.9), strict=True):
        assert abs(below((at - START).days) - level) < 0.002


def test_what_suffices_already_is_counted_and_what_is_ruled_out_is_left_out() -> None:
    half = inputs(hours=Range(low=0.5, high=2), doubling_days=Range(low=100, high=100))
    found = forecast(half)
    assert found.reached == pytest.approx(0.5, abs=0.01) and found.median <= day(1)
    later = forecast(half.model_copy(update={"not_before": day(50)}))
    doublings = stats.norm(0, 1 / Z80)
    gone = doublings.cdf(0.5)
    assert later.excluded == pytest.approx(gone, abs=0.01)
    assert near(later.median, day(100 * doublings.ppf(gone + (1 - gone) / 2)))
    with pytest.raises(UserError, match="rules out all"):
        forecast(inputs(not_before=day(1)))


@settings(max_examples=25, deadline=None)
@given(st.floats(1, 1e4), st.floats(1, 50), st.floats(0.01, 1), st.floats(10, 500))
def test_more_work_is_later_and_a_smaller_share_is_sooner(hours: float, wide: float, share: float, days: float) -> None:
    doubling = Range(low=days, high=2 * days)
    ranges = {"hours": Range(low=hours, high=hours * wide), "doubling_days": doubling}
    found, more = forecast(inputs(**ranges)), forecast(inputs(**ranges, margin=Range(low=2, high=2)))
    less = forecast(inputs(**ranges, serial_share=Range(low=share, high=1, within=1)))
    assert less.median <= found.median <= more.median
    assert found.within_80[0] <= found.within_66[0] <= found.median <= found.within_66[1] <= found.within_80[1]
    assert sum(found.years.values()) == pytest.approx(1)


def test_the_published_interval_comes_out_of_its_inputs() -> None:
    """Pfau and Irving 2025: 2027 to 2030, with 66%."""
    low, high = forecast(inputs_of("published")).within_66
    assert low.year == 2027 and date(2029, 7, 1) < high < date(2030, 12, 31)


def test_what_one_input_does() -> None:
    given = inputs(hours=Range(low=40, high=1000), doubling_days=Range(low=100, high=250))
    swings = {one.name: one for one in forecast(given).swings}
    middle = np.sqrt(100 * 250)
    assert near(swings["hours"].at_low, day(middle * np.log2(40)), 1)
    assert near(swings["doubling_days"].at_high, day(250 * np.log2(200)), 1)
    assert swings["margin"].days == 0
    assert [one.days for one in forecast(given).swings] == sorted((one.days for one in swings.values()), reverse=True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("low: 40\n  high: 10", "low = 40 is above high = 10; exchange them"),
        ("low: 0\n  high: 10", "hours.low = 0"),
        ("low: 4\n  high: ten", "write a number"),
        ("low: 4\n  high: 10\n  within: 80", "less than or equal to 1"),
    ],
)
def test_own_inputs_and_what_is_wrong_with_them(tmp_path: Path, text: str, said: str) -> None:
    own, known = tmp_path / "own.yaml", Path("params/forecasts/present.yaml").read_text(encoding="utf-8")
    head, _, rest = known.partition("hours:\n")
    own.write_text(f"{head}hours:\n  {text}\nserial_share:{rest.partition('serial_share:')[2]}", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        inputs_of(str(own))


def test_a_share_beyond_one_and_unknown_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="a share cannot"):
        inputs(serial_share=Range(low=0.5, high=0.9))
    with pytest.raises(UserError, match="use present, published"):
        inputs_of("furture")
    with pytest.raises(UserError, match="beyond the calendar"):
        forecast(inputs(hours=Range(low=1e9, high=1e9), doubling_days=Range(low=1e6, high=1e6)))


def test_the_command_prints_the_same_twice() -> None:
    first, second = (CliRunner().invoke(app, ["forecast", "published"]) for _ in range(2))
    assert first.exit_code == 0 and first.output == second.output
    assert "66% interval 2027-" in first.output and "2030+" in first.output
    told = json.loads(CliRunner().invoke(app, ["forecast", "--json"]).output)
    assert told["median"] == forecast(inputs_of("present")).median.isoformat()
