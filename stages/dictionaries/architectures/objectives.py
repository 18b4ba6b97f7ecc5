"""Loss and gradients of one training step, written out: no graph is built and nothing is computed twice.

The losses are SAELens's own (tested: same weights in, same loss and gradients out):

- standard: mean_n ||x - x^||^2 + l1 * mean_n sum_i z_i ||w_i||     (Anthropic's update of April 2024)
- topk, batchtopk: mean_n ||x - x^||^2 + AuxK; latents are scaled by decoder norms before selection (2406.04093)
- abstopk: as topk, by magnitude, signs kept (2510.00404)
- matryoshka: as batchtopk, with an error for each of some nested prefixes of the latents (2503.17547)

and that of p-annealing (2408.00113), which has sum_i (z_i ||w_i||)^p in place of L1. ``gates`` and ``pursuit`` have the
others. With a target, the same is a transcoder: rows are encoded as they are, and predict the target.

What is saved against a graph: the gradient of the decoder bias through the encoder is (sum_n dL/dpre) @ W_enc^T, a
vector times a matrix, where autograd takes a whole matrix product; and where few latents are active, everything after
the encoder is sparse.

Weights are held as rows: encoder (F, D), decoder (F, D).
Shape legend: B = rows of the batch, D = width (of the target, where there is one), F = latents, A = active entries.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stages.dictionaries.architectures.custom_objectives import Regulariser
from stages.dictionaries.architectures.sparse import (
    Active,
    block_rows,
    encode_above,
    encode_top,
    encode_top_of_batch,
)

__all__ = ["P_EPS", "SPARSE_BELOW", "SPARSE_FROM", "Outcome", "Weights", "latents_of", "plugged", "standard", "top"]

SPARSE_BELOW = 0.12
"""Share of active entries below which the sparse products of a ReLU step beat the dense ones (measured; d = 128)."""
SPARSE_FROM = 32_768
"""Entries of a batch (B * F) below which the overhead of sparse products is larger than what they save."""
P_EPS = 1e-3
"""Added to what is raised to a power below 1, whose slope at 0 is infinite."""


@dataclass
class Weights:
    encoder: Tensor
    """(F, D): rows are the columns of W_enc; empty where the decoder encodes."""
    b_enc: Tensor
    """(F,); of the gate, where there is one; empty where there is no encoder."""
    decoder: Tensor
    """(F, D)."""
    b_dec: Tensor
    """(D,)."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """What only some architectures have: threshold, r_mag, b_mag (F,); skip (D of the target, D)."""

    def named(self) -> dict[str, Tensor]:
        four = {"encoder": self.encoder, "b_enc": self.b_enc, "decoder": self.decoder, "b_dec": self.b_dec}
        return {name: tensor for name, tensor in (four | self.extra).items() if tensor.numel()}

    def tensors(self) -> list[Tensor]:
        return list(self.named().values())

    @classmethod
    def of(cls, named: Mapping[str, Tensor]) -> "Weights":
        """The other way round."""
        none = torch.empty(0)
        four = {name: named.get(name, none) for name in ("encoder", "b_enc", "decoder", "b_dec")}
        return cls(**four, extra={name: tensor for name, tensor in named.items() if name not in four})


@dataclass
class Outcome:
    loss: float
    parts: dict[str, float]
    """mse_loss and the auxiliary losses: they sum to ``loss``."""
    gradients: Weights
    fired: Tensor
    """(F,) bool."""
    n_active: int
    """Non-zero latents in the batch."""
    extra: dict[str, float] = field(default_factory=dict)


def standard(weights: Weights, x: Tensor, l1: float, p: float = 1.0, target: Tensor | None = None) -> Outcome:
    """ReLU with a penalty on (z_i ||w_i||)^p: L1 by default.

    With c = x - b_dec, z = relu(E c + b_enc), x^ = z D + b_dec, w_i row i of D, and means over the n rows of the batch:
    back = dL/dx^ = 2 (x^ - x) / n; dL/dz_i = <back, w_i> + l1/n ||w_i||, which is dL/dpre_i where z_i > 0 and 0
    elsewhere; dL/dE = dpre^T c; dL/db_enc = sum dpre; dL/dw_i = sum z_i back + l1/n sum z_i w_i/||w_i||; dL/db_dec =
    sum back - (sum dpre) E. With p < 1 the penalty's slopes carry the factor p (z_i ||w_i|| + eps)^(p-1).

    Args:
        x: (B, D).
        l1: coefficient of the penalty.
        p: its power, above 0 and at most 1.
        target: of a transcoder; without, x itself.
    """
    n = len(x)
    centred, goal = _ends(weights, x, target)
    norms = weights.decoder.norm(dim=1)
    sparse = len(x) * len(norms) >= SPARSE_FROM
    found = encode_above(centred, weights.encoder, weights.b_enc, SPARSE_BELOW) if sparse else None
    if found is None:
        return _standard_dense(weights, centred, goal, norms, l1, p, transcoding=target is not None)
    active, values = found
    residual = active.times(values, weights.decoder).add_(weights.b_dec).sub_(goal)
    mse = residual.square().sum().item() / n
    back = residual.mul_(2.0 / n)
    at_entries = active.products(back, weights.decoder)
    if p == 1.0:
        per_latent = active.per_latent(values)
        at_entries += (norms * (l1 / n)).index_select(0, active.latents)
        size = torch.dot(per_latent, norms).item()
    else:
        slope, size = _power(values * norms.index_select(0, active.latents), p)
        at_entries += slope * (norms * (l1 / n)).index_select(0, active.latents)
        per_latent = active.per_latent(slope * values)
    (g_decoder,) = active.transposed_times(values, back)
    (g_encoder,) = active.transposed_times(at_entries, centred)
    gradients = Weights(g_encoder, active.per_latent(at_entries), g_decoder, back.sum(0))
    _finish(weights, gradients, back, x, transcoding=target is not None)
    return _penalised(weights, gradients, mse, per_latent, norms, l1 / n, size, active.fired, len(active))


def _standard_dense(
    weights: Weights, centred: Tensor, goal: Tensor, norms: Tensor, l1: float, p: float, *, transcoding: bool
) -> Outcome:
    """Block by block, so that latents stay in the processor's cache between the products that read them."""
    n, rows = len(goal), block_rows(len(norms))
    g = Weights.of({name: torch.zeros_like(tensor) for name, tensor in weights.named().items()})
    per_latent, fired = torch.zeros_like(norms), torch.zeros(len(norms), dtype=torch.bool)
    slope = norms * (l1 / n)
    mse, size, n_active = 0.0, 0.0, 0
    for block, of_block in zip(torch.split(goal, rows), torch.split(centred, rows), strict=True):
        z = torch.addmm(weights.b_enc, of_block, weights.encoder.T).relu_()
        back = torch.addmm(weights.b_dec, z, weights.decoder).sub_(block)
        mse += back.square().sum().item() / n
        back *= 2.0 / n
        if p == 1.0:
            g_pre = torch.addmm(slope, back, weights.decoder.T)
            sums = pulled = z.sum(0)
        else:
            steep, part = _power(z * norms, p)
            size += part
            g_pre = torch.addmm(steep * slope, back, weights.decoder.T)
            sums, pulled = z.sum(0), (steep * z).sum(0)
        g_pre = torch.ops.aten.threshold_backward(g_pre, z, 0)
        g.decoder.addmm_(z.T, back)
        g.encoder.addmm_(g_pre.T, of_block)
        g.b_enc += g_pre.sum(0)
        g.b_dec += back.sum(0)
        if "skip" in g.extra:
            g.extra["skip"].addmm_(back.T, of_block)
        per_latent += pulled
        fired |= sums > 0
        n_active += int(torch.count_nonzero(z))
    if not transcoding:
        g.b_dec -= g.b_enc @ weights.encoder
    if p == 1.0:
        size = torch.dot(per_latent, norms).item()
    return _penalised(weights, g, mse, per_latent, norms, l1 / n, size, fired, n_active)


