"""`lensmith bench calibrator`: the executor's calibrator against ridge and boosted trees of scikit-learn, in turns.

Both are fitted on the same rows: every ladder step and every built-in method's answer of every train and validation
task, all seeds. Cross-validation chooses between the two models and their mean, and the choice is scored on the
evaluation instances, as an arm does it.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stages.base.params import names
from stages.contracts.arms import Kind
from stages.execution.answering import ask_in_process
from stages.execution.arms import split
from stages.execution.calibrator import KINDS, Calibrator, Score, assemble
from stages.execution.public import public_features
from stages.execution.runs import one_thread
from stages.interpretation.loading import built_in
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.evaluate import stage_baseline
from stages.scoring.settings import settings
from stages.scoring.stage import stage_frozen
from stages.tasks.storage import list_tasks

__all__ = ["CalibratorRow", "Reference", "bench_calibrator"]

FloatArray = npt.NDArray[np.float64]
Made = Callable[[int], Any]


class Reference:
    """The same calibrator with boosted trees in the place of the kernel."""

    def __init__(self, max_features: int) -> None:
        self._max_features = max_features

    def fit(self, features: FloatArray, truth: FloatArray) -> "Reference":
        x, y = features.reshape(-1, features.shape[-1]), truth.reshape(-1)
        self._low, self._high, self._mean = float(y.min()), float(y.max()), float(y.mean())
        self._keep = np.flatnonzero(x.std(0) > 1e-12)
        self._models: dict[Kind, Any] = {}
        if len(self._keep) and self._high - self._low >= 1e-12:
            x = x[:, self._keep]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # collinear features are expected
                self._select = SelectKBest(f_regression, k=min(self._max_features, x.shape[1]))
                x = np.nan_to_num(self._select.fit_transform(x, y))
                ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 4, 7)))
                trees = HistGradientBoostingRegressor(
                    max_iter=40,
                    learning_rate=0.15,
                    max_leaf_nodes=6,
                    min_samples_leaf=max(5, len(y) // 100),
                    l2_regularization=1.0,
                    max_bins=64,
                    early_stopping=False,
                    random_state=0,
                )
                self._models = {"ridge": ridge.fit(x, y), "kernel": trees.fit(x, y)}
        return self

    def predict(self, features: FloatArray) -> dict[Kind, FloatArray]:
        n, items = features.shape[:2]
        if not self._models:
            return {kind: np.full((n, items), self._mean) for kind in KINDS}
        x = np.nan_to_num(self._select.transform(features.reshape(n * items, -1)[:, self._keep]))
        out: dict[Kind, FloatArray] = {
            kind: np.clip(model.predict(x), self._low, self._high).reshape(n, items)
            for kind, model in self._models.items()
        }
        return out | {"mean": (out["ridge"] + out["kernel"]) / 2}


@dataclass(frozen=True)
class CalibratorRow:
    """One task, over its options and seeds."""

    task: str
    n: int
    """Fits compared: options x seeds."""
    score: float
    """Mean held-out score with the executor's calibrator."""
    reference: float
    """Mean held-out score with scikit-learn's."""
    difference_low: float
    """95% interval of the mean difference, bootstrap over fits."""
    difference_high: float
    ms: float
    """CPU milliseconds of one cross-validated choice and its final fit."""
    reference_ms: float


def bench_calibrator(progress: Callable[[str], None] = print) -> list[CalibratorRow]:
    """One row per task, and one over all."""
    chosen, methods = settings(), names("reward", "methods")
    config, rows, everything = chosen.execution, list[CalibratorRow](), list[tuple[float, ...]]()
    for family, target_name in [task for name in ("train", "validation") for task in list_tasks(name)]:
        task, target = cached_task(family, target_name), cached_target(target_name)
        baseline, truth = stage_baseline(task.name), task.truth.values.numpy()
        public = public_features(task)
        options: list[tuple[int | None, FloatArray | None]] = [(step.effort, None) for step in baseline.rungs[0]]
        for method in methods:
            frozen = stage_frozen(method, [target_name])[target_name]
            answered = ask_in_process(built_in(method), method, frozen.interpretation(), task, target)
            if answered.rows is not None:
                options += [(None, answered.rows), (0, answered.rows)]

        def score(predictions: FloatArray, wanted: FloatArray, task: Any = task) -> float:
            return float(task.family.score(predictions, wanted)[0])

        found = []
        with one_thread():
            for effort, rows_of in options:
                for seed in range(config.n_seeds):
                    step = public if effort is None else baseline.rungs[seed][effort].features
                    features = assemble(step, rows_of)
                    parts = [(features[at], truth[at]) for at in split(task, seed, config)]
                    makers: Sequence[Made] = (Calibrator, Reference)
                    found.append(sum((_timed(make, parts, score, config) for make in makers), ()))
        rows.append(_row(task.name, found))
        everything += found
        progress(f"{task.name}: {len(found)} fits")
    return [*rows, _row("all", everything)]


def _timed(make: Made, parts: Sequence[tuple[FloatArray, FloatArray]], score: Score, config: Any) -> tuple[float, ...]:
    """(held-out score, CPU seconds) of one calibrator."""
    (features, truth), (held_features, held_truth) = parts
    started = time.process_time()
    fold = np.arange(len(features)) % config.folds
    out: dict[Kind, FloatArray] = {kind: np.zeros_like(truth) for kind in KINDS}
    for number in range(config.folds):
        held = fold == number
        predicted = make(config.max_features).fit(features[~held], truth[~held]).predict(features[held])
        for kind in KINDS:
            out[kind][held] = predicted[kind]
    best = max(KINDS, key=lambda kind: score(out[kind], truth))
    predictions = make(config.max_features).fit(features, truth).predict(held_features)[best]
    return score(predictions, held_truth), time.process_time() - started


def _row(task: str, found: Sequence[tuple[float, ...]]) -> CalibratorRow:
    numbers = np.array(found)
    ours, ms, theirs, their_ms = numbers.mean(0)
    rng = np.random.default_rng(0)
    gap = numbers[:, 0] - numbers[:, 2]
    draws = gap[rng.integers(len(gap), size=(2000, len(gap)))].mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return CalibratorRow(task, len(found), ours, theirs, low, high, 1e3 * ms, 1e3 * their_ms)
