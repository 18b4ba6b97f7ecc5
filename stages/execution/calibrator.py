"""The small model M2 fits on a few labelled calibration instances: ridge, boosted trees, or their mean.

Which of them is chosen by cross-validation over instances, never over rows, so that items of one instance do not help
each other. A linear calibrator alone hides most of what a white-box answer carries.

Shape legend: N = instances, I = items, K = features.
"""

from collections.abc import Callable
from typing import Any

import lightgbm
import numpy as np
import numpy.typing as npt

from stages.contracts.arms import Fit, Kind

__all__ = ["Calibrator", "assemble", "cross_validate"]

FloatArray = npt.NDArray[np.float64]
KINDS: tuple[Kind, ...] = ("ridge", "trees", "mean")
ALPHAS = np.logspace(-2, 4, 7)
"""Penalties of the ridge regression."""
N_TREES = 40
TREES: dict[str, Any] = {
    "objective": "regression",
    "num_leaves": 6,
    "learning_rate": 0.15,
    "lambda_l2": 1.0,
    "max_bin": 63,
    "min_data_in_bin": 1,
    "feature_pre_filter": False,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "seed": 0,
    "verbosity": -1,
}
Score = Callable[[FloatArray, FloatArray], float]


def assemble(*blocks: FloatArray | None) -> FloatArray:
    """(N, I, K) features from blocks of (N, I, K_b). Where an instance has several items, each feature is also given
    relative to the mean of its instance: what matters is often which item stands out."""
    given = [block for block in blocks if block is not None]
    features = np.concatenate(given, axis=-1)
    if features.shape[1] > 1:
        features = np.concatenate([features, features - features.mean(1, keepdims=True)], axis=-1)
    return np.clip(np.nan_to_num(features, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)


class Ridge:
    """Ridge regression on standardised features; the penalty by closed-form leave-one-out error over ``ALPHAS``.

    With X standardised and y centred, X'X = V diag(e) V': at penalty a the fit is X V (e + a)^-1 V'X'y, and the error
    of a row that is left out is its residual / (1 - h - 1/n), h its leverage x' V (e + a)^-1 V' x; the 1/n is the
    intercept's (Golub, Heath and Wahba 1979, Technometrics 21, section 2). One eigendecomposition serves all penalties.
    """

    def fit(self, x: FloatArray, y: FloatArray) -> "Ridge":
        """(R, K) and (R,)."""
        self._mean, self._scale, self._offset = x.mean(0), x.std(0), float(y.mean())
        z, centred = (x - self._mean) / self._scale, y - self._offset
        eigenvalues, basis = np.linalg.eigh(z.T @ z)
        turned = z @ basis
        shrink = 1.0 / (np.maximum(eigenvalues, 0.0)[:, None] + ALPHAS)  # (K, A)
        weights = shrink * (turned.T @ centred)[:, None]
        leverage = (turned * turned) @ shrink + 1.0 / len(y)
        errors = (centred[:, None] - turned @ weights) / np.maximum(1.0 - leverage, 1e-9)
        best = int(np.argmin((errors * errors).mean(0)))
        self._weights = basis @ weights[:, best]
        return self

    def predict(self, x: FloatArray) -> FloatArray:
        return np.asarray(((x - self._mean) / self._scale) @ self._weights + self._offset)


class Trees:
    """Forty boosted trees of six leaves, by LightGBM: half the time of scikit-learn's on as few rows, same score."""

    def fit(self, x: FloatArray, y: FloatArray) -> "Trees":
        """(R, K) and (R,)."""
        settings = TREES | {"min_data_in_leaf": max(5, len(y) // 100)}
        self._model = lightgbm.train(settings, lightgbm.Dataset(x, y, params=settings), N_TREES)
        return self

    def predict(self, x: FloatArray) -> FloatArray:
        return np.asarray(self._model.predict(x, num_threads=1))


class Calibrator:
    """Ridge and boosted trees on the features most correlated with the truth; predictions stay in the range seen.

    Args:
        max_features: features kept, by the size of their correlation with the truth on the rows it is fitted on.
    """

    def __init__(self, max_features: int) -> None:
        self._max_features = max_features
        self._models: dict[Kind, Ridge | Trees] = {}
        self._low = self._high = 0.0

    def fit(self, features: FloatArray, truth: FloatArray) -> "Calibrator":
        """(N, I, K) and (N, I)."""
        self._items = truth.mean(0)
        if truth.shape[1] > 1:
            # What an item's truth is on average is known from the calibration labels alone, whatever the features say.
            # On the rows it is fitted on, each row's own label is left out.
            n = truth.shape[0]
            others = (truth.sum(0) - truth) / max(1, n - 1)
            features = np.concatenate([features, others[..., None]], axis=-1)
        x, y = features.reshape(-1, features.shape[-1]), truth.reshape(-1)
        self._low, self._high = float(y.min()), float(y.max())
        self._mean = float(y.mean())
        self._models = {}
        spread = x.std(0)
        alive = np.flatnonzero(spread > 1e-12)
        if not len(alive) or self._high - self._low < 1e-12:
            return self
        # The univariate F statistic rises with the squared correlation, so the largest correlations are kept.
        centred = (y - self._mean) / y.std()
        correlation = np.abs(centred @ ((x[:, alive] - x[:, alive].mean(0)) / spread[alive]))
        self._keep = alive[np.sort(np.argsort(correlation, kind="stable")[-self._max_features :])]
        x = x[:, self._keep]
        self._models = {"ridge": Ridge().fit(x, y), "trees": Trees().fit(x, y)}
        return self

    def predict(self, features: FloatArray) -> dict[Kind, FloatArray]:
        """(N, I) predictions of each kind."""
        n, items = features.shape[:2]
        if items > 1:
            prior = np.broadcast_to(self._items[None, :, None], (n, items, 1))
            features = np.concatenate([features, prior], axis=-1)
        if not self._models:
            return {kind: np.full((n, items), self._mean) for kind in KINDS}
        x = features.reshape(n * items, -1)[:, self._keep]
        out: dict[Kind, FloatArray] = {
            kind: np.clip(model.predict(x), self._low, self._high).reshape(n, items)
            for kind, model in self._models.items()
        }
        return out | {"mean": (out["ridge"] + out["trees"]) / 2}


def cross_validate(features: FloatArray, truth: FloatArray, score: Score, folds: int, max_features: int) -> Fit:
    """Best kind of calibrator for these features, by the task's own score of out-of-fold predictions."""
    n = features.shape[0]
    fold = np.arange(n) % folds
    out: dict[Kind, FloatArray] = {kind: np.zeros_like(truth) for kind in KINDS}
    for number in range(folds):
        held = fold == number
        model = Calibrator(max_features).fit(features[~held], truth[~held])
        for kind, predicted in model.predict(features[held]).items():
            out[kind][held] = predicted
    best = max(KINDS, key=lambda kind: score(out[kind], truth))
    return Fit(best, score(out[best], truth))
