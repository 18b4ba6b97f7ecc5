"""The closed forms of the calibrator against direct solutions of the same problems."""

import numpy as np
import pytest
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import rbf_kernel

from stages.execution.calibrator import (
    BEYOND,
    FURTHEST,
    JITTER,
    KERNEL_PENALTIES,
    LANDMARKS,
    LEAST_WEIGHT,
    LENGTH,
    LINEAR,
    RIDGE_PENALTIES,
    Calibrator,
    Regression,
)

SIZES = [(40, 3, 0.1), (80, 24, 1.0), (53, 24, 0.01), (30, 60, 2.0), (200, 5, 0.3)]


def drawn(rows: int, features: int, noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x, y, rows to predict, and how much each feature is said to matter."""
    rng = np.random.default_rng(rows)
    scale, shift = rng.lognormal(size=features), rng.normal(size=features)
    x, new = (rng.normal(size=(n, features)) * scale + shift for n in (rows, 50))
    y = x[:, 0] - 2 * x[:, -1] + np.sin(3 * x[:, 0]) + noise * rng.normal(size=rows)
    return x, y, new, rng.uniform(size=features)


def best_by_generalised_cross_validation(hats: list[np.ndarray], y: np.ndarray) -> int:
    """hats: (R, R) smoothers, intercept included, one per penalty."""
    n = len(y)
    scores = [n * ((y - hat @ y) ** 2).sum() / np.trace(np.eye(n) - hat) ** 2 for hat in hats]
    return int(np.argmin(scores))


def standardised(x: np.ndarray, like: np.ndarray) -> np.ndarray:
    return np.clip((x - like.mean(0)) / like.std(0), -FURTHEST, FURTHEST)


@pytest.mark.parametrize(("rows", "features", "noise"), SIZES)
def test_the_linear_part_is_ridge_regression(rows: int, features: int, noise: float) -> None:
    x, y, new, relevance = drawn(rows, features, noise)
    z, after = standardised(x, x), standardised(new, x)
    centred = z - z.mean(0)
    hats = [
        centred @ np.linalg.solve(centred.T @ centred + a * np.eye(features), centred.T) + 1 / rows
        for a in RIDGE_PENALTIES
    ]
    penalty = RIDGE_PENALTIES[best_by_generalised_cross_validation(hats, y)]
    theirs = Ridge(penalty).fit(z, y).predict(after)
    assert Regression().fit(x, y, relevance).predict(new)[:, 0] == pytest.approx(theirs, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("rows", "features", "noise"), SIZES)
def test_the_other_is_kernel_ridge_regression(rows: int, features: int, noise: float) -> None:
    """In the dual: f = mean + k(., x) (K + a)^-1 (y - mean), kernels centred; K from as many landmarks as there are."""
    x, y, new, relevance = drawn(rows, features, noise)
    weight = np.maximum(relevance, LEAST_WEIGHT)
    weight /= np.linalg.norm(weight)
    z, after = standardised(x, x) * weight, standardised(new, x) * weight
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, LANDMARKS)).round().astype(int))
    assert len(chosen) == min(rows, LANDMARKS)
    landmarks = z[chosen]
    inverse = np.linalg.inv(rbf_kernel(landmarks, gamma=0.5 / LENGTH**2) + JITTER * np.eye(len(chosen)))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        to = [rbf_kernel(rows, landmarks, gamma=0.5 / LENGTH**2) for rows in (a, b)]
        return to[0] @ inverse @ to[1].T + LINEAR**2 * a @ b.T

    plain = kernel(z, z)
    middle = np.eye(rows) - 1 / rows
    centred = middle @ plain @ middle
    solved = [np.linalg.inv(centred + a * np.eye(rows)) for a in KERNEL_PENALTIES]
    best = best_by_generalised_cross_validation([centred @ one + 1 / rows for one in solved], y)
    crossed = (kernel(after, z) - plain.mean(0)) @ middle
    theirs = y.mean() + crossed @ solved[best] @ (y - y.mean())
    assert Regression().fit(x, y, relevance).predict(new)[:, 1] == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_the_features_most_correlated_with_the_truth_are_kept() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 1, 30)), rng.normal(size=(60, 1))
    x[:, 0, 7] = 3.0  # a constant says nothing
    x[:, 0, 4] += 2 * y[:, 0]
    model = Calibrator(5).fit(x, y)
    alive = [k for k in range(30) if k != 7]
    theirs = SelectKBest(f_regression, k=5).fit(x[:, 0, alive], y[:, 0]).get_support(indices=True)
    assert list(model._keep) == [alive[k] for k in theirs] and 4 in model._keep


def test_relevance_is_the_size_of_the_correlation() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(50, 2, 3)), rng.normal(size=(50, 2))
    x[..., 1] -= 3 * y
    flat, label = x.reshape(-1, 3), y.reshape(-1)
    others = ((y.sum(0) - y) / 49).reshape(-1, 1)
    all_features = np.concatenate([flat, others], 1)
    relevance = np.array([abs(np.corrcoef(column, label)[0, 1]) for column in all_features.T])
    theirs = Regression().fit(all_features, label, relevance).predict(all_features)
    prior = np.broadcast_to(y.mean(0)[None, :, None], (50, 2, 1))
    told = Calibrator(24).fit(x, y)
    again = told._model.predict(all_features)
    assert again == pytest.approx(theirs, abs=1e-9)
    by_hand = np.clip(told._model.predict(np.concatenate([x, prior], -1).reshape(-1, 4)), label.min(), label.max())
    found = told.predict(x)
    assert np.allclose(found["ridge"].reshape(-1), by_hand[:, 0]) and np.allclose(
        found["mean"].reshape(-1), by_hand.mean(1)
    )


def test_it_is_the_same_twice_and_sees_what_is_not_linear() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 5))
    y = np.sin(2 * x[:, 0]) * x[:, 1]
    relevance = np.ones(5)
    first, second = (Regression().fit(x[:300], y[:300], relevance).predict(x[300:]) for _ in range(2))
    assert np.array_equal(first, second)
    linear, kernel = (1 - ((column - y[300:]) ** 2).mean() / y[300:].var() for column in first.T)
    assert linear < 0.1 and kernel > 0.3


def test_an_outlier_is_far_and_not_everything() -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(80, 2))
    y = x[:, 0].copy()
    x[0] = 1e6
    found = Regression().fit(x, y, np.ones(2)).predict(x[1:])
    assert np.isfinite(found).all() and np.corrcoef(found[:, 1], y[1:])[0, 1] > 0.5


def test_twins_among_the_rows_and_the_features_do_no_harm() -> None:
    rng = np.random.default_rng(4)
    one = rng.normal(size=(30, 1))
    x, y = np.repeat(np.repeat(one, 4, axis=1), 3, axis=0), np.repeat(one[:, 0], 3)
    found = Regression().fit(x, y, np.ones(4)).predict(x)
    assert np.isfinite(found).all() and np.corrcoef(found[:, 1], y)[0, 1] > 0.98


def test_penalties() -> None:
    assert pytest.approx([0.01, 0.1, 1, 10, 100, 1000, 10_000]) == RIDGE_PENALTIES
    assert pytest.approx([1e-4, 1e-3, 0.01, 0.1, 1, 10, 100, 1000]) == KERNEL_PENALTIES


def test_the_furthest_of_few_labels_is_not_the_furthest_there_is() -> None:
    """A feature that is the truth serves beyond the labels seen, as far as half their range; not where those are
    shares, and not without end."""
    seen, asked = np.linspace(-1.0, 3.0, 24)[:, None], np.array([[-2.5], [4.5], [4.8], [9.0]])
    for kind, tolerance in (("ridge", 1e-2), ("mean", 1.0)):
        found = Calibrator(4).fit(seen[..., None], seen).predict(asked[..., None])[kind]
        assert found[:3] == pytest.approx(asked[:3], abs=tolerance)
        assert found.max() <= 3.0 + BEYOND * 4.0 and found.min() >= -1.0 - BEYOND * 4.0
    shares = Calibrator(4).fit(seen[..., None], (seen + 1) / 4)
    for predicted in shares.predict(asked[..., None]).values():
        assert predicted.min() == 0.0 and predicted.max() == 1.0
