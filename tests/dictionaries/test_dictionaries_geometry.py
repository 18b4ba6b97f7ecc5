"""The properties that geometry, likeness and description length are defined by."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.dictionaries.evaluation import geometry

sizes = st.tuples(st.integers(2, 12), st.integers(2, 6), st.integers(0, 9999))


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30))
def test_the_density_histogram_counts_every_latent_once(values: list[float]) -> None:
    counts = geometry.density_histogram(torch.tensor(values, dtype=torch.float64))
    assert sum(counts) == len(values) and len(counts) == len(geometry.BINS) + 2
    assert counts[0] == sum(value == 0.0 for value in values)
    assert counts[-1] == sum(value > geometry.BINS[-1] for value in values)


@given(sizes, st.floats(0.1, 3.0))
def test_l2_ratio_is_the_scale_and_skips_zero_rows(size: tuple[int, int, int], scale: float) -> None:
    x = draw(*size)
    x[0] = 0.0
    assert geometry.l2_ratio(x, scale * x) == pytest.approx(scale, rel=1e-5)
    assert math.isnan(geometry.l2_ratio(torch.zeros(2, 2), torch.ones(2, 2)))


@given(sizes, st.floats(0.1, 10.0))
def test_max_cosine_finds_copies_whatever_sign_and_length(size: tuple[int, int, int], scale: float) -> None:
    decoder = draw(*size)
    cosine = geometry.max_cosine(decoder)
    assert ((cosine >= 0) & (cosine <= 1)).all()
    again = geometry.max_cosine(torch.cat([decoder, -scale * decoder[:1]]))
    assert again[0] == pytest.approx(1.0) and again[-1] == pytest.approx(1.0)
    assert geometry.max_cosine(torch.eye(4)).abs().max() == 0.0 and geometry.max_cosine(torch.ones(1, 3))[0] == 0.0


@settings(deadline=None)
@given(sizes)
def test_likeness_ignores_order_and_sign_and_is_symmetric(size: tuple[int, int, int]) -> None:
    n, d, seed = size
    one, other = draw(n, d, seed), draw(n + 2, d, seed + 1)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    same = geometry.likeness(one, -2.0 * one[order])
    assert same.mcc == pytest.approx(1.0) and same.matched == 1.0 and same.n == n
    forth, back = geometry.likeness(one, other), geometry.likeness(other, one)
    assert forth.mcc == pytest.approx(back.mcc) and forth.n == back.n == n
    assert 0.0 <= forth.mcc <= 1.0
    assert math.isnan(geometry.likeness(one[:0], other).mcc)


def test_likeness_is_sae_lens_own_on_dictionaries_of_one_size() -> None:
    from sae_lens.synthetic.evals import mean_correlation_coefficient

    one, other = draw(10, 5, 0), draw(10, 5, 1)
    assert geometry.likeness(one, other).mcc == pytest.approx(float(mean_correlation_coefficient(one, other)), abs=1e-5)


def test_the_random_null_falls_with_width() -> None:
    generator = torch.Generator().manual_seed(0)
    narrow, wide = (geometry.random_likeness(30, 30, width, generator) for width in (4, 200))
    assert narrow.mcc > 0.6 > 0.3 > wide.mcc and wide.matched == 0.0


@settings(deadline=None)
@given(sizes, st.floats(0.01, 100.0))
def test_description_length_of_nothing_identity_and_dead_latents(size: tuple[int, int, int], scale: float) -> None:
    n, d, seed = size
    x = draw(n + 5, d, seed).double()
    z, w = draw(n + 5, 3, seed + 1).relu().double(), draw(3, d, seed + 2).double()
    none = geometry.description_length(x, torch.zeros_like(z), x.mean(0).expand_as(x), w)
    assert none.codes == 0.0 and none.total == pytest.approx(none.raw)
    assert geometry.description_length(x, z, x, w).residual == 0.0
    some = geometry.description_length(x, z, z @ w, w)
    assert min(some) >= 0.0
    more = geometry.description_length(x, torch.cat([z[:, [2, 0, 1]], 0 * z], 1), z @ w, torch.cat([w[[2, 0, 1]], w]))
    assert more == pytest.approx(some)
    scaled = geometry.description_length(scale * x, z, scale * (z @ w), scale * w)
    assert scaled.residual == pytest.approx(some.residual) and scaled.codes == pytest.approx(some.codes, abs=0.5)
    with pytest.raises(ValueError, match="constant"):
        geometry.description_length(torch.ones(3, 2), z[:3], torch.ones(3, 2), w[:, :2])
