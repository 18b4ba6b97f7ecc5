"""The percentile step that every bootstrap here shares."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from stages.base.intervals import Interval, percentile_interval, t_interval


def test_it_leaves_two_and_a_half_percent_on_each_side_whatever_the_order() -> None:
    draws = np.random.default_rng(0).permutation(1001.0 * np.linspace(0, 1, 1001) / 1001)
    assert percentile_interval(draws) == (pytest.approx(0.025), pytest.approx(0.975))
    assert percentile_interval(torch.from_numpy(draws)) == percentile_interval(draws)


def test_draws_that_are_not_finite_are_left_out_and_without_any_there_is_none() -> None:
    assert percentile_interval([1.0, math.nan, 3.0, math.inf]) == percentile_interval([1.0, 3.0])
    assert all(math.isnan(end) for end in percentile_interval([math.nan]))


def test_it_can_be_widened_to_hold_its_point() -> None:
    assert Interval(0.1, 0.2).holding(0.0) == (0.0, 0.2) and Interval(0.1, 0.2).holding(0.3) == (0.1, 0.3)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_a_t_interval_is_scipys(n: int) -> None:
    values = np.random.default_rng(n).normal(2.0, 3.0, n)
    theirs = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert t_interval(values.tolist()) == pytest.approx((theirs.low, theirs.high))
    assert t_interval([0.1] * n) == pytest.approx((0.1, 0.1))
