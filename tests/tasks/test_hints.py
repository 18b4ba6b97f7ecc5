"""Place and structure of instances must say nothing of the truth: what the check finds, and what it does not."""

import numpy as np
import torch

from stages.contracts.task import Instances, Truth
from stages.tasks.families import family
from stages.tasks.storage import Task
from stages.tools.hints import hint_features, hints_of


def a_task(values: np.ndarray, inputs: torch.Tensor | None = None) -> Task:
    n = len(values)
    arrays = {"inputs": torch.randn(n, 8, generator=torch.Generator().manual_seed(1)) if inputs is None else inputs}
    arrays["labels"] = torch.from_numpy((values[:, 0] > 0).astype(np.int64))
    return Task(family("noise_flip"), "digits_mlp", "train", Instances(arrays, n), Truth(torch.from_numpy(values)))


def test_a_truth_that_goes_with_the_place_is_found() -> None:
    rng = np.random.default_rng(0)
    for values in (np.linspace(0, 1, 100), (np.arange(100) % 3 == 0).astype(float)):
        row = hints_of(a_task((values + 0.2 * rng.normal(size=100))[:, None]))
        assert row.explained > 0.3 > row.by_chance and row.p <= 1 / 40


def test_so_is_one_that_goes_with_which_inputs_are_equal() -> None:
    rng = np.random.default_rng(0)
    inputs = torch.randn(100, 8, generator=torch.Generator().manual_seed(2))
    twice = rng.permutation(100)[:40]
    inputs[twice[:20]] = inputs[twice[20:]]
    values = np.isin(np.arange(100), twice).astype(float)
    row = hints_of(a_task(values[:, None], inputs))
    assert row.explained > 0.8 and row.p <= 1 / 40


def test_what_is_drawn_at_random_is_not_given_away_and_labels_are_content() -> None:
    """Several items, each with a mean of its own, which every calibrator knows."""
    found = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        found.append(hints_of(a_task(rng.normal(size=(60, 3)) + np.array([0.0, 5.0, 9.0]))).p)
    assert sum(p <= 0.05 for p in found) <= 3 and max(found) > 0.3
    values = np.random.default_rng(0).normal(size=(60, 1))
    assert hint_features(a_task(values)).shape[1] == hint_features(a_task(-values)).shape[1] == 2 + 32 + 1