def _ends(weights: Weights, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
    """What is encoded, and what latents and decoder bias are to predict."""
    if target is None:
        return x - weights.b_dec, x
    return x, target - x @ weights.extra["skip"].T if "skip" in weights.extra else target


def _finish(weights: Weights, g: Weights, back: Tensor, x: Tensor, *, transcoding: bool) -> None:
    """The decoder bias's way through the encoder, or the gradient of a transcoder's skip connection."""
    if not transcoding:
        g.b_dec -= g.b_enc @ weights.encoder
    elif "skip" in weights.extra:
        g.extra["skip"] = back.T @ x


def _power(size: Tensor, p: float) -> tuple[Tensor, float]:
    """Slope of (size + eps)^p, and the sum of that over all, less what zeros have."""
    raised = (size + P_EPS).pow(p - 1.0)
    total = ((size + P_EPS) * raised - P_EPS**p).sum().item()
    return raised.mul_(p), total


def _penalised(
    weights: Weights, g: Weights, mse: float, per_latent: Tensor, norms: Tensor, l1: float, size: float,
    fired: Tensor, n_active: int,
) -> Outcome:  # fmt: skip
    """Add the penalty's pull on decoder norms."""
    g.decoder += (per_latent * l1 / norms.clamp_min(1e-30)).unsqueeze(1) * weights.decoder
    penalty = l1 * size
    return Outcome(mse + penalty, {"mse_loss": mse, "l1_loss": penalty}, g, fired, n_active)


def top(
    weights: Weights,
    x: Tensor,
    k: float,
    dead: Tensor,
    *,
    of_batch: bool = False,
    signed: bool = False,
    widths: tuple[int, ...] = (),
    aux: float = 1.0,
    target: Tensor | None = None,
) -> Outcome:
    """TopK and its kin, with AuxK: dead latents are to predict what the live ones leave over.

    With s = ||w_i|| and u = w_i/s, latent i is z = s (E_i c + b_i) where it is selected, and x^ = sum z u. So with
    back = dL/dx^ as in ``standard``: dL/dz = <back, u> at the selected entries; of the scaled encoder s E_i it is g_E =
    sum dz c, of the scaled bias g_b = sum dz, of the unit row g_u = sum z back. Then dL/dE_i = s g_E, dL/db_i = s g_b,
    and since ds/dw = u and du/dw = (1 - u u^T)/s: dL/dw_i = (g_u - <g_u, u> u)/s + (<g_E, E_i> + g_b b_i) u. Selection
    has no gradient. A Matryoshka level's latents are in its own error and in all wider ones: their ``back`` is the sum
    of those.

    Args:
        k: latents per row.
        dead: (F,) bool.
        of_batch: k is a mean over the batch (BatchTopK), not a number for each row.
        signed: the largest by magnitude, with their signs (AbsTopK).
        widths: numbers of first latents that are to reconstruct by themselves as well, rising, F excluded (Matryoshka).
        aux: coefficient of AuxK.
        target: of a transcoder; without, x itself.
    """
    n = len(x)
    centred, goal = _ends(weights, x, target)
    norms = weights.decoder.norm(dim=1)
    unit = weights.decoder / norms.unsqueeze(1)
    scaled, bias = weights.encoder * norms.unsqueeze(1), weights.b_enc * norms
    if of_batch:
        active, values = encode_top_of_batch(centred, scaled, bias, int(k * n))
    else:
        active, values = encode_top(centred, scaled, bias, int(k), signed=signed)
        values = values if signed else values.relu_()
    levels = _levels(active, values, unit, widths)
    made, residuals = weights.b_dec, []
    for level in levels:
        made = level.active.times(level.values, level.unit) + made
        residuals.append(made - goal)
    errors = [residual.square().sum().item() / n for residual in residuals]
    at_entries, g_unit, back = torch.empty_like(values), torch.empty_like(unit), torch.zeros_like(goal)
    for level, residual in zip(reversed(levels), reversed(residuals), strict=True):
        back += residual * (2.0 / n)  # a level's latents are in its own error and in those of all wider ones
        found = level.active.products(back, level.unit)
        if len(levels) == 1:
            at_entries = found
        else:
            at_entries[level.entries] = found
        (g_unit[level.latents],) = level.active.transposed_times(level.values, back)
    live = values != 0 if signed else values > 0
    if not signed:
        at_entries *= live
    (g_scaled,) = active.transposed_times(at_entries, centred)
    g_bias = active.per_latent(at_entries)
    parts = {"mse_loss": errors[-1], "auxiliary_reconstruction_loss": 0.0}
    numbers = dead.nonzero().flatten()
    if len(numbers) and aux:
        k_aux = goal.shape[1] // 2
        share = aux * min(len(numbers) / max(k_aux, 1), 1.0)
        of_dead = (scaled[numbers], bias[numbers], unit[numbers])
        part = _revive(of_dead, centred, residuals[-1], min(k_aux, len(numbers)), share, signed=signed)
        parts["auxiliary_reconstruction_loss"] = part[0]
        for whole, share_of in zip((g_scaled, g_bias, g_unit), part[1:], strict=True):
            whole.index_add_(0, numbers, share_of)
    parts |= {f"inner_mse_loss_{width}": error for width, error in zip(widths, errors[:-1], strict=True)}
    g_norms = (g_scaled * weights.encoder).sum(1) + g_bias * weights.b_enc
    g_decoder = (g_unit - (g_unit * unit).sum(1, keepdim=True) * unit) / norms.unsqueeze(1)
    g_decoder += g_norms.unsqueeze(1) * unit
    gradients = Weights(g_scaled * norms.unsqueeze(1), g_bias * norms, g_decoder, back.sum(0))
    _finish(weights, gradients, back, x, transcoding=target is not None)
    if bool(live.all()):
        fired, n_active, least = active.fired, len(active), values.min().item() if len(active) else 0.0
    else:
        fired = torch.zeros(len(norms), dtype=torch.bool).index_fill_(0, active.latents[live].long(), True)
        n_active = int(live.sum())
        least = values[live].min().item() if n_active else 0.0
    return Outcome(sum(parts.values()), parts, gradients, fired, n_active, {"least_active": least})


@dataclass(frozen=True)
class _Level:
    """Latents of one nested prefix that the narrower ones do not have."""

    active: Active
    """Their entries, latents counted from the first of them."""
    values: Tensor
    """(A of the level,)."""
    entries: Tensor
    """Which of all entries they are."""
    latents: slice
    unit: Tensor
    """(F of the level, D): their decoder rows."""


def _levels(active: Active, values: Tensor, unit: Tensor, widths: tuple[int, ...]) -> list[_Level]:
    if not widths:
        return [_Level(active, values, torch.empty(0), slice(0, len(unit)), unit)]
    levels = []
    for low, high in zip((0, *widths), (*widths, len(unit)), strict=True):
        chosen = np.flatnonzero((active.latent >= low) & (active.latent < high))
        flat = active.row[chosen].astype(np.int64) * (high - low) + (active.latent[chosen] - low)
        entries = torch.from_numpy(chosen)
        part = Active(active.n_rows, high - low, flat)
        levels.append(_Level(part, values.index_select(0, entries), entries, slice(low, high), unit[low:high]))
    return levels


def plugged(
    weights: Weights,
    x: Tensor,
    latents_of: Callable[[Weights, Tensor], Tensor],
    terms: Mapping[str, tuple[Regulariser, float]],
    *,
    reconstruct: bool,
) -> Outcome:
    """Whatever has no written-out gradient, by autograd.

    Args:
        latents_of: (weights, centred rows) -> (B, F).
        terms: name -> regulariser and coefficient.
        reconstruct: whether the mean squared error is part of the loss.
    """
    with torch.enable_grad():
        leaves = Weights.of({name: tensor.detach().requires_grad_() for name, tensor in weights.named().items()})
        z = latents_of(leaves, x - leaves.b_dec)
        losses = {f"{name}_loss": coefficient * rule(z, leaves.decoder) for name, (rule, coefficient) in terms.items()}
        if reconstruct:
            error = torch.addmm(leaves.b_dec, z, leaves.decoder) - x
            losses = {"mse_loss": error.square().sum() / len(x)} | losses
        total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
        found = torch.autograd.grad(total, leaves.tensors(), allow_unused=True)
    gradients = {
        name: torch.zeros_like(tensor) if gradient is None else gradient
        for (name, tensor), gradient in zip(leaves.named().items(), found, strict=True)
    }
    fired = z.detach() != 0
    parts = {name: loss.item() for name, loss in losses.items()}
    return Outcome(sum(parts.values()), parts, Weights.of(gradients), fired.any(0), int(fired.sum()))


def latents_of(architecture: str, k: float) -> Callable[[Weights, Tensor], Tensor]:
    """Dense latents, differentiable: what a regulariser sees. Selection and thresholds are not differentiated."""

    def dense(weights: Weights, centred: Tensor) -> Tensor:
        pre = torch.addmm(weights.b_enc, centred, weights.encoder.T)
        match architecture:
            case "standard" | "p_anneal":
                return pre.relu()
            case "gated":
                of_size = (pre - weights.b_enc) * weights.extra["r_mag"].exp() + weights.extra["b_mag"]
                return of_size.relu() * (pre > 0).float()
            case "jumprelu":
                return pre * (pre > weights.extra["threshold"]).float()
        norms = weights.decoder.norm(dim=1)
        with torch.no_grad():
            of_batch = architecture in ("batchtopk", "matryoshka")
            sizes = (pre * norms).abs() if architecture == "abstopk" else pre * norms
            scaled = sizes.reshape(1, -1) if of_batch else sizes
            places = scaled.topk(int(k * (len(pre) if of_batch else 1)), dim=-1, sorted=False).indices
            mask = torch.zeros_like(scaled).scatter_(-1, places, 1.0).reshape(pre.shape)
        # Without the decoder's norm, which regularisers weigh latents by themselves.
        return (pre if architecture == "abstopk" else pre.relu()) * mask

    return dense


def _revive(
    dead: tuple[Tensor, Tensor, Tensor],
    centred: Tensor,
    residual: Tensor,
    k: int,
    coefficient: float,
    *,
    signed: bool,
) -> tuple[float, Tensor, Tensor, Tensor]:
    """AuxK: loss, and gradients of the scaled encoder, its bias and the unit decoder of the dead latents.

    Args:
        dead: those three, of the dead latents only.
        residual: (B, D) x^ - x of the live latents; not differentiated.
    """
    scaled, bias, unit = dead
    n = len(centred)
    if k == len(bias):
        pre = torch.addmm(bias, centred, scaled.T)
        error = torch.addmm(residual, pre, unit)
        back = error * (2.0 * coefficient / n)
        g_pre = back @ unit.T
        found = g_pre.T @ centred, g_pre.sum(0), pre.T @ back
    else:
        active, values = encode_top(centred, scaled, bias, k, signed=signed)
        error = active.times(values, unit).add_(residual)
        back = error * (2.0 * coefficient / n)
        at_entries = active.products(back, unit)
        (g_scaled,) = active.transposed_times(at_entries, centred)
        (g_unit,) = active.transposed_times(values, back)
        found = g_scaled, active.per_latent(at_entries), g_unit
    return coefficient * error.square().sum().item() / n, *found
