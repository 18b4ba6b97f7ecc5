"""An interval of 95% holds the truth in about 95% of repetitions: published behaviour of the percentile bootstrap."""

import numpy as np
import pytest

from stages.base.intervals import percentile_interval


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform"])
def test_percentile_intervals_cover_the_mean(draw):
    """Efron and Tibshirani 1993, An Introduction to the Bootstrap, ch. 13: close to nominal at n = 100, a little below
    for skewed data."""
    rng, n, repetitions, resamples = np.random.default_rng(0), 100, 600, 400
    truth = {"normal": 0.0, "exponential": 1.0, "uniform": 0.5}[draw]
    held = 0
    for _ in range(repetitions):
        sample = getattr(rng, draw)(size=n)
        means = sample[rng.integers(n, size=(resamples, n))].mean(1)
        low, high = percentile_interval(means)
        held += low <= truth <= high
    # Three standard errors of a share of .95 over 600 repetitions are .027.
    assert 0.915 <= held / repetitions <= 0.977
