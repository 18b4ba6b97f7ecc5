"""Estimators of mean outputs and rare events against quadrature, scipy and closed forms, and what they are charged."""

import math
import statistics
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, optimize, stats
from torch import Tensor

from flows.commands.validity import estimation_table
from flows.terminal import to_json
from stages.benchmarks import estimation_figure
from stages.benchmarks.estimation import (
    Bench,
    EstimationRow,
    Group,
    bench_estimation,
    known_of,
    networks,
    prices,
    spent,
)
from stages.benchmarks.estimators import (
    MEANS,
    RARE,
    Event,
    Network,
    gaussian_event,
    margins,
    output_moments,
    relu_moments,
    shortest,
)
from stages.errors import UserError

SMALL = Group("small", (6, 12, 12, 4))
ANY = Event(0, 0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(weight: Tensor, bias: Tensor) -> Network:
    return Network((weight,), (bias,))


def by_quadrature(mean: tuple[float, float], spread: tuple[float, float], correlation: float) -> float:
    """Covariance of two ReLUs: for each value of the first the mean of the second, integrated."""
    rest = spread[1] * math.sqrt(1 - correlation**2)

    def relu_mean(m: float, s: float) -> float:
        return m * stats.norm.cdf(m / s) + s * stats.norm.pdf(m / s)

    def of_both(z: float) -> float:
        first = max(0.0, mean[0] + spread[0] * z)
        return stats.norm.pdf(z) * first * relu_mean(mean[1] + spread[1] * correlation * z, rest)

    kink = -mean[0] / spread[0]
    both = integrate.quad(of_both, max(kink, -9.0), 9.0)[0] if kink < 9 else 0.0
    return float(both - relu_mean(mean[0], spread[0]) * relu_mean(mean[1], spread[1]))


@pytest.mark.parametrize("mean", [-3.0, -0.4, 0.0, 1.3, 4.0])
def test_moments_of_a_relu(mean: float) -> None:
    spread = 0.8

    def relu(z: float) -> float:
        return max(0.0, mean + spread * z)

    def moment(power: int) -> float:
        kink = max(-10.0, -mean / spread)
        return float(integrate.quad(lambda z: stats.norm.pdf(z) * relu(z) ** power, kink, 10.0)[0])

    first, second = moment(1), moment(2)
    found = relu_moments(torch.tensor([mean]), torch.tensor([spread**2]))
    assert float(found[0]) == pytest.approx(first, abs=1e-5)
    assert float(found[1]) == pytest.approx(second - first**2, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(
    st.floats(-1.5, 1.5), st.floats(-1.5, 1.5), st.floats(0.3, 2.0), st.floats(0.3, 2.0), st.floats(-0.95, 0.95)
)  # fmt: skip
def test_covariance_after_a_relu(m0: float, m1: float, s0: float, s1: float, r: float) -> None:
    # Two units with these moments, then an output that is the first and one that is their sum.
    first = torch.tensor([[s0, 0.0], [s1 * r, s1 * math.sqrt(1 - r * r)]])
    read = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    network = Network((first, read), (torch.tensor([m0, m1]), torch.zeros(2)))
    mean, covariance = output_moments(network)
    wanted = by_quadrature((m0, m1), (s0, s1), r)
    assert float(covariance[0, 1]) == pytest.approx(wanted, abs=0.012 * s0 * s1)
    exact = m0 * stats.norm.cdf(m0 / s0) + s0 * stats.norm.pdf(m0 / s0)
    assert float(mean[0]) == pytest.approx(float(exact), abs=1e-5)


@pytest.mark.parametrize("ratio", [-1.5, 1.0, 1.5])
def test_every_term_of_the_expansion_counts(ratio: float) -> None:
    """At a correlation of .6 what is left out is a thousandth, so a wrong sign in a term is seen."""
    first = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    network = Network((first, torch.eye(2)), (torch.full((2,), ratio), torch.zeros(2)))
    wanted = by_quadrature((ratio, ratio), (1.0, 1.0), 0.6)
    assert float(output_moments(network)[1][0, 1]) == pytest.approx(wanted, abs=3e-4)


def test_propagation_is_nearer_the_truth_with_covariances_and_exact_for_one_hidden_layer() -> None:
    shallow = next(networks(Group("one", (6, 12, 4)), 1))
    outputs = shallow(torch.randn(400_000, 6, generator=generator()))
    error = (output_moments(shallow)[0] - outputs.mean(0)) / (outputs.std(0) / math.sqrt(len(outputs)))
    assert float(error.abs().max()) < 4.5, "the mean of one layer of ReLUs has a closed form"
    torch.testing.assert_close(output_moments(shallow)[1], outputs.T.cov(), rtol=0.03, atol=0.03)
    worse = 0
    for network in networks(Group("deep", (16, 32, 32, 32, 4)), 6):
        outputs = network(torch.randn(100_000, 16, generator=generator()))
        errors = [
            float((output_moments(network, joint)[0] - outputs.mean(0)).square().mean()) for joint in (True, False)
        ]
        worse += errors[0] > errors[1]
    assert worse <= 1


def test_a_gaussian_event_is_what_scipy_says() -> None:
    draw = generator(3)
    for case in range(8):
        root = torch.randn(4, 4, generator=draw)
        mean, covariance, event = torch.randn(4, generator=draw), root @ root.T, Event(case % 4, 1.0 + case / 2)
        others = [k for k in range(4) if k != event.label]
        rows = np.zeros((3, 4))
        rows[range(3), others], rows[:, event.label] = -1.0, 1.0
        wanted = stats.multivariate_normal(
            -(rows @ mean.numpy() - event.threshold), rows @ covariance.numpy() @ rows.T, allow_singular=True
        ).cdf(np.zeros(3))
        found = statistics.fmean(float(gaussian_event(mean, covariance, event, generator(i))) for i in range(8))
        assert found == pytest.approx(float(wanted), rel=0.05)


def test_the_shortest_vector_is_that_of_least_distance_programming() -> None:
    draw = generator(1)
    for case in range(60):
        rows = torch.randn(6, (4, 6, 20)[case % 3], generator=draw)
        bounds = rows @ (2 * torch.randn(rows.shape[1], generator=draw)) - torch.rand(6, generator=draw)
        upper = np.vstack([rows.numpy().T, bounds.numpy()[None]])
        right = np.r_[np.zeros(rows.shape[1]), 1.0]
        rest = upper @ optimize.nnls(upper, right)[0] - right
        torch.testing.assert_close(shortest(rows, bounds), torch.from_numpy(-rest[:-1] / rest[-1]).float())
    assert not shortest(torch.eye(3), torch.tensor([-1.0, -2.0, 0.0])).any(), "0 fulfils all"


@pytest.mark.parametrize("name", sorted(RARE))
def test_a_rare_event_of_a_linear_network_has_a_closed_form(name: str) -> None:
    weight = torch.tensor([[1.0, 0.5, 0.0], [0.0, -1.0, 0.3], [0.2, 0.0, -2.0]])
    # The third output is far below: the event is that of two outputs alone.
    network = linear(weight, torch.tensor([0.0, 0.0, -60.0]))
    wide = float((weight[0] - weight[1]).norm())
    for chance in (0.02, 1e-5):
        event = Event(0, wide * float(stats.norm.isf(chance)))
        if name in ("sampling", "pairs of parts (QLD)") and chance < 1e-3:
            continue  # they need more samples than the reciprocal of the chance
        found = [float(RARE[name](network, event, 20_000, generator(seed))) for seed in range(4)]
        assert statistics.fmean(found) == pytest.approx(chance, rel=0.12)


def test_what_was_never_seen_is_not_impossible() -> None:
    network = linear(torch.eye(3), torch.zeros(3))
    for name in RARE:
        found = float(RARE[name](network, Event(0, 9.0), 50, generator()))
        assert 0.0 <= found < 0.05 and (found > 0.0 or "GLD" in name)
    assert float(RARE["sampling"](network, Event(0, 99.0), 50, generator())) == pytest.approx(0.5 / 51)


def test_moving_inputs_is_better_than_sampling_where_the_event_is_rare() -> None:
    network = next(networks(Group("moved", (16, 16, 4)), 1))
    seen = margins(network(torch.randn(1_000_000, 16, generator=generator(9))), ANY)
    event = Event(0, float(seen.topk(100).values[-1]))  # of probability 1e-4
    errors = {
        name: statistics.fmean(
            math.log(float(RARE[name](network, event, 4000, generator(seed))) / 1e-4) ** 2 for seed in range(12)
        )
        for name in ("sampling", "moved inputs (ITGIS)")
    }
    assert errors["moved inputs (ITGIS)"] < 0.7 * errors["sampling"]


def test_pairs_cancel_what_is_odd() -> None:
    network = linear(torch.randn(3, 5, generator=generator()), torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(MEANS["sampling in pairs"](network, ANY, 10, generator()), network.biases[0])
    found = MEANS["sampling"](network, ANY, 40_000, generator())
    assert float((found - network.biases[0]).abs().max()) < 0.1


def test_a_budget_is_spent_and_not_exceeded() -> None:
    network = next(networks(SMALL, 1))
    by_hand = 6 * 1 + (2 * 6 * 12 + 12) + 12 + (2 * 12 * 12 + 12) + 12 + (2 * 12 * 4 + 4) + 4
    assert (
        spent(MEANS["sampling"], network, ANY, 1000, generator())[1] == 1000 * by_hand + 8
    )  # their sum, and divided by n
    for estimators in (MEANS, RARE):
        for name in set(estimators) - {"propagation, units independent", "propagation, covariances"}:
            samples = prices(estimators[name], network, ANY, generator())
            for budget in (10**5, 10**6):
                n = samples(budget)
                assert n is not None
                took = spent(estimators[name], network, ANY, n, generator())[1]
                assert 0.85 * budget < took <= budget
            assert samples(1000) is None


def test_the_truth_is_that_of_plain_samples() -> None:
    network = next(networks(SMALL, 1))
    known = known_of(network, 2e8, generator(5))
    outputs = network(torch.randn(1_000_000, 6, generator=generator(6))).double()
    assert float(((known.mean - outputs.mean(0)) / outputs.std(0)).abs().max()) < 5 / math.sqrt(known.n)
    torch.testing.assert_close(known.variance, outputs.var(0), rtol=0.02, atol=0.0)
    for event, chance, error in known.events:
        share = float((margins(outputs, event) > event.threshold).double().mean())
        assert abs(share - chance) < 4.5 * math.hypot(error, math.sqrt(share / len(outputs)))
        assert error == pytest.approx(math.sqrt(chance * (1 - chance) / known.n))
    assert [chance for _, chance, _ in known.events] == pytest.approx([1e-2] * 3 + [1e-4] * 3, rel=0.5)


def test_rows_of_a_small_bench() -> None:
    told: list[str] = []
    bench = Bench((SMALL,), n_networks=3, budgets=(10**4, 3 * 10**5), mean_runs=20, rare_runs=1, truth_flops=2e8)
    rows = bench_estimation(told.append, bench)
    assert len(told) == 6
    of = {(row.question, row.estimator, row.budget): row for row in rows}
    assert ("mean", "propagation, covariances", 10**4) not in of, "it costs more than that"
    assert of["mean", "propagation, covariances", 3 * 10**5].error > 0
    for row in rows:
        assert 0 < row.flops <= row.budget and row.low <= row.error <= row.high
        assert row.n_networks == 3 and row.ratio_low <= row.ratio <= row.ratio_high  # type: ignore[operator]
        if row.estimator == "sampling":
            assert row.ratio == 1.0
    # Plain sampling has the error 1 / n, and n follows from the price of one sample.
    plain = of["mean", "sampling", 3 * 10**5]
    n = plain.flops / spent(MEANS["sampling"], next(networks(SMALL, 1)), ANY, 1, generator())[1]
    assert plain.error == pytest.approx(1 / n, rel=0.5)
    again = bench_estimation(told.append, replace(bench, budgets=(10**4,)))
    assert again == [row for row in rows if row.budget == 10**4], "the same draws, whatever else is measured"


def test_a_budget_that_pays_for_no_sample_has_no_ratio() -> None:
    rows = bench_estimation(lambda said: None, Bench((SMALL,), 2, (2_300,), 2, 1, 2e8))
    # Four samples of 590 FLOPs are too dear; five for each of 264 weights and some more are not.
    assert [(row.question, row.estimator) for row in rows] == [("mean", "propagation, units independent")]
    assert (rows[0].ratio, rows[0].ratio_low, rows[0].ratio_high) == (None, None, None)
    assert estimation_table(rows)[0]["2e+03"].endswith("]")  # type: ignore[attr-defined]
    to_json(rows)


def test_an_interval_needs_two_networks() -> None:
    with pytest.raises(UserError, match="at least 2"):
        bench_estimation(lambda said: None, Bench((SMALL,), n_networks=1))


def test_the_table_marks_what_differs_from_sampling() -> None:
    def row(estimator: str, budget: int, low: float, high: float) -> EstimationRow:
        return EstimationRow("g", "mean", estimator, budget, budget, 0.5, 0.4, 0.6, 1.0, low, high, 1e-6, 3, 1)

    rows = [row("a", 100, 0.1, 0.9), row("b", 100, 1.1, 2.0), row("b", 1000, 0.5, 2.0)]
    assert estimation_table(rows) == [
        {"estimator": "a", "1e+02": "5.0e-01* [4e-01, 6e-01]", "1e+03": "-"},
        {"estimator": "b", "1e+02": "5.0e-01! [4e-01, 6e-01]", "1e+03": "5.0e-01 [4e-01, 6e-01]"},
    ]


def test_the_figure_has_every_number_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(estimator: str, budget: int, flops: int, error: float) -> EstimationRow:
        return EstimationRow("g", "mean", estimator, budget, flops, error, error / 3, error * 2, 1, 1, 1, 1e-6, 3, 1)

    plain = [row("sampling", 10**k, 10**k, 10.0 ** (2 - k)) for k in (4, 5, 6)]
    carried = [row("propagation, covariances", 10**k, 20_000, 1e-3) for k in (5, 6)]
    rows = tmp_path / "rows.json"
    rows.write_text(to_json([*plain, *carried]), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["x", str(rows), str(tmp_path / "figure.svg")])
    estimation_figure.main()
    drawn = ET.parse(tmp_path / "figure.svg").getroot()
    circles = [one for one in drawn if one.tag.endswith("circle") and one.get("r") == "3"]
    at = [(float(one.get("cx", "nan")), float(one.get("cy", "nan"))) for one in circles]
    assert len(at) == 4, "what costs the same at every budget is one point"
    # Both axes are logarithms, so points a factor of ten apart are equally far apart.
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(at[:3])]
    assert steps[0] == pytest.approx(steps[1], abs=0.2) and steps[0][0] > 0 and steps[0][1] > 0
    assert at[0][0] < at[3][0] < at[1][0] and at[3][1] == at[1][1]
    rows.write_text("[{}]", encoding="utf-8")
    with pytest.raises(UserError, match="make it with"):
        estimation_figure.main()
