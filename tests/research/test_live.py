"""Campaigns compared for real: what the rows say is counted from the campaigns."""

import numpy as np
import pytest
from scipy.stats import t as student

from stages.contracts.compare_rows import LiveRow
from stages.contracts.journal import Iteration
from stages.errors import UserError
from stages.research.live import LivePath, compare_live, live_rows, path_of


def proposal(slot: int, train: float | None, best: float, status: str = "ok") -> Iteration:
    return Iteration(
        iteration=slot, name=f"x-{slot}", status=status, reason="", accepted=False, interpret_bytes=0, spec={},
        train_reward=train, validation_reward=None, flop_ratio=None, best_so_far=best,
    )  # fmt: skip


def test_a_path_is_the_best_so_far_and_what_failed_counts_as_nothing_found():
    rewards = [None, -0.2, 0.1, 0.05, None, 0.3]
    path = path_of([proposal(i, reward, 0.01 * i) for i, reward in enumerate(rewards)])
    assert path.train == [0.0, 0.0, 0.1, 0.1, 0.1, 0.3]
    assert path.validation == [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]
    assert path.scored == [False, True, True, True, False, True]


def paths(rng: np.random.Generator, shift: float, seeds: int = 3, n: int = 12) -> list[LivePath]:
    found = []
    for _ in range(seeds):
        train = np.maximum.accumulate(np.maximum(shift + rng.normal(0, 0.05, n), 0.0)).tolist()
        found.append(LivePath(train, (rng.random(n) / 10).tolist(), (rng.random(n) < 0.8).tolist()))
    return found


def ends(row: LiveRow, name: str) -> tuple[float | None, ...]:
    found = row.estimate(name)
    return found.value, found.low, found.high


def test_rows_are_means_over_campaigns_with_t_intervals_and_welch_against_random():
    rng = np.random.default_rng(0)
    found = {"random": paths(rng, 0.0), "programs": paths(rng, 0.1)}
    rows = {(row.researcher, row.n): row for row in live_rows(found, 12)}
    assert set(rows) == {(who, n) for who in found for n in (8, 12)}
    for (who, n), row in rows.items():
        columns = {"train": [one.train[n - 1] for one in found[who]]}
        columns["validation"] = [one.validation[n - 1] for one in found[who]]
        for name, values in columns.items():
            half = student.ppf(0.975, 2) * np.std(values, ddof=1) / np.sqrt(3)
            by_hand = (np.mean(values), np.mean(values) - half, np.mean(values) + half)
            assert ends(row, name) == pytest.approx(by_hand, abs=1e-5)
        assert row.scored == pytest.approx(np.mean([ok for one in found[who] for ok in one.scored[:n]]), abs=1e-5)
        if who == "programs":
            both = columns["train"], [one.train[n - 1] for one in found["random"]]
            variances = [np.var(one, ddof=1) / 3 for one in both]
            free = sum(variances) ** 2 / sum(one**2 / 2 for one in variances)
            wide = student.ppf(0.975, free) * np.sqrt(sum(variances))
            difference = np.mean(both[0]) - np.mean(both[1])
            by_hand = (difference, difference - wide, difference + wide)
            assert ends(row, "over_random") == pytest.approx(by_hand, abs=1e-5)
    assert rows["random", 8].over_random is None
    alone = live_rows({"programs": found["programs"]}, 12)
    assert all(row.over_random is None for row in alone)


def test_campaigns_that_all_come_to_the_same_have_no_width():
    same = [LivePath([0.1] * 8, [0.0] * 8, [True] * 8)] * 3
    row = next(row for row in live_rows({"random": same, "programs": same}, 8) if row.researcher == "programs")
    assert (row.over_random, row.over_random_low, row.over_random_high) == (0.0, 0.0, 0.0)
    assert row.train_low == row.train_high == pytest.approx(0.1)


def test_one_name_twice_is_refused():
    with pytest.raises(UserError, match="two researchers are called 'random'"):
        compare_live(["random", "random"], 2, 2)
