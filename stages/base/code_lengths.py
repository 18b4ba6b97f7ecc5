"""Bits: what numbers and choices take to write down, and what an explanation leaves unexplained of a target's outputs.

An explanation turns the target into an explained model: an activation replaced by its reconstruction, parts outside a
circuit ablated, weights of lower rank. Surprise accounting (Hilton 2024, "Formal verification, heuristic explanations
and surprise accounting", Alignment Research Center) adds two numbers of bits:

    surprise(N) = length + N * unexplained

where ``length`` writes down the explained model, and ``unexplained`` is what an output then still costs beyond what it
costs who has the target itself: cross entropy of the target's outputs under the explained model minus their entropy,
which is KL(target || explained). The same trade is that of minimum description length (Ayonrinde et al. 2024, arXiv
2410.11179). Two ends bound it: an explanation of length 0 (``null_bits``), and the target's own weights, which leave
nothing unexplained. What costs more than either explains nothing.

Shape legend: N = outputs, C = classes or words.
"""

import math

import torch
from torch import Tensor

__all__ = ["N_OUTPUTS", "choice_bits", "null_bits", "number_bits", "quantised", "unexplained_bits"]

N_OUTPUTS = 1_000_000
"""Outputs that share one explanation, where nothing else is said."""
SCALE_BITS = 32
"""Of the largest magnitude of a tensor, which its levels are multiples of."""
WHOLE = 32
"""Bits at which numbers are left as they are."""
MANY = 1 << 22
"""Float64 logits at once: bounds memory."""


def quantised(values: Tensor, bits: int) -> Tensor:
    """The values rounded to 2^bits - 1 evenly spaced levels about 0, the outermost at the largest magnitude.

    0 stays 0. From 32 bits on the values themselves.

    Raises:
        ValueError: fewer than 2 bits, which leave no level but 0.
    """
    if bits < 2:
        raise ValueError(f"{bits} bits a number: give 2 to {WHOLE}, of which {WHOLE} rounds nothing")
    largest = float(values.abs().max()) if values.numel() else 0.0
    if bits >= WHOLE or largest == 0.0:
        return values
    step = largest / (2 ** (bits - 1) - 1)
    rounded: Tensor = (values.double() / step).round().mul(step).to(values.dtype)
    return rounded


def number_bits(n_numbers: int, n_tensors: int, bits: int) -> float:
    """Bits of ``n_numbers`` quantised numbers in ``n_tensors`` tensors, each with its own scale."""
    return float(n_numbers * bits + (n_tensors * SCALE_BITS if bits < WHOLE else 0))


def choice_bits(n: int, k: int) -> float:
    """Bits that say how many of n things are kept, and which k: log2(n + 1) + log2 C(n, k).

    Raises:
        ValueError: k is not between 0 and n.
    """
    if not 0 <= k <= n:
        raise ValueError(f"{k} of {n} things cannot be kept: give 0 to {n}")
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return math.log2(n + 1) + ways / math.log(2)


def unexplained_bits(target: Tensor, explained: Tensor) -> Tensor:
    """(N,) float64 KL(target || explained) of each output in bits, at least 0; arguments are (N, C) logits."""
    size = max(1, MANY // max(1, target.shape[-1]))

    def part(one: Tensor, other: Tensor) -> Tensor:
        log_p, log_q = one.double().log_softmax(-1), other.double().log_softmax(-1)
        found: Tensor = (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0) / math.log(2)
        return found

    return torch.cat(
        [part(*both) for both in zip(torch.split(target, size), torch.split(explained, size), strict=True)]
    )


def null_bits(target: Tensor) -> dict[str, float]:
    """Bits that an output costs beyond its entropy without any explanation: ``uniform``, and ``marginal`` for who knows
    how often each output occurs (C numbers, which are not counted here)."""
    marginal = torch.cat([part.double().softmax(-1).sum(0, keepdim=True) for part in torch.split(target, 1024)]).sum(0)
    prior = (marginal / marginal.sum()).log().expand(len(target), -1)
    return {
        "uniform": float(unexplained_bits(target, torch.zeros_like(target)).mean()),
        "marginal": float(unexplained_bits(target, prior).mean()),
    }
