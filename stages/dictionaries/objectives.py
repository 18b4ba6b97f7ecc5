"""Loss and gradients of one training step, written out: no graph is built and nothing is computed twice.

The losses are SAELens's own (tested: same weights in, same loss and gradients out):

- standard: mean_n ||x - x^||^2 + l1 * mean_n sum_i z_i ||w_i||     (Anthropic's update of April 2024)
- topk, batchtopk: mean_n ||x - x^||^2 + AuxK; latents are scaled by decoder norms before selection (2406.04093)

What is saved against a graph: the gradient of the decoder bias through the encoder is (sum_n dL/dpre) @ W_enc^T, a
vector times a matrix, where autograd takes a whole matrix product; and where few latents are active, everything after
the encoder is sparse.

Weights are held as rows: encoder (F, D), decoder (F, D).
Shape legend: B = rows of the batch, D = width, F = latents.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stages.dictionaries.plugs import Regulariser
from stages.dictionaries.sparse import block_rows, encode_positive, encode_top, encode_top_of_batch

__all__ = ["SPARSE_BELOW", "Outcome", "Weights", "latents_of", "plugged", "standard", "top"]

SPARSE_BELOW = 0.12
"""Share of active entries below which the sparse products of a ReLU step beat the dense ones (measured; d = 128)."""
SPARSE_FROM = 32_768
"""Entries of a batch (B * F) below which the overhead of sparse products is larger than what they save."""


@dataclass
class Weights:
    encoder: Tensor
    """(F, D): rows are the columns of W_enc."""
    b_enc: Tensor
    """(F,)."""
    decoder: Tensor
    """(F, D)."""
    b_dec: Tensor
    """(D,)."""

    def tensors(self) -> list[Tensor]:
        return [self.encoder, self.b_enc, self.decoder, self.b_dec]


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


def standard(weights: Weights, x: Tensor, l1: float) -> Outcome:
    """ReLU with an L1 penalty weighted by decoder norms."""
    n = len(x)
    centred = x - weights.b_dec
    norms = weights.decoder.norm(dim=1)
    sparse = len(x) * len(norms) >= SPARSE_FROM
    found = encode_positive(centred, weights.encoder, weights.b_enc, SPARSE_BELOW) if sparse else None
    if found is None:
        return _standard_dense(weights, x, centred, norms, l1)
    active, values = found
    per_latent = active.per_latent(values)
    residual = active.times(values, weights.decoder).add_(weights.b_dec).sub_(x)
    mse = residual.square().sum().item() / n
    back = residual.mul_(2.0 / n)
    at_entries = active.products(back, weights.decoder)
    at_entries += (norms * (l1 / n)).index_select(0, active.latents)
    (g_decoder,) = active.transposed_times(values, back)
    (g_encoder,) = active.transposed_times(at_entries, centred)
    gradients = Weights(g_encoder, active.per_latent(at_entries), g_decoder, back.sum(0))
    return _penalised(weights, gradients, mse, per_latent, norms, l1, n, active.fired, len(active))


def _standard_dense(weights: Weights, x: Tensor, centred: Tensor, norms: Tensor, l1: float) -> Outcome:
    """Block by block, so that latents stay in the processor's cache between the products that read them."""
    n, rows = len(x), block_rows(len(norms))
    g = Weights(*(torch.zeros_like(tensor) for tensor in weights.tensors()))
    per_latent, fired = torch.zeros_like(norms), torch.zeros(len(norms), dtype=torch.bool)
    slope = norms * (l1 / n)
    mse, n_active = 0.0, 0
    for block, of_block in zip(torch.split(x, rows), torch.split(centred, rows), strict=True):
        z = torch.addmm(weights.b_enc, of_block, weights.encoder.T).relu_()
        back = torch.addmm(weights.b_dec, z, weights.decoder).sub_(block)
        mse += back.square().sum().item() / n
        back *= 2.0 / n
        g_pre = torch.addmm(slope, back, weights.decoder.T)
        g_pre = torch.ops.aten.threshold_backward(g_pre, z, 0)
        g.decoder.addmm_(z.T, back)
        g.encoder.addmm_(g_pre.T, of_block)
        g.b_enc += g_pre.sum(0)
        g.b_dec += back.sum(0)
        sums = z.sum(0)
        per_latent += sums
        fired |= sums > 0
        n_active += int(torch.count_nonzero(z))
    return _penalised(weights, g, mse, per_latent, norms, l1, n, fired, n_active)


def _penalised(
    weights: Weights, g: Weights, mse: float, per_latent: Tensor, norms: Tensor, l1: float, n: int, fired: Tensor,
    n_active: int,
) -> Outcome:  # fmt: skip
    """Add the penalty's pull on decoder norms, and the decoder bias's way through the encoder."""
    g.decoder += (per_latent * (l1 / n) / norms.clamp_min(1e-30)).unsqueeze(1) * weights.decoder
    g.b_dec -= g.b_enc @ weights.encoder
    penalty = l1 * torch.dot(per_latent, norms).item() / n
    return Outcome(mse + penalty, {"mse_loss": mse, "l1_loss": penalty}, g, fired, n_active)


