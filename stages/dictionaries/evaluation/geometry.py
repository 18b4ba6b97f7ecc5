"""Decoder geometry, likeness of dictionaries, and description length: pure functions, defined once, property-tested.

Shape legend: N = rows, D = width, F = latents.
"""

import math
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

__all__ = [
    "MATCHED",
    "SHORT",
    "DescriptionLength",
    "Likeness",
    "density_histogram",
    "description_length",
    "description_lengths",
    "jackknife",
    "l2_ratio",
    "likeness",
    "matched_cosines",
    "max_cosine",
    "random_likeness",
]

SHORT = 1e-6
"""Rows shorter than this have no length to compare with."""
MATCHED = 0.7
"""|cosine| from which two latents are called the same (2505.20254 and others)."""
BINS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Upper ends of the density bins between "never" and "more often than in a tenth of the rows"."""


def density_histogram(density: Tensor, edges: tuple[float, ...] = BINS) -> list[int]:
    """Latents per bin of firing density: [never, (0, e1], (e1, e2], ..., above the last edge]; they sum to F.

    Args:
        density: (F,) share of rows in which each latent is non-zero.
    """
    bins = torch.bucketize(density.double(), torch.tensor((0.0, *edges), dtype=torch.float64))
    counts: list[int] = torch.bincount(bins, minlength=len(edges) + 2).tolist()
    return counts


def l2_ratio(acts: Tensor, reconstruction: Tensor) -> float:
    """Mean over rows of ||x^|| / ||x|| (SAELens's shrinkage): below 1 = shrunk; rows with ||x|| < 1e-6 do not count.

    The other shrinkage is ``metrics.reconstruction_bias``. This one reads 1 for any reconstruction of the right length,
    right or wrong. NaN where no row counts.
    """
    lengths = acts.double().norm(dim=-1)
    kept = lengths >= SHORT
    if not kept.any():
        return math.nan
    return float((reconstruction.double().norm(dim=-1)[kept] / lengths[kept]).mean())


def max_cosine(decoder: Tensor) -> Tensor:
    """(F,) largest |cosine| of each decoder row with any other: 1 = there is a copy of it; range [0, 1].

    0 for a single latent, and for a row of zeros.
    """
    unit = torch.nn.functional.normalize(decoder.double(), dim=-1)
    if len(unit) < 2:
        return torch.zeros(len(unit), dtype=torch.float64)
    cosine = (unit @ unit.T).abs_().fill_diagonal_(0.0)
    return cosine.amax(-1).clamp_(max=1.0)


class Likeness(NamedTuple):
    mcc: float
    """Mean |cosine| over the best one-to-one matching of latents (Hungarian), in [0, 1]; 1 = the same directions."""
    matched: float
    """Share of the smaller dictionary's latents whose partner has |cosine| >= .7."""
    n: int
    """Latents matched: the size of the smaller dictionary."""


def likeness(one: Tensor, other: Tensor) -> Likeness:
    """How alike two decoders are, whatever the order and sign of their latents (PW-MCC, 2505.20254).

    It rises with F / D: read it next to ``random_likeness``. Give live latents only, since dead ones keep their random
    start. Symmetric; NaN without latents.

    Args:
        one, other: (F1, D), (F2, D).
    """
    best = matched_cosines(one, other)
    if not len(best):
        return Likeness(math.nan, math.nan, 0)
    return Likeness(float(best.mean()), float((best >= MATCHED).double().mean()), len(best))


def matched_cosines(one: Tensor, other: Tensor) -> Tensor:
    """(min(F1, F2),) |cosine| of each pair of the best one-to-one matching."""
    cosine = (
        torch.nn.functional.normalize(one.double(), dim=-1) @ torch.nn.functional.normalize(other.double(), dim=-1).T
    ).abs()
    rows, columns = linear_sum_assignment(-cosine.numpy())
    return cosine[torch.from_numpy(rows), torch.from_numpy(columns)].clamp_max(1.0)


def random_likeness(n_one: int, n_other: int, width: int, generator: torch.Generator) -> Likeness:
    """The null: random directions in the same numbers."""
    one, other = (torch.randn(n, width, generator=generator) for n in (n_one, n_other))
    return likeness(one, other)


class DescriptionLength(NamedTuple):
    codes: float
    """Bits per row for the latents."""
    residual: float
    """Bits per row for what they leave over."""
    raw: float
    """Bits per row for the activations themselves, coded as the residual is: what there is to beat."""

    @property
    def total(self) -> float:
        return self.codes + self.residual


def description_length(
    acts: Tensor, latents: Tensor, reconstruction: Tensor, decoder: Tensor, precision: float = 0.1
) -> DescriptionLength:
    """Bits per row to send the activations to ``precision`` through the dictionary (the MDL view of 2410.11179).

    With step delta = precision * root mean variance of the activations' coordinates,

        codes    = sum_i H(round(z_i ||w_i|| / delta))          plug-in entropy over the rows
        residual = sum_d 1/2 log2(1 + 12 var_d(x - x^) / delta^2)
        raw      = sum_d 1/2 log2(1 + 12 var_d(x) / delta^2)

    so a latent that never fires costs nothing, a dictionary that explains nothing costs ``raw``, and more latents per
    row must pay for themselves. Latents are coded one by one: what they tell about each other is not used, and the
    decoder itself is not sent. The plug-in entropy is too low where a value is rarely repeated (few rows).

    Raises:
        ValueError: the activations are constant.
    """
    everything = torch.ones(1, len(acts), dtype=torch.float64)
    lengths = description_lengths(acts, latents, reconstruction, decoder, everything, precision)
    return DescriptionLength(*(float(part[0]) for part in lengths))


def description_lengths(
    acts: Tensor, latents: Tensor, reconstruction: Tensor, decoder: Tensor, weights: Tensor, precision: float = 0.1
) -> tuple[Tensor, Tensor, Tensor]:
    """(codes, residual, raw) of ``description_length``, each (G,), for G weightings of the rows.

    Args:
        weights: (G, N) float64, such as rows left out for a jackknife.
    """
    x = acts.double()
    delta = precision * math.sqrt(float(x.var(0, correction=0).mean()))
    if delta == 0.0:
        raise ValueError("the activations are constant: there is nothing to describe")
    total = weights.sum(-1, keepdim=True)
    levels = (latents.double() * (decoder.double().norm(dim=-1) / delta)).round().long()
    rows, columns = levels.nonzero(as_tuple=True)
    # A symbol is (latent, level). Rows without it hold the level 0 of that latent.
    found = levels[rows, columns]
    low, n_levels = (int(found.min()), int(found.max()) - int(found.min()) + 1) if len(found) else (0, 1)
    symbols, symbol = torch.unique(columns * n_levels + (found - low), return_inverse=True)
    counts = torch.zeros(len(weights), len(symbols), dtype=torch.float64).index_add_(1, symbol, weights[:, rows])
    fired = torch.zeros(len(weights), latents.shape[1], dtype=torch.float64)
    fired.index_add_(1, symbols // n_levels, counts)
    codes = _bits(counts / total).sum(-1) + _bits((total - fired) / total).sum(-1)

    def gaussian(values: Tensor) -> Tensor:
        values = values - values.mean(0)  # so that the difference of squares below keeps its digits
        mean = weights @ values / total
        variance = (weights @ values.square() / total - mean.square()).clamp_min(0.0)
        bits: Tensor = 0.5 * torch.log2(1.0 + 12.0 * variance / delta**2).sum(-1)
        return bits

    return codes, gaussian(x - reconstruction.double()), gaussian(x)


def _bits(shares: Tensor) -> Tensor:
    """-p log2 p; rounding below 0 counts as 0."""
    p = shares.clamp_min(0.0)
    bits: Tensor = -torch.special.xlogy(p, p) / math.log(2.0)
    return bits


def jackknife(point: float, left_out: Tensor) -> tuple[float, float]:
    """95% interval from values with one of G groups of examples left out each (delete-a-group jackknife).

    For quantities that resampling with replacement biases: plug-in entropies fall where rows repeat.
    """
    groups = len(left_out)
    error = math.sqrt((groups - 1) / groups * float((left_out - left_out.mean()).square().sum()))
    return point - 1.96 * error, point + 1.96 * error
