"""The gate by hand: what is told of validation, how often, and what it takes to become the incumbent."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.research.gate import Gate
from stages.reward.inference import Estimated, measured
from stages.reward.statements import noise_floor

Z = 1.959964


def a_task(mean: float, half: float = 0.0, floor: float = 0.0, name: str = "t", unseen: float = 0.0) -> Any:
    """What the gate reads of a judged task: draws whose interval is mean +- half, and a noise floor.

    All of the error is that of 1001 evaluated instances, so t is the normal quantile.
    """
    spread = np.linspace(-1, 1, 1001)
    spread *= half / 1.9623 / spread.std(ddof=1)

    def estimate(draws: np.ndarray) -> Estimated:
        return measured(draws, 1001, 1001)

    return SimpleNamespace(
        reward=np.concatenate([[mean], mean + spread])[:, None],
        aa_reward=np.array([floor / Z]),
        task=SimpleNamespace(name=name),
        unseen_share=unseen,
        estimate=estimate,
    )


def test_feedback_is_rounded_to_the_noise_floor():
    # Two tasks of floor 0.1: their mean has 0.1 / sqrt(2), and 0.2 is 2.83 of those.
    found = Gate(9).decide([a_task(0.30, floor=0.1), a_task(0.10, floor=0.1)], None)
    assert found.feedback == pytest.approx(3 * 0.1 / 2**0.5, abs=1e-5)
    assert Gate(9).decide([a_task(0.04, floor=0.1)], None).feedback == 0.0
    # Where there is little noise or none, to hundredths.
    assert Gate(9).decide([a_task(0.12345)], None).feedback == 0.12
    assert Gate(9).decide([a_task(-0.12571, floor=0.009)], None).feedback == -0.13


def test_feedback_is_of_the_sample_itself_and_has_six_digits():
    assert Gate(9).decide([a_task(0.2, half=0.1)], None).feedback == 0.2
    assert Gate(9).decide([a_task(0.3, floor=1 / 3)], None).feedback == 0.333333


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
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=1e-3)


def test_what_a_meter_may_have_missed_makes_nobody_the_incumbent():
    seen, unseen = a_task(0.2, 0.1, 0.1, unseen=0.01), a_task(0.2, 0.1, 0.1, unseen=0.011)
    assert Gate(9).decide([seen], None).accepted
    assert not Gate(9).decide([unseen], None).accepted
    assert not Gate(9).decide([seen, unseen], None).accepted


def test_a_point_at_the_floor_is_not_beyond_it():
    noise = np.array([0.125])
    at, beyond = a_task(noise_floor(noise)), a_task(noise_floor(noise) + 1e-9)
    at.aa_reward = beyond.aa_reward = noise
    assert not Gate(9).decide([at], None).accepted
    assert Gate(9).decide([beyond], None).accepted


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
    noise = np.array([0.125])
    at, beyond = a_task(-noise_floor(noise), name="at"), a_task(-noise_floor(noise) - 1e-9, name="beyond")
    at.aa_reward = beyond.aa_reward = noise
    assert Gate(9).decide([a_task(0.9), at], None).harmed == ""
    assert Gate(9).decide([a_task(0.9), beyond], None).harmed == "beyond"


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
