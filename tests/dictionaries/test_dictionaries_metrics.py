"""The properties each metric is defined by."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.base.intervals import over_items, percentile_interval, resamples
from stages.contracts.record import Estimate
from stages.dictionaries.evaluation import metrics

sizes = st.tuples(st.integers(3, 25), st.integers(1, 8), st.integers(0, 10_000))


def random_acts(n: int, d: int, seed: int, mean: float = 5.0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + mean


def random_latents(n: int, f: int, seed: int) -> Tensor:
    return random_acts(n, f, seed, mean=0.0).relu()


def pairwise_monosemanticity(latents: Tensor, embeddings: Tensor) -> Tensor:
    """Pach et al., as printed: over all pairs."""
    z = latents.double()
    z = (z - z.amin(0)) / (z.amax(0) - z.amin(0))
    cosine = torch.nn.functional.cosine_similarity(embeddings.unsqueeze(0), embeddings.unsqueeze(1), dim=-1).double()
    above = torch.ones(len(z), len(z), dtype=torch.float64).triu(1)
    weight = torch.einsum("nk,mk->nmk", z, z) * above.unsqueeze(-1)
    return (weight * cosine.unsqueeze(-1)).sum((0, 1)) / weight.sum((0, 1))


@given(sizes)
def test_explained_variance_of_mean_identity_and_offset(size: tuple[int, int, int]) -> None:
    x = random_acts(*size)
    mean = x.double().mean(0).expand_as(x)
    assert metrics.explained_variance(x.double(), mean) == pytest.approx(0.0, abs=1e-9)
    assert metrics.explained_variance(x, x) == 1.0
    offset = 3.0 * x.double().std() + 1.0
    assert metrics.explained_variance(x.double(), x.double() + offset) < 0.0


@given(sizes, st.floats(0.1, 10.0), st.floats(-50.0, 50.0))
def test_explained_variance_ignores_scale_and_origin(size: tuple[int, int, int], scale: float, origin: float) -> None:
    x = random_acts(*size).double()
    y = x + 0.3 * random_acts(size[0], size[1], size[2] + 1, mean=0.0).double()
    moved = metrics.explained_variance(scale * x + origin, scale * y + origin)
    assert moved == pytest.approx(metrics.explained_variance(x, y), abs=1e-6)


def test_explained_variance_of_constant_activations_is_an_error() -> None:
    with pytest.raises(ValueError, match="constant"):
        metrics.explained_variance(torch.ones(4, 2), torch.ones(4, 2))


def test_explained_variance_is_sae_lens_own() -> None:
    from sae_lens.evals import ExplainedVarianceCalculator

    x = random_acts(200, 8, 0)
    y = x + random_acts(200, 8, 1, mean=0.2)
    theirs = ExplainedVarianceCalculator()
    for start in range(0, 200, 50):
        theirs.add_batch(y[start : start + 50], x[start : start + 50])
    assert metrics.explained_variance(x, y) == pytest.approx(float(theirs.compute()), abs=1e-6)


@settings(max_examples=60)
@given(sizes)
def test_monosemanticity_in_one_pass_equals_the_pairwise_form(size: tuple[int, int, int]) -> None:
    n, f, seed = size
    latents, embeddings = random_latents(n, f, seed), random_acts(n, 5, seed + 1, mean=0.3)
    fast, slow = metrics.monosemanticity(latents, embeddings), pairwise_monosemanticity(latents, embeddings)
    both = torch.isfinite(fast) & torch.isfinite(slow)
    assert torch.equal(torch.isfinite(fast), torch.isfinite(slow))
    torch.testing.assert_close(fast[both], slow[both], atol=1e-6, rtol=0)
    assert (fast[both].abs() <= 1 + 1e-9).all()


def test_monosemanticity_is_one_for_one_image_and_undefined_without_a_pair() -> None:
    embeddings = torch.eye(4)
    embeddings[1] = embeddings[0]
    latents = torch.tensor([[1.0, 1.0, 0.0, 2.0], [1.0, 0.0, 0.0, 2.0], [0.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 2.0]])
    score = metrics.monosemanticity(latents, embeddings)
    assert score[0] == pytest.approx(1.0) and score[1] == pytest.approx(0.0)
    assert torch.isnan(score[2]) and torch.isnan(score[3])  # one firing; constant


@given(sizes)
def test_no_metric_depends_on_the_order_of_rows(size: tuple[int, int, int]) -> None:
    n, f, seed = size
    latents, x = random_latents(n, f, seed), random_acts(n, 3, seed)
    y = x + random_acts(n, 3, seed + 7, mean=0.0)
    labels = torch.randint(3, (n,), generator=torch.Generator().manual_seed(seed))
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed + 1))

    def everything(rows: Tensor) -> list[Tensor]:
        z = latents[rows]
        return [
            torch.tensor(metrics.l0(z)),
            torch.tensor(metrics.dead_ratio(z)),
            metrics.density(z),
            torch.tensor(metrics.explained_variance(x[rows], y[rows])),
            torch.tensor(metrics.reconstruction_bias(x[rows], y[rows])),
            metrics.monosemanticity(z, x[rows]),
            metrics.class_purity(z, labels[rows], 3),
            metrics.class_entropy(z, labels[rows], 3),
            metrics.selectivity(z, labels[rows], 3)[0],
        ]

    for one, other in zip(everything(torch.arange(n)), everything(order), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6, equal_nan=True)


@given(sizes)
def test_latents_can_be_permuted_and_scaled(size: tuple[int, int, int]) -> None:
    n, f, seed = size
    latents, embeddings = random_latents(n, f, seed), random_acts(n, 4, seed, mean=0.0)
    order = torch.randperm(f, generator=torch.Generator().manual_seed(seed))
    score = metrics.monosemanticity(latents, embeddings)
    moved = metrics.monosemanticity(3.0 * latents[:, order], embeddings)
    torch.testing.assert_close(moved, score[order], equal_nan=True, atol=1e-5, rtol=1e-5)
    assert metrics.l0(latents[:, order]) == metrics.l0(latents)


def test_l0_and_dead_ratio_count_negative_latents() -> None:
    latents = torch.tensor([[0.0, -1.0, 2.0, 0.0], [0.0, -3.0, 0.0, 0.0]])
    assert metrics.l0(latents) == 1.5
    assert metrics.dead_ratio(latents) == 0.5
    assert metrics.density(latents).tolist() == [0.0, 1.0, 0.5, 0.0]


def test_loss_recovered_at_its_ends_and_where_ablation_costs_nothing() -> None:
    clean, ablated = torch.tensor([0.1, 0.3]), torch.tensor([1.0, 3.0])
    assert metrics.loss_recovered(clean, clean, ablated).ratio == 1.0
    assert metrics.loss_recovered(clean, ablated, ablated).ratio == 0.0
    small = metrics.loss_recovered(clean, clean, clean + 0.05)
    assert small.small_denominator and small.ablated - small.clean == pytest.approx(0.05)
    assert math.isnan(metrics.loss_recovered(clean, ablated, clean).ratio)


def test_kl_recovered_and_agreement() -> None:
    clean, ablated = random_acts(20, 4, 0), torch.zeros(20, 4)
    assert metrics.kl_recovered(clean, clean, ablated) == pytest.approx(1.0)
    assert metrics.kl_recovered(clean, ablated, ablated) == pytest.approx(0.0)
    assert math.isnan(metrics.kl_recovered(clean, clean, clean))
    assert metrics.top1_agreement(clean, clean + 1.0) == 1.0 and metrics.top1_agreement(clean, -clean) < 0.2


def test_reconstruction_bias_of_a_shrunk_reconstruction() -> None:
    x = random_acts(30, 4, 0)
    assert metrics.reconstruction_bias(x, x) == pytest.approx(1.0)
    assert metrics.reconstruction_bias(x, 0.5 * x) == pytest.approx(0.5)
    assert math.isnan(metrics.reconstruction_bias(x, 0 * x))


@given(sizes)
def test_purity_and_entropy_agree_at_their_ends(size: tuple[int, int, int]) -> None:
    n, f, seed = size
    latents = random_latents(n, f, seed)
    labels = torch.randint(4, (n,), generator=torch.Generator().manual_seed(seed))
    purity, entropy = metrics.class_purity(latents, labels, 4), metrics.class_entropy(latents, labels, 4)
    fired = (latents != 0).any(0)
    assert torch.equal(torch.isnan(purity), ~fired) and torch.equal(torch.isnan(entropy), ~fired)
    assume(fired.any())
    assert (purity[fired] >= 0.25 - 1e-12).all() and (entropy[fired] <= math.log(4) + 1e-12).all()
    assert torch.equal(purity[fired] == 1, entropy[fired] < 1e-9)


def test_selectivity_finds_the_class_and_is_zero_for_a_constant() -> None:
    labels = torch.arange(30) % 3
    latents = torch.stack([(labels == 2).float(), torch.ones(30), -(labels == 0).float()], dim=1)
    strength, best = metrics.selectivity(latents, labels, 3)
    assert strength.tolist() == pytest.approx([1.0, 0.0, 1.0]) and best[0] == 2 and best[2] == 0


def test_probes_read_what_is_there_and_only_that() -> None:
    labels = torch.arange(300) % 3
    informative = torch.nn.functional.one_hot(labels, 3).float() + 0.1 * random_acts(300, 3, 0, mean=0.0)
    noise = random_acts(300, 3, 1, mean=0.0)
    train, test = slice(0, 150), slice(150, 300)
    for latents, low, high in ((torch.cat([noise, informative], 1), 0.97, 1.0), (noise, 0.4, 0.6)):
        right = metrics.k_sparse_probing(latents[train], labels[train], latents[test], labels[test], 3, k=1)
        assert low <= metrics.balanced_accuracy(right, labels[test]).item() <= high
    full = metrics.full_probing(noise[train], labels[train], noise[test], labels[test])
    assert full.double().mean() < 0.5


def test_a_probe_of_a_class_without_examples_answers_no() -> None:
    labels = torch.tensor([0, 1, 0, 1])
    right = metrics.k_sparse_probing(torch.eye(4), labels, torch.eye(4), labels, 3, k=2)
    assert right[:, 2].all()


def test_balanced_accuracy_with_weights_of_one_is_the_plain_one() -> None:
    labels = torch.arange(40) % 4
    right = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) > 0.3
    plain = metrics.balanced_accuracy(right, labels)
    assert metrics.balanced_accuracy(right, labels, torch.ones(2, 40))[1] == pytest.approx(plain.item())


def test_bootstrap_intervals_cover_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = resamples(10, 500, generator)
    assert torch.equal(weights.sum(-1), torch.full((500,), 10.0, dtype=torch.float64))
    covered = 0
    for seed in range(200):
        values = torch.randn(40, generator=torch.Generator().manual_seed(seed))
        _, low, high = over_items(values, 200, generator)
        covered += low <= 0.0 <= high
    assert 178 <= covered <= 200  # 95% nominal; a percentile interval of 40 items is a little short


def test_nan_is_no_number_in_a_file() -> None:
    assert Estimate.of(1.23456789, math.nan, 2.0) == Estimate(value=1.234568, low=None, high=2.0, null=None)
    assert all(math.isnan(end) for end in percentile_interval(torch.tensor([math.nan, math.inf])))
    assert math.isnan(over_items(torch.tensor([math.nan]), 20, torch.Generator())[0])
