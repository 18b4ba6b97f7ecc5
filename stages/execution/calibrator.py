"""The small model M2 fits on a few labelled calibration instances: linear ridge, kernel ridge, or their mean.

Which of them is chosen by cross-validation over instances, never over rows, so that items of one instance do not help
each other. A linear calibrator alone hides most of what a white-box answer carries. Everything is in closed form: both
models and all their penalties come from one Gram matrix (``lensmith bench calibrator`` compares with boosted trees).

Shape legend: N = instances, I = items, K = features, R = rows, M = landmarks, F = M + K.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular

from stages.contracts.arms import Fit, Kind

__all__ = ["Calibrator", "Regression", "assemble", "cross_validate"]

FloatArray = npt.NDArray[np.float64]
KINDS: tuple[Kind, ...] = ("ridge", "kernel", "mean")
RIDGE_PENALTIES = np.logspace(-2, 4, 7)
KERNEL_PENALTIES = np.logspace(-4, 3, 8)
LANDMARKS = 48
LENGTH = 0.7
"""Length scale of the kernel, where a row of weighted features has a mean square length of 1."""
LINEAR = 0.5
"""Weight of the linear part beside the kernel: its share at distances the kernel does not reach."""
LEAST_WEIGHT = 0.05
"""Weight of a feature without any correlation, where 1 is perfect."""
JITTER = 1e-4
FURTHEST = 4.0
"""Standardised features are cut here, so that an outlier is far and not everything."""
BEYOND = 0.5
"""How far beyond the labels seen a prediction may go, as a share of their range: of a few labels with a long tail the
furthest is not the furthest there is."""
Score = Callable[[FloatArray, FloatArray], float]


def assemble(*blocks: FloatArray | None) -> FloatArray:
    """(N, I, K) features from blocks of (N, I, K_b). Where an instance has several items, each feature is also given
    relative to the mean of its instance: what matters is often which item stands out."""
    given = [block for block in blocks if block is not None]
    features = np.concatenate(given, axis=-1)
    if features.shape[1] > 1:
        features = np.concatenate([features, features - features.mean(1, keepdims=True)], axis=-1)
    return np.clip(np.nan_to_num(features, nan=0.0, posinf=1e6, neginf=-1e6), -1e6, 1e6)


class Regression:
    """Ridge regression, linear and with a Gaussian kernel, both penalties by generalised cross-validation.

    A row x becomes z = w * clip((x - mean) / sd), with w proportional to each feature's |correlation| with y and scaled
    to sum w^2 = 1: distances are made of what is known to matter. The kernel model is ridge regression on the F columns

        phi(z) = [k(z, landmarks) L^-T, LINEAR z],   k(a, b) = exp(-|a - b|^2 / (2 LENGTH^2)),   L L' = k(landmarks)

    which is the Nystroem approximation (Williams and Seeger 2001, NIPS 13) of the kernel k plus a linear one. With C
    the centred Gram matrix of these columns, C = V diag(e) V' and c = V' phi' y, a penalty a gives the weights
    V c / (e + a), the residual sum of squares y'y - 2 sum c^2 / (e + a) + sum e c^2 / (e + a)^2 and the degrees of
    freedom 1 + sum e / (e + a), the 1 being the intercept's. So the score of every penalty, rss / (1 - df / R)^2
    (Golub, Heath and Wahba 1979, Technometrics 21, equation 1.4), costs F operations once the matrix is taken apart.
    The linear model needs the block of C that belongs to z alone, with w taken out again.
    """

    def fit(self, x: FloatArray, y: FloatArray, relevance: FloatArray) -> "Regression":
        """(R, K), (R,) and (K,) sizes of the features' correlations with y, 0 to 1."""
        rows, n_features = x.shape
        self._mean, self._scale = x.mean(0), x.std(0)
        weight = np.maximum(relevance, LEAST_WEIGHT)
        self._weight = weight / np.sqrt((weight * weight).sum())
        z = self._rows(x)
        # Evenly spaced rows: rows come by instance, so landmarks are of as many instances as there can be.
        chosen = np.arange(rows) if rows <= LANDMARKS else np.linspace(0, rows - 1, LANDMARKS).round().astype(int)
        self._landmarks = z[chosen]
        columns = self._columns(z)
        m = len(chosen)
        factor = cholesky(columns[chosen, :m] + JITTER * np.eye(m), lower=True)
        turn = np.zeros((m + n_features, m + n_features))
        turn[:m, :m] = solve_triangular(factor, np.eye(m), lower=True).T
        turn[m:, m:] = LINEAR * np.eye(n_features)
        middle, offset = columns.mean(0), float(y.mean())
        centred = y - offset
        gram = columns.T @ columns - rows * np.outer(middle, middle)
        moments, power = columns.T @ centred, float(centred @ centred)
        kernel = turn @ _ridge(turn.T @ gram @ turn, turn.T @ moments, power, rows, KERNEL_PENALTIES)
        back = 1.0 / self._weight
        linear = np.zeros(m + n_features)
        linear[m:] = back * _ridge(
            gram[m:, m:] * np.outer(back, back), moments[m:] * back, power, rows, RIDGE_PENALTIES
        )
        self._weights = np.stack([linear, kernel], axis=1)
        self._offsets = offset - middle @ self._weights
        return self

    def predict(self, x: FloatArray) -> FloatArray:
        """(R, 2): linear, kernel."""
        return np.asarray(self._columns(self._rows(x)) @ self._weights + self._offsets)

    def _rows(self, x: FloatArray) -> FloatArray:
        return np.asarray(np.clip((x - self._mean) / self._scale, -FURTHEST, FURTHEST) * self._weight)

    def _columns(self, z: FloatArray) -> FloatArray:
        """(R, F): the kernel at the landmarks, then z."""
        near = z @ self._landmarks.T  # becomes -|z - landmark|^2 / (2 LENGTH^2), in place: this is most of a fit's time
        near *= 2.0
        near -= (z * z).sum(1)[:, None]
        near -= (self._landmarks * self._landmarks).sum(1)
        near /= 2.0 * LENGTH**2
        return np.concatenate([np.exp(np.minimum(near, 0.0)), z], axis=1)


