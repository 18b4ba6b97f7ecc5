"""The gate by hand: what is told of validation, how often, and what it takes to become the incumbent."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.research.gate import Gate


@dataclass
class Told:
    """What the gate reads of a judged task: its draws and its name."""

    reward: Any
    aa_reward: Any
    task: Any = field(default_factory=lambda: SimpleNamespace(name="t"))
    unseen_share: float = 0.0


def a_task(mean: float, half: float = 0.0, floor: float = 0.0, name: str = "t") -> Told:
    """Draws spread evenly over mean +- half, and a noise floor of 0.95 ``floor``."""
    spread = np.linspace(-1, 1, 1001)
    return Told(
        np.concatenate([[mean], mean + half * spread]),
        np.concatenate([[0.0], floor * spread]),
        SimpleNamespace(name=name),
    )


def test_feedback_is_rounded_to_the_noise_floor():
    found = Gate(9).decide([a_task(0.30, floor=0.1), a_task(0.10, floor=0.1)], None)
    assert found.feedback == pytest.approx(round(0.2 / 0.095) * 0.095, abs=1e-3)
    assert found.feedback == pytest.approx(0.19, abs=1e-3)
    assert Gate(9).decide([a_task(0.04, floor=0.1)], None).feedback == 0.0
    # Where there is no noise at all, to thousandths.
    assert Gate(9).decide([a_task(0.12345)], None).feedback == 0.123
    assert Gate(9).decide([a_task(-0.12371)], None).feedback == -0.124


def test_feedback_is_of_the_sample_itself_and_has_six_digits():
    assert Gate(9).decide([a_task(0.2, half=0.1)], None).feedback == 0.2
    level = Told(np.full(101, 0.3), np.full(101, 1 / 3))
    assert Gate(9).decide([level], None).feedback == 0.333333


def test_the_floor_is_that_of_the_mean_over_tasks():
    """Two tasks whose noise cancels have no noise together."""
    one, other = a_task(0.2, floor=0.1), a_task(0.2, floor=0.1)
    other.aa_reward = -other.aa_reward
    assert Gate(9).decide([one, other], None).feedback == 0.2


@pytest.mark.parametrize(
    ("mean", "half", "floor", "accepted"),
    [
        (0.2, 0.1, 0.1, True),
        (0.2, 0.3, 0.1, False),  # the interval holds 0
        (0.05, 0.01, 0.1, False),  # below the floor
        (0.0, 0.0, 0.0, False),  # nothing is not better than nothing
        (-0.2, 0.1, 0.0, False),
    ],
)
def test_the_first_incumbent_beats_the_baseline(mean, half, floor, accepted):
    found = Gate(9).decide([a_task(mean, half, floor)], None)
    assert found.accepted is accepted
    assert found.difference == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx((mean - 0.95 * half, mean + 0.95 * half), abs=1e-3)


def test_what_a_meter_may_have_missed_makes_nobody_the_incumbent():
    seen, unseen = a_task(0.2, 0.1, 0.1), a_task(0.2, 0.1, 0.1)
    seen.unseen_share, unseen.unseen_share = 0.01, 0.011
    assert Gate(9).decide([seen], None).accepted
    assert not Gate(9).decide([unseen], None).accepted
    assert not Gate(9).decide([seen, unseen], None).accepted


def test_a_point_at_the_floor_is_not_beyond_it():
    draws = np.concatenate([[0.25], np.full(100, 0.25)])
    assert not Gate(9).decide([Told(draws, np.full(101, 0.25))], None).accepted


def test_an_interval_that_touches_nothing_is_not_better():
    draws = np.concatenate([[0.25], np.zeros(100)])
    assert not Gate(9).decide([Told(draws, np.zeros(101))], None).accepted


def test_a_challenger_is_compared_draw_by_draw():
    """Both are spread widely, and one is a tenth above the other in every draw."""
    incumbent, better = a_task(0.2, half=1.0, floor=0.05), a_task(0.3, half=1.0, floor=0.05)
    found = Gate(9).decide([better], [incumbent])
    assert found.accepted and (found.difference, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))
    back = Gate(9).decide([incumbent], [better])
    assert not back.accepted and back.difference == pytest.approx(-0.1)
    assert not Gate(9).decide([incumbent], [incumbent]).accepted


def test_a_good_mean_does_not_buy_off_a_task_that_is_harmed():
    good, poor = a_task(0.9, 0.01, 0.05, "good"), a_task(-0.2, 0.01, 0.05, "poor")
    found = Gate(9).decide([good, poor], None)
    assert found.harmed == "poor" and not found.accepted and found.low > 0
    before = [a_task(0.1, 0.01, 0.05, "good"), a_task(-0.2, 0.01, 0.05, "poor")]
    again = Gate(9).decide([good, poor], before)
    assert again.harmed == "" and again.accepted, "it is as poor there as the incumbent"
    within = a_task(-0.03, 0.0, 0.05, "poor")
    assert Gate(9).decide([good, within], None).harmed == ""
    wide = a_task(-0.2, 0.3, 0.05, "poor")
    assert Gate(9).decide([good, wide], None).harmed == "", "its interval reaches up to the baseline"


def test_harm_at_the_floor_is_not_beyond_it():
    level = Told(np.full(1002, -0.25), np.full(1002, 0.25), SimpleNamespace(name="level"))
    assert Gate(9).decide([a_task(0.9), level], None).harmed == ""


def test_validation_is_asked_a_limited_number_of_times():
    gate = Gate(2)
    assert gate.used == 0
    gate.decide([a_task(0.2)], None)
    gate.decide([a_task(0.2)], None)
    assert gate.used == 2
    with pytest.raises(ValueError, match="2 are allowed"):
        gate.decide([a_task(0.2)], None)
    assert gate.used == 2
    with pytest.raises(ValueError, match="asked 3 times"):
        Gate(3, used=3).decide([a_task(0.2)], None)
    assert Gate(4, used=3).decide([a_task(0.2)], None).feedback == 0.2
