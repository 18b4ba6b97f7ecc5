"""The small model M2 fits on a few labelled calibration instances: ridge, boosted trees, or their mean.

Which of them is chosen by cross-validation over instances, never over rows, so that items of one instance do not help
each other. A linear calibrator alone hides most of what a white-box answer carries.

Shape legend: N = instances, I = items, K = features.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stages.contracts.arms import Fit, Kind

__all__ = ["Calibrator", "assemble", "cross_validate"]

FloatArray = npt.NDArray[np.float64]
KINDS: tuple[Kind, ...] = ("ridge", "trees", "mean")
Score = Callable[[FloatArray, FloatArray], float]


def assemble(*blocks: FloatArray | None) -> FloatArray:
    """(N, I, K) features from blocks of (N, I, K_b). Where an instance has several items, each feature is also given
    relative to the mean of its instance: what matters is often which item stands out."""
    given = [block for block in blocks if block is not None]
    features = np.concatenate(given, axis=-1)
    if features.shape[1] > 1:
        features = np.concatenate([features, features - features.mean(1, keepdims=True)], axis=-1)
    return np.clip(np.nan_to_num(features, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)


class Calibrator:
    """Ridge and boosted trees on the features most correlated with the truth; predictions stay in the range seen.

    Args:
        max_features: features kept, by univariate F statistic on the rows it is fitted on.
        seed: of the trees.
    """

    def __init__(self, max_features: int, seed: int) -> None:
        self._max_features, self._seed = max_features, seed
        self._models: dict[Kind, Any] = {}
        self._low = self._high = 0.0

    def fit(self, features: FloatArray, truth: FloatArray) -> "Calibrator":
        """(N, I, K) and (N, I)."""
        x, y = features.reshape(-1, features.shape[-1]), truth.reshape(-1)
        self._low, self._high = float(y.min()), float(y.max())
        self._keep = np.flatnonzero(x.std(0) > 1e-12)
        self._mean = float(y.mean())
        self._models = {}
        if not len(self._keep) or self._high - self._low < 1e-12:
            return self
        x = x[:, self._keep]
        select = SelectKBest(f_regression, k=min(self._max_features, x.shape[1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # collinear features are expected; ridge and trees cope
            x = np.nan_to_num(select.fit_transform(x, y))
            self._select = select
            self._models["ridge"] = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7))).fit(x, y)
            trees = HistGradientBoostingRegressor(
                max_iter=40,
                learning_rate=0.15,
                max_leaf_nodes=6,
                min_samples_leaf=max(5, len(y) // 100),
                l2_regularization=1.0,
                max_bins=64,
                early_stopping=False,
                random_state=self._seed,
            )
            self._models["trees"] = trees.fit(x, y)
        return self

    def predict(self, features: FloatArray) -> dict[Kind, FloatArray]:
        """(N, I) predictions of each kind."""
        n, items = features.shape[:2]
        if not self._models:
            return {kind: np.full((n, items), self._mean) for kind in KINDS}
        x = np.nan_to_num(self._select.transform(features.reshape(n * items, -1)[:, self._keep]))
        out: dict[Kind, FloatArray] = {
            kind: np.clip(model.predict(x), self._low, self._high).reshape(n, items)
            for kind, model in self._models.items()
        }
        return out | {"mean": (out["ridge"] + out["trees"]) / 2}


def cross_validate(
    features: FloatArray, truth: FloatArray, score: Score, folds: int, max_features: int, seed: int
) -> Fit:
    """Best kind of calibrator for these features, by the task's own score of out-of-fold predictions."""
    n = features.shape[0]
    fold = np.arange(n) % folds
    out: dict[Kind, FloatArray] = {kind: np.zeros_like(truth) for kind in KINDS}
    for number in range(folds):
        held = fold == number
        model = Calibrator(max_features, seed).fit(features[~held], truth[~held])
        for kind, predicted in model.predict(features[held]).items():
            out[kind][held] = predicted
    best = max(KINDS, key=lambda kind: score(out[kind], truth))
    return Fit(best, score(out[best], truth))
