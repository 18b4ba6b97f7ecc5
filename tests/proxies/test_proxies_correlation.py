"""Rank correlations against scipy, and on planted relations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr

from stages.contracts.record import Estimate
from stages.proxies.correlation import correlate, partial, spearman

numbers = st.lists(st.integers(-5, 5), min_size=4, max_size=30)


@settings(max_examples=60, deadline=None)
@given(numbers, st.randoms(use_true_random=False))
def test_spearman_is_scipys_with_ties(values, random):
    other = [random.randint(-3, 3) for _ in values]
    found = spearman(np.array(values, float), np.array(other, float))
    if len(set(values)) == 1 or len(set(other)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(values, other).statistic, abs=1e-12)


def test_partial_is_the_formula_of_three_correlations():
    rng = np.random.default_rng(0)
    z = rng.normal(size=80)
    x, y = z + rng.normal(size=80), z + rng.normal(size=80)
    a, b, c = (pearsonr(rankdata(p), rankdata(q)).statistic for p, q in ((x, y), (x, z), (y, z)))
    assert partial(x, y, z) == pytest.approx((a - b * c) / math.sqrt((1 - b**2) * (1 - c**2)), abs=1e-12)
    assert math.isnan(partial(2 * z + 1, y, z))  # nothing is left of a monotone function of what is held fixed


def test_levels_of_targets_do_not_pass_for_a_correlation():
    rng = np.random.default_rng(1)
    at = np.repeat([0, 1], 40)
    x, y = rng.normal(size=80) + 10 * at, rng.normal(size=80) + 10 * at
    assert spearman(x, y) > 0.7
    assert abs(spearman(x, y, at)) < 0.3


def planted(effect: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(16), 3)
    quality = rng.normal(size=16)[group]
    l0 = rng.normal(size=48)
    x = quality + 0.2 * rng.normal(size=48)
    y = effect * quality + 0.5 * rng.normal(size=16)[group] + 0.1 * rng.normal(size=48)
    return correlate(x, y, {"l0": l0}, group, ["one"] * 48, 200, np.random.default_rng(2))


def test_a_planted_relation_is_found_and_lies_beyond_its_null():
    found = planted(2.0)["spearman"]
    assert found.low > found.null > 0.2 and found.low <= found.value <= found.high


def test_no_relation_stays_within_its_null_in_most_draws():
    beyond = [abs(of.value) > of.null for seed in range(8) if (of := planted(0.0, seed)["spearman"])]
    assert sum(beyond) <= 2


def test_what_is_held_fixed_takes_its_share():
    rng = np.random.default_rng(3)
    l0 = rng.normal(size=60)
    x, y = l0 + 0.05 * rng.normal(size=60), l0 + 0.05 * rng.normal(size=60)
    found = correlate(x, y, {"l0": l0}, range(60), ["a"] * 30 + ["b"] * 30, 200, np.random.default_rng(0))
    assert found["spearman"].value > 0.9 > 0.5 > abs(found["partial_l0"].value)


def test_a_metric_that_never_varies_has_no_correlation():
    found = correlate([1.0] * 8, list(range(8)), {}, range(8), ["a"] * 8, 100, np.random.default_rng(0))
    assert found["spearman"] == Estimate(value=None)


def test_the_same_inputs_give_the_same_numbers():
    assert planted(1.0) == planted(1.0)
