"""Code lengths against loops over plain numbers, and the properties that make them code lengths."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.base.code_lengths import choice_bits, null_bits, number_bits, quantised, unexplained_bits

seeds, sizes = st.integers(0, 9999), st.tuples(st.integers(1, 7), st.integers(2, 9))


def draw(shape: tuple[int, ...], seed: int, scale: float = 3.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive_kl(one: list[float], other: list[float]) -> float:
    p, q = ([math.exp(x) / sum(math.exp(y) for y in of) for x in of] for of in (one, other))
    return sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True))


@settings(max_examples=40, deadline=None)
@given(sizes, seeds, seeds)
def test_what_is_left_is_the_divergence_of_each_output_in_bits(size: tuple[int, int], one: int, two: int) -> None:
    target, other = draw(size, one), draw(size, two + 10_000)
    found = unexplained_bits(target, other).tolist()
    assert found == pytest.approx([naive_kl(*both) for both in zip(target.tolist(), other.tolist(), strict=True)])
    # A perfect explanation leaves nothing, and logits that differ by a constant are the same outputs.
    assert unexplained_bits(target, target + 5.0).abs().max() < 1e-6


@settings(max_examples=40, deadline=None)
@given(sizes, seeds, st.integers(2, 12))
def test_rounding_is_to_the_nearest_of_evenly_spaced_levels(size: tuple[int, int], seed: int, bits: int) -> None:
    values = draw(size, seed)
    found = quantised(values, bits)
    step = float(values.abs().max()) / (2 ** (bits - 1) - 1)
    levels = [step * i for i in range(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1))]
    assert len(levels) == 2**bits - 1
    nearest = [min(levels, key=lambda level: abs(level - value)) for value in values.flatten().tolist()]
    assert found.flatten().tolist() == pytest.approx(nearest, abs=1e-5 * step * 2**bits)
    torch.testing.assert_close(quantised(found, bits), found)
    assert torch.equal(quantised(values, 32), values) and not quantised(torch.zeros(3), bits).any()


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 14))
def test_more_bits_leave_no_more_unexplained_than_their_rounding_can(seed: int, bits: int) -> None:
    """KL <= range(change of the logits)^2 / 8 (Hoeffding's lemma), and the range halves with every bit."""
    weights, inputs = draw((6, 5), seed), draw((20, 6), seed + 10_000, 1.0)
    left = unexplained_bits(inputs @ weights, inputs @ quantised(weights, bits))
    step = float(weights.abs().max()) / (2 ** (bits - 1) - 1)
    widest = inputs.abs().sum(-1).double() * step  # of two logits, each off by half a step per unit of input
    assert (left <= widest**2 / 8 / math.log(2) + 1e-9).all()


@given(st.integers(0, 60), st.integers(0, 60))
def test_a_choice_costs_the_logarithm_of_how_many_there_are(n: int, k: int) -> None:
    if k > n:
        with pytest.raises(ValueError, match=f"{k} of {n} things"):
            choice_bits(n, k)
        return
    assert choice_bits(n, k) == pytest.approx(math.log2((n + 1) * math.comb(n, k)), abs=1e-9)


def test_numbers_cost_their_bits_and_a_scale_for_each_tensor() -> None:
    assert number_bits(100, 3, 6) == 100 * 6 + 3 * 32
    assert number_bits(100, 3, 32) == 3200  # as they are, without a scale
    with pytest.raises(ValueError, match="1 bits a number"):
        quantised(torch.ones(2), 1)


@settings(max_examples=30, deadline=None)
@given(sizes, seeds)
def test_the_marginal_is_the_best_that_says_the_same_of_every_output(size: tuple[int, int], seed: int) -> None:
    target = draw(size, seed)
    ends = null_bits(target)
    shares = target.double().softmax(-1)
    entropy = -(shares * shares.log2()).sum(-1).mean()
    assert ends["uniform"] == pytest.approx(math.log2(size[1]) - float(entropy), abs=1e-9)
    for other in (draw((1, size[1]), seed + 1), draw((1, size[1]), seed + 2, 0.3)):
        assert ends["marginal"] <= float(unexplained_bits(target, other.expand(*size)).mean()) + 1e-9
