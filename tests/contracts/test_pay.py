"""R_t = gain + lambda * FLOP reduction."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.pay import FORMS, flop_reduction, reward

costs = st.floats(0, 1e15)


budgets = st.floats(1e-3, 1e15)


@given(costs, costs, budgets, st.sampled_from(FORMS))
def test_reduction_is_bounded_and_has_the_right_sign(assisted, baseline, budget, form):
    value = flop_reduction(assisted, baseline, budget, form)
    assert -1 <= value <= 1
    if assisted > baseline:
        assert value <= 0
    if 0 < baseline == assisted:
        assert value == 0


@given(costs, costs, costs, budgets, st.sampled_from(FORMS))
def test_cheaper_is_never_worse(one, other, baseline, budget, form):
    low, high = sorted((one, other))
    assert flop_reduction(low, baseline, budget, form) >= flop_reduction(high, baseline, budget, form)


@pytest.mark.parametrize(
    ("assisted", "baseline", "budget", "form", "expected"),
    [
        (50, 100, 100, "linear", 0.5),
        (150, 100, 400, "linear", -0.125),
        (1000, 100, 100, "linear", -1),
        (100, 6400, 6400, "log", 1),
        (200, 100, 400, "log", -1 / 6),
        (50, 100, 100, "polynomial", 0.25),
        (300, 100, 400, "polynomial", -0.25),
        (0, 0, 1, "linear", 0),
        (5, 0, 10, "log", -1),
        (0, 5, 10, "log", 1),
    ],
)
def test_reduction_by_hand(assisted, baseline, budget, form, expected):
    assert flop_reduction(assisted, baseline, budget, form) == pytest.approx(expected)


def test_impossible_costs_and_unknown_forms_are_refused():
    with pytest.raises(ValueError, match="never negative"):
        flop_reduction(-1, 5, 5)
    with pytest.raises(ValueError, match="must be positive"):
        flop_reduction(1, 5, 0)
    with pytest.raises(ValueError, match="linear, log, polynomial"):
        flop_reduction(1, 5, 5, "cubic")


def test_savings_do_not_pay_for_worse_answers():
    gain, saved = np.array([0.0, -0.01, -0.05]), np.array([1.0, 1.0, 1.0])
    assert reward(gain, saved, weight=0.1, margin=0.02) == pytest.approx([0.1, 0.09, -0.05])


def test_extra_cost_counts_whatever_the_gain():
    assert reward(np.array([-0.5, 0.5]), np.array([-1.0, -1.0]), 0.1, 0.02) == pytest.approx([-0.6, 0.4])