def top(weights: Weights, x: Tensor, k: float, dead: Tensor, *, of_batch: bool, aux: float = 1.0) -> Outcome:
    """TopK (``of_batch`` false) and BatchTopK, with AuxK: dead latents are to predict what the live ones leave over.

    Args:
        dead: (F,) bool.
        aux: coefficient of AuxK.
    """
    n, width = x.shape
    centred = x - weights.b_dec
    norms = weights.decoder.norm(dim=1)
    unit = weights.decoder / norms.unsqueeze(1)
    scaled, bias = weights.encoder * norms.unsqueeze(1), weights.b_enc * norms
    if of_batch:
        active, values = encode_top_of_batch(centred, scaled, bias, int(k * n))
    else:
        active, values = encode_top(centred, scaled, bias, int(k))
        values.relu_()
    residual = active.times(values, unit).add_(weights.b_dec).sub_(x)
    mse = residual.square().sum().item() / n
    back = residual * (2.0 / n)
    at_entries = active.products(back, unit)
    at_entries *= values > 0
    (g_unit,) = active.transposed_times(values, back)
    (g_scaled,) = active.transposed_times(at_entries, centred)
    g_bias = active.per_latent(at_entries)
    parts = {"mse_loss": mse, "auxiliary_reconstruction_loss": 0.0}
    numbers = dead.nonzero().flatten()
    if len(numbers) and aux:
        k_aux = width // 2
        share = aux * min(len(numbers) / max(k_aux, 1), 1.0)
        part = _revive(
            (scaled[numbers], bias[numbers], unit[numbers]), centred, residual, min(k_aux, len(numbers)), share
        )
        parts["auxiliary_reconstruction_loss"] = part[0]
        for whole, share_of in zip((g_scaled, g_bias, g_unit), part[1:], strict=True):
            whole.index_add_(0, numbers, share_of)
    g_norms = (g_scaled * weights.encoder).sum(1) + g_bias * weights.b_enc
    g_decoder = (g_unit - (g_unit * unit).sum(1, keepdim=True) * unit) / norms.unsqueeze(1)
    g_decoder += g_norms.unsqueeze(1) * unit
    g_encoder, g_b_enc = g_scaled * norms.unsqueeze(1), g_bias * norms
    g_b_dec = back.sum(0) - g_b_enc @ weights.encoder
    positive = values > 0
    if bool(positive.all()):
        fired, n_active, least = active.fired, len(active), values.min().item() if len(active) else 0.0
    else:
        fired = torch.zeros(len(norms), dtype=torch.bool).index_fill_(0, active.latents[positive].long(), True)
        n_active = int(positive.sum())
        least = values[positive].min().item() if n_active else 0.0
    gradients = Weights(g_encoder, g_b_enc, g_decoder, g_b_dec)
    return Outcome(sum(parts.values()), parts, gradients, fired, n_active, {"least_active": least})


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
        leaves = Weights(*(tensor.detach().requires_grad_() for tensor in weights.tensors()))
        z = latents_of(leaves, x - leaves.b_dec)
        losses = {f"{name}_loss": coefficient * rule(z, leaves.decoder) for name, (rule, coefficient) in terms.items()}
        if reconstruct:
            error = torch.addmm(leaves.b_dec, z, leaves.decoder) - x
            losses = {"mse_loss": error.square().sum() / len(x)} | losses
        total = torch.stack([loss.reshape(()) for loss in losses.values()]).sum()
        found = torch.autograd.grad(total, leaves.tensors(), allow_unused=True)
    gradients = (
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(leaves.tensors(), found, strict=True)
    )
    fired = z.detach() != 0
    parts = {name: loss.item() for name, loss in losses.items()}
    return Outcome(sum(parts.values()), parts, Weights(*gradients), fired.any(0), int(fired.sum()))


def latents_of(architecture: str, k: float) -> Callable[[Weights, Tensor], Tensor]:
    """Dense latents, differentiable: what a regulariser sees. Selection is not differentiated."""

    def dense(weights: Weights, centred: Tensor) -> Tensor:
        pre = torch.addmm(weights.b_enc, centred, weights.encoder.T)
        if architecture == "standard":
            return pre.relu()
        norms = weights.decoder.norm(dim=1)
        with torch.no_grad():
            n = len(pre) if architecture == "batchtopk" else 1
            scaled = (pre * norms).reshape(-1, pre.shape[1]) if n == 1 else (pre * norms).reshape(1, -1)
            places = scaled.topk(int(k * n), dim=-1, sorted=False).indices
            mask = torch.zeros_like(scaled).scatter_(-1, places, 1.0).reshape(pre.shape)
        # Without the decoder's norm, which regularisers weigh latents by themselves.
        return pre.relu() * mask

    return dense


def _revive(
    dead: tuple[Tensor, Tensor, Tensor], centred: Tensor, residual: Tensor, k: int, coefficient: float
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
        active, values = encode_top(centred, scaled, bias, k)
        error = active.times(values, unit).add_(residual)
        back = error * (2.0 * coefficient / n)
        at_entries = active.products(back, unit)
        (g_scaled,) = active.transposed_times(at_entries, centred)
        (g_unit,) = active.transposed_times(values, back)
        found = g_scaled, active.per_latent(at_entries), g_unit
    return coefficient * error.square().sum().item() / n, *found
