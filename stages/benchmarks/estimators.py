"""Estimators of a ReLU network's mean output and of a rare event, over standard normal inputs.

Two kinds. *Sampling* runs inputs through the network: plain, in pairs x and -x, with the inputs moved to where the
event is likely, or with a model fitted to what was seen. *Propagation* runs no input at all: it carries mean and
covariance of a Gaussian through the layers, with the exact moments of a ReLU of a Gaussian.
Every estimator computes with priced operations alone, so ``count_flops`` counts what it costs.

Sources: propagation of moments, Frey and Hinton 1999 (Variational learning in nonlinear Gaussian belief networks,
Neural Computation 11) for the moments, with cross moments by Hermite expansion as in Wu et al. 2026 (Estimating the
expected output of wide random MLPs more efficiently than sampling), arXiv 2605.05179, of which it is the second order;
moved inputs (ITGIS), a Gaussian of the margin (GLD) and pairs of parts (QLD), Wu and Hilton 2024 (Estimating the
probabilities of rare outputs in language models), arXiv 2410.13211, section 3; the point that inputs are moved to,
Hasofer and Lind 1974; probabilities of Gaussians by sequential conditioning, Genz 1992 (J. Comput. Graph. Stat. 1).

Shape legend: n = samples, X = inputs, H = units of a layer, C = outputs, K = other outputs (C - 1).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "MEANS",
    "RARE",
    "Estimator",
    "Event",
    "Network",
    "gaussian_event",
    "margins",
    "output_moments",
    "relu_moments",
    "shortest",
]

CHUNK = 8192
"""Samples run at once."""
SMALLEST = 1e-10
"""Variance below which a unit counts as constant."""
ORDER = 6
"""Terms of the Hermite expansion of a covariance after a ReLU; up to a correlation of .95 those left out are about 1%
of the product of the standard deviations."""
ROUNDS, SEARCH = 4, 0.25
"""How often inputs are moved, and the share of the samples that go into it."""
POINTS = 256
"""Draws of the probability of a Gaussian."""


@dataclass(frozen=True)
class Network:
    """Layers with a ReLU between them and none after the last; inputs are independent and standard normal."""

    weights: tuple[Tensor, ...]
    """(H, H of the layer before) each, float32; the first (H, X)."""
    biases: tuple[Tensor, ...]
    """(H,) each."""

    def hidden(self, inputs: Tensor) -> Tensor:
        """(n, H) activations that the last layer reads."""
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs = torch.relu(torch.addmm(bias, inputs, weight.T))
        return inputs

    def __call__(self, inputs: Tensor) -> Tensor:
        """(n, C)."""
        return torch.addmm(self.biases[-1], self.hidden(inputs), self.weights[-1].T)

    @property
    def n_inputs(self) -> int:
        return self.weights[0].shape[1]


@dataclass(frozen=True)
class Event:
    """One output exceeds every other by more than a threshold."""

    label: int
    threshold: float


Estimator = Callable[[Network, Event, int, torch.Generator], Tensor]
"""(network, event, samples, generator) -> (C,) mean outputs, or () probability of the event. Propagation ignores the
number of samples, and what asks for means ignores the event."""


def margins(outputs: Tensor, event: Event) -> Tensor:
    """(n,) the event's output less the largest other; the event is a margin above its threshold."""
    others = torch.cat([outputs[:, : event.label], outputs[:, event.label + 1 :]], dim=1)
    return outputs[:, event.label] - others.amax(1)


def _drawn(network: Network, n: int, generator: torch.Generator) -> Iterator[Tensor]:
    for start in range(0, n, CHUNK):
        yield torch.randn(min(CHUNK, n - start), network.n_inputs, generator=generator)