def _ridge(gram: FloatArray, moments: FloatArray, power: float, rows: int, penalties: FloatArray) -> FloatArray:
    """(F,) weights of the penalty with the least generalised cross-validation score; see ``Regression``."""
    eigenvalues, basis = np.linalg.eigh(gram)
    eigenvalues = np.maximum(eigenvalues, 0.0)[:, None]
    turned = (basis.T @ moments)[:, None]
    shrink = 1.0 / (eigenvalues + penalties)
    residual = power - (turned * turned * shrink * (2.0 - eigenvalues * shrink)).sum(0)
    freedom = 1.0 + (eigenvalues * shrink).sum(0)
    best = int(np.argmin(residual / np.maximum(1.0 - freedom / rows, 1e-9) ** 2))
    return np.asarray(basis @ (turned * shrink)[:, best])


class Calibrator:
    """Linear and kernel ridge on the features most correlated with the truth. Predictions stay in the range of the
    labels seen where that lies between 0 and 1, as shares and probabilities do, and near it elsewhere.

    Args:
        max_features: features kept, by the size of their correlation with the truth on the rows it is fitted on.
    """

    def __init__(self, max_features: int) -> None:
        self._max_features = max_features
        self._model: Regression | None = None
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
        low, high = float(y.min()), float(y.max())
        slack = 0.0 if low >= 0 and high <= 1 else BEYOND * (high - low)
        self._low, self._high = low - slack, high + slack
        self._mean = float(y.mean())
        self._model = None
        spread = x.std(0)
        alive = np.flatnonzero(spread > 1e-12)
        if not len(alive) or high - low < 1e-12:
            return self
        # The univariate F statistic rises with the squared correlation, so the largest correlations are kept.
        centred = (y - self._mean) / y.std()
        correlation = np.abs(centred @ ((x[:, alive] - x[:, alive].mean(0)) / spread[alive])) / len(y)
        chosen = np.sort(np.argsort(correlation, kind="stable")[-self._max_features :])
        self._keep = alive[chosen]
        self._model = Regression().fit(x[:, self._keep], y, correlation[chosen])
        return self

    def predict(self, features: FloatArray) -> dict[Kind, FloatArray]:
        """(N, I) predictions of each kind."""
        n, items = features.shape[:2]
        if items > 1:
            prior = np.broadcast_to(self._items[None, :, None], (n, items, 1))
            features = np.concatenate([features, prior], axis=-1)
        if self._model is None:
            return {kind: np.full((n, items), self._mean) for kind in KINDS}
        x = features.reshape(n * items, -1)[:, self._keep]
        both = np.clip(self._model.predict(x), self._low, self._high).reshape(n, items, 2)
        return {"ridge": both[..., 0], "kernel": both[..., 1], "mean": both.mean(-1)}


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
