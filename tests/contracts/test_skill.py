"""The score of every task, against numbers worked out by hand; what an instance keeps when some are chosen."""

import numpy as np
import pytest
import torch

from stages.contracts.task import Instances, TaskFamily, Truth, skill
from stages.tasks.families import family

TRUTH = np.array([[0.0, 2.0], [4.0, 6.0]])  # mean 3, SST 9 + 1 + 1 + 9 = 20


def test_explained_variance_by_hand():
    assert skill(TRUTH, TRUTH).tolist() == [1.0]
    assert skill(TRUTH + 1.0, TRUTH)[0] == pytest.approx(1 - 4 / 20)
    assert skill(np.full((2, 2), 3.0), TRUTH)[0] == pytest.approx(0.0)
    assert skill(TRUTH + np.array([[2.0, 0.0], [0.0, -1.0]]), TRUTH)[0] == pytest.approx(1 - 5 / 20)
    assert skill(TRUTH + 10.0, TRUTH)[0] == 0.0, "never below 0"


def test_weights_are_counts_of_instances():
    """Weights (3, 1): truth 0 2 0 2 0 2 4 6, mean 2, SST 4 * 3 + 0 * 3 + 4 + 16 = 32."""
    guess = TRUTH + np.array([[1.0, 0.0], [0.0, 2.0]])
    found = skill(guess, TRUTH, np.array([[1.0, 1.0], [3.0, 1.0], [0.0, 2.0]]))
    # (0, 2): truth 4 6 4 6, mean 5, SST 4; error 2 * 4 = 8
    assert found == pytest.approx([1 - 5 / 20, 1 - 7 / 32, 0.0])
    assert skill(guess, TRUTH, np.array([[0.0, 4.0]]))[0] == 0.0


def test_weights_may_be_shares():
    guess, weights = TRUTH + np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[3.0, 1.0]])
    assert skill(guess, TRUTH, weights * 0.01) == pytest.approx(skill(guess, TRUTH, weights))


def test_a_truth_that_does_not_vary_scores_nothing():
    flat = np.full((3, 2), 0.7)
    assert skill(flat, flat)[0] == 0.0
    assert skill(flat, flat + np.array([[1e-8, 0], [0, 0], [0, 0]]))[0] == 0.0
    varied = np.concatenate([flat[:2], [[0.7, 0.9]]])
    assert skill(varied, varied, np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])).tolist() == [0, 1, 0]
    # A truth of small numbers varies as well as one of large ones: a variance of 1e-10 an item is seen.
    small = TRUTH * 1e-5
    assert skill(small, small)[0] == 1.0
    assert skill(small * (1 + 1e-3), small)[0] == pytest.approx(1 - 1e-6 * (small**2).sum() / 20e-10)


def test_the_variance_that_counts_is_per_item():
    """1e-12 an item is the limit, however many there are."""
    wave = np.tile([1.0, -1.0], 500)[:, None]
    assert skill(wave * 0.9e-6, wave * 0.9e-6)[0] == 0.0
    assert skill(wave * 1.1e-6, wave * 1.1e-6)[0] == 1.0
    two = wave[:2] * 1.2e-6  # at weights that sum to 1 the limit is 1e-12, and the sum of squares 1.44e-12
    assert skill(two, two, np.array([[0.5, 0.5]]))[0] == 1.0
    assert skill(two, two, np.array([[0.3, 0.3]]))[0] == 0.0


def test_predictions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="must be equal"):
        skill(TRUTH[:, :1], TRUTH)


def test_a_family_scores_by_skill_unless_it_says_otherwise():
    weights = np.array([[3.0, 1.0]])
    made = family("noise_flip")
    assert made.score(TRUTH + 1, TRUTH, weights) == pytest.approx(skill(TRUTH + 1, TRUTH, weights))
    assert made.name == "noise_flip" and TaskFamily.cost_factor == 1.0 and TaskFamily.version == 1


def test_arrays_are_met_in_one_order_whatever_order_they_came_in():
    one, two = torch.arange(2), torch.ones(2)
    made = Instances({"b": one, "a": two}, 2, {"w": one, "v": two}, {"q": one, "p": two})
    assert [list(held) for held in (made.arrays, made.variants, made.planted)] == [["a", "b"], ["v", "w"], ["p", "q"]]
    assert made.arrays["b"] is one and made.variants["v"] is two


def test_chosen_instances_keep_what_is_theirs_and_what_is_shared():
    whole = Instances(
        {"a": torch.arange(4), "shared_b": torch.arange(7)}, 4, {"w": torch.ones(2, 3)}, {"p": torch.arange(4) * 10}
    )
    some = whole.select(torch.tensor([3, 1]))
    assert some.n == 2 and some.arrays["a"].tolist() == [3, 1] and some.arrays["shared_b"].tolist() == [*range(7)]
    assert some.planted["p"].tolist() == [30, 10] and torch.equal(some.variants["w"], torch.ones(2, 3))
    public = whole.public()
    assert (public.n, dict(public.planted)) == (4, {}) and public.arrays is whole.arrays
    assert public.variants is whole.variants
    assert Truth(torch.zeros(1, 1)).groups == {}