def sampled_means(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    return torch.stack([network(inputs).sum(0) for inputs in _drawn(network, n, generator)]).sum(0) / n


def paired_means(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    """Inputs x and -x: what is odd in x cancels (antithetic variates)."""
    half = max(1, n // 2)
    sums = [network(x).sum(0) + network(-x).sum(0) for x in _drawn(network, half, generator)]
    return torch.stack(sums).sum(0) / (2 * half)


def relu_moments(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of max(0, a) with a Gaussian: mean, variance, and the probability and the density (times the standard deviation)
    of a at 0, from which the rest of the expansion follows.
    """
    spread = variance.clamp(min=SMALLEST).sqrt()
    ratio = mean / spread
    above = torch.special.ndtr(ratio)
    density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
    first = mean * above + spread * density
    second = (mean.square() + spread.square()) * above + mean * spread * density
    return first, (second - first.square()).clamp(min=0.0), above, spread * density


def _coefficients(mean: Tensor, spread: Tensor, above: Tensor, density: Tensor) -> list[Tensor]:
    """(H,) each: E[relu(a) He_k((a - mean) / spread)] / sqrt(k!) for k = 1 .. ``ORDER``.

    The k-th derivative of a ReLU is a derivative of the delta function for k >= 2, so by parts the coefficient is
    spread * density(0) * He_{k-2}(-mean / spread).
    """
    found, at = [spread * above], -mean / spread
    before, now = torch.zeros_like(at), torch.ones_like(at)
    for k in range(2, ORDER + 1):
        found.append(density * now / math.sqrt(math.factorial(k)))
        before, now = now, at * now - (k - 2) * before
    return found


def output_moments(network: Network, joint: bool = True) -> tuple[Tensor, Tensor]:
    """(C,) mean and (C, C) covariance of the outputs, were the inputs of every layer Gaussian.

    Args:
        joint: carry covariances; False: units of a layer count as independent, which is cheaper by the width.
    """
    mean = torch.zeros(network.n_inputs)
    covariance = torch.eye(network.n_inputs) if joint else torch.ones(network.n_inputs)
    last = len(network.weights) - 1
    for i, (weight, bias) in enumerate(zip(network.weights, network.biases, strict=True)):
        mean = torch.addmv(bias, weight, mean)
        if not joint and i == last:
            covariance = (weight * covariance) @ weight.T
        elif not joint:
            covariance = weight.square() @ covariance
        else:
            covariance = weight @ weight.T if i == 0 else weight @ covariance @ weight.T
        if i < last:
            mean, covariance = _after_relu(mean, covariance)
    return mean, covariance


def _after_relu(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    variance = covariance.diagonal() if covariance.dim() == 2 else covariance
    first, after, above, density = relu_moments(mean, variance)
    if covariance.dim() == 1:
        return first, after
    spread = variance.clamp(min=SMALLEST).sqrt()
    correlation = (covariance / torch.outer(spread, spread)).clamp(-1.0, 1.0)
    total, power = torch.zeros_like(correlation), torch.ones_like(correlation)
    for coefficient in _coefficients(mean, spread, above, density):
        power = power * correlation
        total = total + torch.outer(coefficient, coefficient) * power
    return first, total - torch.diag(total.diagonal() - after)


def independent_means(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    return output_moments(network, joint=False)[0]


def covariance_means(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    return output_moments(network)[0]


def sampled_rare(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    """Share of samples with the event; half a sample is added, so that none seen is not "never" (Jeffreys)."""
    hits = [(margins(network(x), event) > event.threshold).sum() for x in _drawn(network, n, generator)]
    return torch.div(torch.stack(hits).sum() + 0.5, n + 1)


def gaussian_margin(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    """The margin's mean and standard deviation over samples, as if it were Gaussian (GLD)."""
    found = torch.cat([margins(network(x), event) for x in _drawn(network, max(2, n), generator)])
    chance: Tensor = torch.special.ndtr((found.mean() - event.threshold) / found.std().clamp(min=SMALLEST))
    return chance


def moved_inputs(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    """Importance sampling from N(move, I) (ITGIS; of a Gaussian, tilting by a gradient is moving along it).

    The move is found by ``ROUNDS`` steps on a share of the samples: where the margin's mean slope would bring it to the
    threshold with the shortest move. So there is no temperature to tune.
    """
    move = torch.zeros(network.n_inputs)
    each = max(1, int(SEARCH * n / (3 * ROUNDS)))  # a gradient costs as much as three samples
    for _ in range(ROUNDS):
        with torch.enable_grad():
            inputs = (torch.randn(each, network.n_inputs, generator=generator) + move).requires_grad_(True)
            found = margins(network(inputs), event)
            slope = torch.autograd.grad(found.sum(), inputs)[0].mean(0)
        short = event.threshold - found.detach().mean() + slope @ move
        move = slope * (short / (slope @ slope).clamp(min=SMALLEST))
    rest = max(1, n - 3 * ROUNDS * each)
    total = torch.zeros(())
    for noise in _drawn(network, rest, generator):
        hit = margins(network(noise + move), event) > event.threshold
        total = total + (torch.exp(-(noise @ move)) * hit).sum()
    scale = torch.exp(-0.5 * (move @ move))
    return (scale * torch.clamp(total, min=0.5) / (rest + 1)).clamp(max=1.0)


def _constraints(network: Network, event: Event) -> tuple[Tensor, Tensor]:
    """(K, H), (K,): the event is rows @ hidden > bounds, for all rows."""
    weight, bias = network.weights[-1], network.biases[-1]
    others = [k for k in range(len(bias)) if k != event.label]
    return weight[event.label] - weight[others], event.threshold - bias[event.label] + bias[others]


def pairs_of_parts(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    """Quadratic logit decomposition (QLD): what the last layer reads, whitened, is a part along the shortest vector to
    the event and a rest. They count as independent, so n samples make n^2 pairs.
    """
    n = max(2, n)
    hidden = torch.cat([network.hidden(x) for x in _drawn(network, n, generator)])
    mean = hidden.mean(0)
    centred = hidden - mean
    # Columns of ``root``: directions with their standard deviation. Directions in which nothing varies are left out.
    variance, axes = torch.linalg.eigh(centred.T @ centred / (n - 1))
    kept = variance > variance[-1] * 1e-6
    root = axes[:, kept] * variance[kept].sqrt()
    white = centred @ (axes[:, kept] / variance[kept].sqrt())
    rows, bounds = _constraints(network, event)
    rows, bounds = rows @ root, bounds - rows @ mean
    nearest = shortest(rows, bounds)
    length = (nearest @ nearest).sqrt()
    if not float(length) > 0.0:  # the mean itself has the event: no direction is the one
        seen = (white @ rows.T > bounds).all(1)
        return torch.div(seen.sum() + 0.5, n + 1)
    along = nearest / length
    part = white @ along
    slope = rows @ along
    room = bounds - white @ rows.T + torch.outer(part, slope)  # (n, K): what the part times the slope must exceed
    needed = torch.where(slope > 0, room / slope, -torch.inf).amax(1)
    most = torch.where(slope < 0, room / slope, torch.inf).amin(1)
    ordered = part.sort().values
    seen = torch.searchsorted(ordered, most) - torch.searchsorted(ordered, needed, right=True)
    return (seen.clamp(min=0).sum() + 0.5) / (n * n + 1.0)


def shortest(rows: Tensor, bounds: Tensor) -> Tensor:
    """(H,) the shortest u with rows @ u >= bounds; of its dual, min k' G k / 2 - bounds' k over k >= 0 with G = rows
    rows', the constraints that hold with equality are found one by one (Lawson and Hanson 1974, chapter 23)."""
    gram = (rows @ rows.T).double()
    bounds, tolerance = bounds.double(), 1e-6 * float(gram.diagonal().amax().sqrt())
    weight = torch.zeros_like(bounds)
    tight: list[int] = []
    for _ in range(3 * len(bounds)):
        lacking = bounds - gram @ weight
        worst = int(lacking.argmax())
        if worst in tight or float(lacking[worst]) <= tolerance:
            break
        tight.append(worst)
        while True:
            part = gram[tight][:, tight]
            wanted = torch.linalg.solve(part + torch.diag(part.diagonal() * 1e-9), bounds[tight])
            if float(wanted.amin()) > 0.0:
                weight[tight] = wanted
                break
            # Go as far towards it as all weights stay positive; what has become 0 is no longer tight.
            now = weight[tight]
            room = torch.where(wanted <= 0, now / (now - wanted).clamp(min=1e-30), 1.0)
            weight[tight] = (now + room.amin() * (wanted - now)).clamp(min=0.0)
            gone = tight.pop(int(room.argmin()))
            weight[gone] = 0.0
            if not tight:
                break
    return rows.T @ weight.float()


def independent_rare(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    return gaussian_event(*output_moments(network, joint=False), event, generator)


def covariance_rare(network: Network, event: Event, n: int, generator: torch.Generator) -> Tensor:
    return gaussian_event(*output_moments(network), event, generator)


def gaussian_event(mean: Tensor, covariance: Tensor, event: Event, generator: torch.Generator) -> Tensor:
    """Probability of the event, were the outputs Gaussian: one coordinate after the other, each drawn from where the
    event still can be (Genz 1992, section 3)."""
    others = [k for k in range(len(mean)) if k != event.label]
    lacking = event.threshold - (mean[event.label] - mean[others])  # (K,) the differences must exceed their means by it
    part = covariance[event.label, others]
    joint = covariance[others][:, others] + covariance[event.label, event.label] - part - part.unsqueeze(1)
    # The least likely constraint first: the draws of the others are then where they matter.
    order = (lacking / joint.diagonal().clamp(min=SMALLEST).sqrt()).argsort(descending=True)
    joint, lacking = joint[order][:, order].double(), lacking[order].double()
    factor = torch.linalg.cholesky(joint + torch.diag(joint.diagonal() * 1e-6 + SMALLEST))
    drawn = torch.zeros(POINTS, len(others), dtype=torch.float64)
    weight = torch.ones(POINTS, dtype=torch.float64)
    uniform = torch.rand(POINTS, len(others), generator=generator, dtype=torch.float64)
    for k in range(len(others)):
        least = (lacking[k] - drawn[:, :k] @ factor[k, :k]) / factor[k, k]
        above = torch.special.ndtr(-least)
        weight = weight * above
        # The upper tail, reflected, so that far out nothing is rounded away.
        tail = (uniform[:, k] * above).clamp(min=1e-300)
        drawn[:, k] = -math.sqrt(2.0) * torch.special.erfinv((2 * tail - 1).clamp(-1 + 1e-16, 1 - 1e-16))
    return weight.mean().float()


MEANS: dict[str, Estimator] = {
    "sampling": sampled_means,
    "sampling in pairs": paired_means,
    "propagation, units independent": independent_means,
    "propagation, covariances": covariance_means,
}
RARE: dict[str, Estimator] = {
    "sampling": sampled_rare,
    "Gaussian margin (GLD)": gaussian_margin,
    "pairs of parts (QLD)": pairs_of_parts,
    "moved inputs (ITGIS)": moved_inputs,
    "propagation, units independent": independent_rare,
    "propagation, covariances": covariance_rare,
}
