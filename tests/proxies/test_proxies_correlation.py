"""Rank correlations against scipy, and on planted relations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import f_oneway, pearsonr, rankdata, spearmanr, ttest_1samp

from stages.contracts.record import Estimate
from stages.proxies.correlation import correlate, icc, over_targets, partial, spearman

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


def grouped(between: float, seed: int, n_groups: int = 12, size: int = 3):
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), size)
    return between * rng.normal(size=n_groups)[group] + rng.normal(size=len(group)), [str(one) for one in group]


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 3), st.integers(0, 999))
def test_reliability_is_the_f_ratio_of_the_ranks_turned_into_a_share(between, seed):
    values, groups = grouped(between, seed)
    ranked = rankdata(values)
    ratio = f_oneway(*(ranked[np.array(groups) == one] for one in sorted(set(groups)))).statistic
    found = icc(values, groups, ["one"] * len(values))
    assert found.value == pytest.approx((ratio - 1) / (ratio + 3 - 1), abs=1e-5)
    assert found.low <= found.value <= found.high


def test_reliability_is_found_and_its_interval_holds_it():
    """Members of a group correlate by 4 / 5, and their ranks by 6 / pi asin(2 / 5): Pearson's formula for Spearman's
    correlation of normal values."""
    true = 6 / math.pi * math.asin(0.4)
    assert icc(*grouped(2.0, 0, 4000), ["one"] * 12000).value == pytest.approx(true, abs=0.01)
    found = [icc(*grouped(2.0, seed, 20), ["one"] * 60) for seed in range(40)]
    assert sum(one.low <= true <= one.high for one in found) >= 34
    nothing = [icc(*grouped(0.0, seed, 20), ["one"] * 60) for seed in range(40)]
    assert abs(np.mean([one.value for one in nothing])) < 0.05
    assert sum(one.low <= 0 <= one.high for one in nothing) >= 34


def test_reliability_of_targets_together_does_not_come_from_their_levels():
    (a, groups), (b, _) = grouped(0.0, 0), grouped(0.0, 1)
    found = icc([*a, *(b + 100)], [*groups, *groups], ["a"] * 36 + ["b"] * 36)
    assert abs(found.value) < 0.35
    same = icc([*a, *a], [*groups, *groups], ["a"] * 36 + ["b"] * 36)
    assert same.value == pytest.approx(icc(a, groups, ["a"] * 36).value, abs=0.02)


def test_reliability_without_replicates_or_without_variance_is_not_defined():
    assert icc([1.0, 2.0, 3.0], ["a", "b", "c"], ["t"] * 3) == Estimate(value=None)
    assert icc([1.0] * 4, ["a", "a", "b", "b"], ["t"] * 4) == Estimate(value=None)
    assert icc([1.0, 1.0, 2.0, 2.0], ["a", "a", "b", "b"], ["t"] * 4).value == 1.0


def test_targets_are_the_unit_of_the_mean_over_targets():
    found, z = over_targets([0.1, math.nan, 0.4, 0.25])
    test = ttest_1samp(np.arctanh([0.1, 0.4, 0.25]), 0.0)
    ends = test.confidence_interval(0.95)
    assert found.value == pytest.approx(math.tanh(np.arctanh([0.1, 0.4, 0.25]).mean()), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((math.tanh(ends.low), math.tanh(ends.high)), abs=1e-6)
    assert z is not None and z.p == pytest.approx(test.pvalue)
    assert over_targets([0.3, math.nan])[1] is None and over_targets([1.0, 1.0])[0].value < 1.0
