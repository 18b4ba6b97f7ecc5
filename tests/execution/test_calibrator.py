"""The closed forms of the calibrator against scikit-learn's."""

import numpy as np
import pytest
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stages.execution.calibrator import ALPHAS, Calibrator, Ridge, Trees


@pytest.mark.parametrize(("rows", "features", "noise"), [(40, 3, 0.1), (80, 24, 1.0), (53, 24, 0.01), (30, 60, 2.0)])
def test_ridge_is_that_of_scikit_learn(rows: int, features: int, noise: float) -> None:
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(rows, features)) * rng.lognormal(size=features) + rng.normal(size=features)
    y = x[:, 0] - 2 * x[:, -1] + noise * rng.normal(size=rows)
    new = rng.normal(size=(50, features))
    theirs = make_pipeline(StandardScaler(), RidgeCV(ALPHAS)).fit(x, y).predict(new)
    assert Ridge().fit(x, y).predict(new) == pytest.approx(theirs, rel=1e-6, abs=1e-6)


def test_the_features_most_correlated_with_the_truth_are_kept() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 1, 30)), rng.normal(size=(60, 1))
    x[:, 0, 7] = 3.0  # a constant says nothing
    x[:, 0, 4] += 2 * y[:, 0]
    model = Calibrator(5).fit(x, y)
    alive = [k for k in range(30) if k != 7]
    theirs = SelectKBest(f_regression, k=5).fit(x[:, 0, alive], y[:, 0]).get_support(indices=True)
    assert list(model._keep) == [alive[k] for k in theirs] and 4 in model._keep


def test_trees_are_the_same_twice_and_see_what_is_not_linear() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5))
    y = np.sign(x[:, 0] * x[:, 1])
    first, second = (Trees().fit(x[:300], y[:300]).predict(x[300:]) for _ in range(2))
    assert np.array_equal(first, second)
    assert 1 - ((first - y[300:]) ** 2).mean() / y[300:].var() > 0.5


def test_boosted_trees_by_hand() -> None:
    """Two levels of ten rows each: every tree takes 0.15 of what is left, times 10 / (10 + 1) for the penalty of 1."""
    x = np.repeat([0.0, 1.0], 10)[:, None]
    y = np.repeat([2.0, 6.0], 10)
    left = (1 - 0.15 * 10 / 11) ** 40
    assert Trees().fit(x, y).predict(np.array([[0.0], [1.0]])) == pytest.approx(
        [4 - 2 * (1 - left), 4 + 2 * (1 - left)]
    )


def test_trees_have_six_leaves_of_five_rows_or_a_hundredth() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 3))
    model = Trees().fit(x, x[:, 0] * x[:, 1])._model
    told = model.dump_model()["tree_info"]
    assert model.num_trees() == 40 and max(tree["num_leaves"] for tree in told) == 6

    def counts(node: dict) -> list[int]:
        return (
            [node["leaf_count"]] if "leaf_count" in node else counts(node["left_child"]) + counts(node["right_child"])
        )

    least = min(min(counts(tree["tree_structure"])) for tree in told)
    assert least >= 10, "a hundredth of a thousand rows"
    few = Trees().fit(np.repeat([0.0, 1.0], [4, 16])[:, None], np.repeat([0.0, 1.0], [4, 16]))
    assert np.ptp(few.predict(np.array([[0.0], [1.0]]))) == 0.0, "four rows are too few for a leaf"
    five = Trees().fit(np.repeat([0.0, 1.0], [5, 15])[:, None], np.repeat([0.0, 1.0], [5, 15]))
    assert np.ptp(five.predict(np.array([[0.0], [1.0]]))) > 0.5


def test_trees_tell_apart_sixty_three_values_and_values_that_are_there_once() -> None:
    """A step between any two neighbours is seen where each has a bin, and one is not where there is a value more."""

    def unseen(n: int, times: int, edge: int = 0) -> int:
        x = np.repeat(np.arange(float(n)), times)
        steps = [
            Trees().fit(x[:, None], 1.0 * (x > k)).predict(np.array([[k], [k + 1.0]]))
            for k in range(edge, n - 1 - edge)
        ]
        return sum(bool(np.ptp(step) == 0) for step in steps)

    assert unseen(20, 1, 4) == 0 and unseen(63, 7) == 0 and unseen(64, 7) > 0


def test_penalties_are_seven_from_a_hundredth_to_ten_thousand() -> None:
    assert pytest.approx([0.01, 0.1, 1, 10, 100, 1000, 10_000]) == ALPHAS
