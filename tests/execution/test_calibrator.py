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
