"""Leagues whose truth is known: arms of made-up methods on made-up families, judged and stated like real ones."""

from typing import Literal

import numpy as np
import torch

from stages.contracts.arms import ArmResult, Baseline, MethodArms
from stages.contracts.reward_rows import StatementRow, TaskRow
from stages.contracts.task import Instances, Truth, skill
from stages.reward.judging import judge, task_row
from stages.reward.settings import RewardConfig
from stages.reward.statements import statements
from stages.tasks.storage import Task

N, EVALUATED, SEEDS = 120, 80, 3
CONFIG = RewardConfig(draws=100)
BASE, SHARED = 0.5, 0.7
"""Score of the baseline, and the share of its errors that an assisted arm repeats."""
Shape = Literal["normal", "skewed"]


class Family:
    """As much of a family as judging reads."""

    query_kind = "Represent"
    cluster = ""

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, predictions, truth, weights=None):
        return skill(predictions, truth, weights)


def gains(rng: np.random.Generator, n: int, mean: float, sd: float, shape: Shape) -> np.ndarray:
    """(n,) true rewards of families: normal, or three quarters alike and the others above them, exponentially."""
    if shape == "normal":
        return mean + sd * rng.standard_normal(n)
    values = np.where(rng.random(n) < 0.25, rng.exponential(1.0, n), 0.0)
    return mean + sd * (values - 0.25) / (0.5 - 0.0625) ** 0.5


def tasks_of(
    rng: np.random.Generator, name: str, gain: dict[str, float | None], seed_sd: float = 0.02
) -> list[TaskRow]:
    """Rows of methods of known gain on one task, through ``judge``, all with the same baseline; None declines."""
    truth = rng.standard_normal((N, 1))
    task = Task(Family(name), "x", "validation", Instances({}, N), Truth(torch.from_numpy(truth)))
    own = rng.standard_normal((N, 1))
    splits = [rng.permutation(N)[:EVALUATED] for _ in range(SEEDS)]
    agent = rng.normal(0, 0.03, SEEDS)

    def arm(worth: float, spread: float, used: bool) -> list[ArmResult]:
        out = []
        for seed, index in enumerate(splits):
            error = np.clip(1 - BASE - agent[seed] - worth - rng.normal(0, spread), 0.02, None)
            noise = SHARED**0.5 * own + (1 - SHARED) ** 0.5 * rng.standard_normal((N, 1))
            predictions = (truth + error**0.5 * noise)[index]
            out.append(ArmResult(seed, "tight", predictions, index, 1.0, 1.0, 0, used, "ridge", 0.5, 1.0))
        return out

    first = arm(0.0, 0.0, False)
    empty = [one if seed else arm(0.0, 0.0, True)[0] for seed, one in enumerate(first)]
    baseline = Baseline(first, empty, [], [])
    rows = []
    for method, worth in gain.items():
        if worth is None:
            arms = MethodArms("declined", "", 0.0, 0.0, 0.0, first, first)
        else:
            arms = MethodArms("ok", "", 0.0, 0.0, 0.0, arm(worth, seed_sd, True), first)
        rows.append(task_row(method, judge(task, baseline, arms, CONFIG)))
    return rows


def league(
    rng: np.random.Generator, name: str, n_families: int, worth: dict[str, tuple[float, float, Shape]]
) -> tuple[tuple[StatementRow, ...], dict[str, float]]:
    """What is said of every method of one league, and the mean of its true gains on these families.

    Args:
        worth: (mean, sd, shape) of the families' gains, of each method.
    """
    true = {method: gains(rng, n_families, *what) for method, what in worth.items()}
    rows: list[TaskRow] = []
    for i in range(n_families):
        rows += tasks_of(rng, f"{name}_{i}", {method: float(of[i]) for method, of in true.items()})
    return statements(rows, "validation"), {method: float(of.mean()) for method, of in true.items()}
