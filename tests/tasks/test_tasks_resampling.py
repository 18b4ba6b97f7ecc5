"""Sampling weights at equal reward: the global minimum by other means, and the family's truth by a loop."""

from itertools import product
from math import exp, log

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from stages.tasks.resampling_optimum import resampled, resampled_group
from tests.tasks.conftest import made_small, small_target

Floats = npt.NDArray[np.float64]


def objective(p: Floats, q: Floats) -> float:
    """KL(p || q) + H(q)."""
    return float((p * np.log(p / q)).sum() - (q * np.log(q)).sum())


@pytest.mark.parametrize("p", [[0.5, 0.3, 0.2], [0.34, 0.33, 0.33], [0.9, 0.09, 0.01], [0.1, 0.45, 0.45001]])
def test_a_group_of_three_agrees_with_a_dense_grid(p: list[float]) -> None:
    wanted = np.array(p) / sum(p)
    found = resampled_group(torch.from_numpy(wanted).log().unsqueeze(0))[0].exp().numpy()
    assert found.sum() == pytest.approx(1.0, abs=1e-9)
    side = np.linspace(1e-4, 1, 1500)
    a, b = np.meshgrid(side, side)
    inside = a + b < 1 - 1e-4
    grid = np.stack([a[inside], b[inside], 1 - a[inside] - b[inside]])
    values = (wanted[:, None] * np.log(wanted[:, None] / grid)).sum(0) - (grid * np.log(grid)).sum(0)
    assert objective(wanted, found) <= values.min() + 1e-9
    assert objective(wanted, found) >= values.min() - 1e-3, "the grid is fine enough to know the minimum"


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 7), st.floats(0.2, 2.5))
def test_no_start_finds_less_under_both_conditions(seed: int, n: int, spread: float) -> None:
    """SLSQP over all outcomes with the sum and the reward as conditions, from 30 starts and from each outcome raised:
    nothing here is split into groups, and any outcome may be raised."""
    rng = np.random.default_rng(seed)
    p = np.exp(spread * rng.normal(size=n))
    p /= p.sum()
    reward = (np.arange(n) < n // 2).astype(float)
    found = (
        resampled(torch.from_numpy(p).log().unsqueeze(0), torch.from_numpy(reward > 0).unsqueeze(0))[0].exp().numpy()
    )
    assert found.sum() == pytest.approx(1.0, abs=1e-8) and found @ reward == pytest.approx(p @ reward, abs=1e-8)
    conditions = [
        {"type": "eq", "fun": lambda q: q.sum() - 1.0},
        {"type": "eq", "fun": lambda q: q @ reward - p @ reward},
    ]
    starts = [*rng.dirichlet(np.ones(n), 30), p, *(0.1 * p + 0.9 * np.eye(n))]
    least = np.inf
    for start in starts:
        end = minimize(
            lambda q: objective(p, q), start, method="SLSQP", bounds=[(1e-9, 1)] * n, constraints=conditions,
            options={"maxiter": 200, "ftol": 1e-12},
        )  # fmt: skip
        feasible = abs(end.x.sum() - 1) < 1e-7 and abs(end.x @ reward - p @ reward) < 1e-7
        least = min(least, end.fun if feasible else np.inf)
    assert objective(p, found) <= least + 1e-6
    assert objective(p, found) >= least - 1e-4, "the starts find it as well"


def test_it_is_stationary_and_raises_the_most_probable_of_each_group() -> None:
    generator = torch.Generator().manual_seed(1)
    log_p = (2 * torch.randn(40, 60, generator=generator, dtype=torch.float64)).log_softmax(-1)
    rewarded = (torch.arange(60) % 3 == 0).expand(40, -1)
    log_q = resampled(log_p, rewarded)
    for group in (rewarded[0], ~rewarded[0]):
        p, q = log_p[:, group].exp(), log_q[:, group].exp()
        multiplier = p / q + q.log()
        assert float((multiplier - multiplier.mean(1, keepdim=True)).abs().max()) < 1e-6
        assert torch.equal((q > p).sum(1), torch.ones(40, dtype=torch.int64))
        assert torch.equal(q.argmax(1), p.argmax(1))


@pytest.mark.parametrize("target_name", ["context_lm", "facts_lm"])
def test_the_truth_agrees_with_a_loop_over_all_continuations(target_name: str) -> None:
    target, made = small_target(target_name), made_small("constrained_resampling", target_name)
    for i in range(2):
        x, words = made.instances.arrays["inputs"][i], made.instances.arrays["words"][i].tolist()
        label = int(made.instances.arrays["labels"][i])
        prompt = x[x[:, 1] > 0, 0].tolist()
        cache: dict[tuple[int, ...], Floats] = {}

        def after(said: tuple[int, ...], prompt: list[float] = prompt, cache: dict = cache) -> Floats:  # type: ignore[type-arg]
            if said not in cache:
                row = torch.tensor([[float(w), 1.0] for w in [*prompt, *said]])
                cache[said] = torch.log_softmax(target.model(row.unsqueeze(0))[0].double(), -1).numpy()
            return cache[said]

        outcomes = list(product(words, repeat=3))
        scores = np.array([(after(())[a] + after((a,))[b] + after((a, b))[c]) / 2.0 for a, b, c in outcomes])
        p = np.exp(scores - scores.max())
        p /= p.sum()
        good = np.array([c in words[:4] for _, _, c in outcomes])
        q = np.zeros(len(p))
        for group in (good, ~good):
            q[group] = best_of_one_raised(p[group])
        begins = np.array([a == label for a, _, _ in outcomes])
        assert float(made.truth.values[i, 0]) == pytest.approx(log(q[begins].sum() / p[begins].sum()), abs=2e-3)
        top = sorted(words, key=lambda w: -after(())[w])[:3]
        assert label in top


def best_of_one_raised(p: Floats) -> Floats:
    """The best over every outcome that might be raised, by bisection of the raised one's share; slow."""
    best, least = p, np.inf
    for k in np.argsort(-p)[:6]:
        others = np.delete(np.arange(len(p)), k)

        def spread(c: float, others: npt.NDArray[np.int64] = others) -> Floats:
            low, high = np.full(len(others), 1e-300), p[others].copy()
            for _ in range(200):
                middle = np.sqrt(low * high)
                above = p[others] / middle + np.log(middle) > c
                low, high = np.where(above, middle, low), np.where(above, high, middle)
            return middle

        low, high = p[k], p.sum()
        for _ in range(60):
            t = (low + high) / 2
            c = p[k] / t + log(t)
            if c < 1 + np.log(p[others]).max() or t + spread(c).sum() < p.sum():
                low = t
            else:
                high = t
        q = np.empty(len(p))
        q[k], q[others] = t, spread(p[k] / t + log(t))
        if abs(q.sum() - p.sum()) < 1e-6 and objective(p, q) < least:
            best, least = q, objective(p, q)
    assert exp(-least) > 0
    return best
