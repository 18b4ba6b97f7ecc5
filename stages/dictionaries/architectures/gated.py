"""Loss and gradients of gated and JumpReLU dictionaries, written out; the losses are SAELens's own (tested).

- gated (2404.16014): z_i = 1[g_i > 0] relu(g'_i e^r_i + m_i), with g the gate's pre-activation and g' that without its
  bias; mean_n ||x - x^||^2 + l1 * mean_n sum_i relu(g_i) ||w_i|| + mean_n ||x - relu(g) W - b||^2
- jumprelu (2407.14435) with a target L0 (Gemma Scope 2): z_i = pre_i 1[pre_i > t_i];
  mean_n ||x - x^||^2 + c * mean_n 2 / target * (L0_n - target)^2. The step has no slope: within half a bandwidth of the
  threshold its gradient is estimated by 1 / bandwidth, and goes to the threshold alone.

Both need only entries where the gate is open, or nearly: where those are few, everything after the encoder is sparse.

Shape legend: B = rows of the batch, D = width, F = latents, A = entries looked at.
"""

import numpy as np
import torch
from torch import Tensor

from stages.dictionaries.architectures.objectives import (
    SPARSE_BELOW,
    SPARSE_FROM,
    Outcome,
    Weights,
)
from stages.dictionaries.architectures.sparse import block_rows, encode_above

__all__ = ["gated", "jump"]


def gated(weights: Weights, x: Tensor, l1: float) -> Outcome:
    """One step of a gated dictionary; ``weights.b_enc`` is the gate's bias, "r_mag" and "b_mag" the magnitude's.

    With q = E (x - b_dec), gate pre-activation q + b_enc, size pre-activation h = q e^r + m, z = relu(h) [gate > 0]:
    dL/dh = <back, w_i> where z > 0, so dL/dm = dL/dh, dL/dr = dL/dh q e^r and dL/dq has the part dL/dh e^r. The gate
    itself (a step) has no gradient; it learns from the penalty and from its own error, whose dL/dx^ is ``by_gate``:
    dL/dgate = <by_gate, w_i> + l1/n ||w_i|| where it is open. Decoder rows and b_dec get both errors' parts, as in
    ``standard``.
    """
    n, centred = len(x), x - weights.b_dec
    norms, scale = weights.decoder.norm(dim=1), weights.extra["r_mag"].exp()
    b_mag = weights.extra["b_mag"]
    sparse = n * len(norms) >= SPARSE_FROM
    found = encode_above(centred, weights.encoder, weights.b_enc, SPARSE_BELOW) if sparse else None
    g = _zeros(weights)
    if found is not None:
        active, gate = found
        at = active.latents
        pre = gate - weights.b_enc.index_select(0, at)
        scale_at = scale.index_select(0, at)
        z = (pre * scale_at).add_(b_mag.index_select(0, at)).relu_()
        back = active.times(z, weights.decoder).add_(weights.b_dec).sub_(x)
        by_gate = active.times(gate, weights.decoder).add_(weights.b_dec).sub_(x)
        mse, aux = back.square().sum().item() / n, by_gate.square().sum().item() / n
        back *= 2.0 / n
        by_gate *= 2.0 / n
        g_size = active.products(back, weights.decoder).mul_(z > 0)
        g_gate = active.products(by_gate, weights.decoder).add_((norms * (l1 / n)).index_select(0, at))
        through = g_size * scale_at
        g.extra["b_mag"], g.extra["r_mag"] = active.per_latent(g_size), active.per_latent(through * pre)
        g.b_enc = active.per_latent(g_gate)
        (g.encoder,) = active.transposed_times(through + g_gate, centred)
        (one,), (other,) = active.transposed_times(z, back), active.transposed_times(gate, by_gate)
        g.decoder = one.add_(other)
        g.b_dec = back.sum(0) + by_gate.sum(0)
        per_latent, sizes = active.per_latent(gate), active.per_latent(z)
        n_active = int(torch.count_nonzero(z))
    else:
        mse, aux, n_active = 0.0, 0.0, 0
        per_latent, sizes = torch.zeros_like(norms), torch.zeros_like(norms)
        slope = norms * (l1 / n)
        for block, of_block in _blocks(x, centred, len(norms)):
            pre = of_block @ weights.encoder.T
            gate = (pre + weights.b_enc).relu_()
            is_open = gate > 0
            z = torch.addcmul(b_mag, pre, scale).relu_().mul_(is_open)
            back = torch.addmm(weights.b_dec, z, weights.decoder).sub_(block)
            by_gate = torch.addmm(weights.b_dec, gate, weights.decoder).sub_(block)
            mse += back.square().sum().item() / n
            aux += by_gate.square().sum().item() / n
            back *= 2.0 / n
            by_gate *= 2.0 / n
            g_size = (back @ weights.decoder.T).mul_(z > 0)
            g_gate = torch.addmm(slope, by_gate, weights.decoder.T).mul_(is_open)
            through = g_size * scale
            g.extra["b_mag"] += g_size.sum(0)
            g.extra["r_mag"] += (through * pre).sum(0)
            g.b_enc += g_gate.sum(0)
            g.encoder.addmm_(through.add_(g_gate).T, of_block)
            g.decoder.addmm_(z.T, back).addmm_(gate.T, by_gate)
            g.b_dec += back.sum(0) + by_gate.sum(0)
            per_latent += gate.sum(0)
            sizes += z.sum(0)
            n_active += int(torch.count_nonzero(z))
    # Sum over rows of the gradient of encoder^T (x - b_dec): the bias of the gate and the scaled one of the magnitude.
    g.b_dec -= (g.b_enc + g.extra["b_mag"] * scale) @ weights.encoder
    g.decoder += (per_latent * (l1 / n) / norms.clamp_min(1e-30)).unsqueeze(1) * weights.decoder
    penalty = l1 * torch.dot(per_latent, norms).item() / n
    parts = {"mse_loss": mse, "l1_loss": penalty, "auxiliary_reconstruction_loss": aux}
    return Outcome(sum(parts.values()), parts, g, sizes > 0, n_active)


def jump(weights: Weights, x: Tensor, target_l0: float, coefficient: float, bandwidth: float) -> Outcome:
    """One step of a JumpReLU dictionary; "threshold" is among ``weights.extra``.

    z = pre [pre > t], so dz/dpre = [pre > t]. The step has no slope in t; in its place stands that of a window of width
    w (2407.14435, section 3): d[pre > t]/dt = -1/w where |pre - t| < w/2. Hence dL/dt = -1/w sum over those entries of
    (t <back, w_i> + dP/dl0), where the penalty P = 2 c/t0 mean_n (l0_n - t0)^2 has dP/dl0_n = 4 c/t0/n (l0_n - t0).

    Args:
        target_l0: latents per row to aim at.
        coefficient: of the penalty.
        bandwidth: width of the window around a threshold in which the step has a slope.
    """
    n, centred = len(x), x - weights.b_dec
    threshold = weights.extra["threshold"]
    sparse = n * len(threshold) >= SPARSE_FROM
    floor = threshold - 0.5 * bandwidth
    found = encode_above(centred, weights.encoder, weights.b_enc, SPARSE_BELOW, floor) if sparse else None
    g = _zeros(weights)
    if found is not None:
        active, pre = found
        t_at = threshold.index_select(0, active.latents)
        is_open = pre > t_at
        z = pre * is_open
        back = active.times(z, weights.decoder).add_(weights.b_dec).sub_(x)
        mse = back.square().sum().item() / n
        back *= 2.0 / n
        counts = np.bincount(active.row, weights=is_open.numpy(), minlength=n).astype(np.float32)
        excess = torch.from_numpy(counts) - target_l0
        of_row = (excess * (4.0 * coefficient / target_l0 / n)).index_select(0, torch.from_numpy(active.row).long())
        g_z = active.products(back, weights.decoder)
        near = ((pre - t_at) / bandwidth).abs_() < 0.5
        g.extra["threshold"] = active.per_latent(torch.addcmul(of_row, t_at, g_z).mul_(near)).div_(-bandwidth)
        g_z *= is_open
        g.b_enc = active.per_latent(g_z)
        (g.encoder,) = active.transposed_times(g_z, centred)
        (g.decoder,) = active.transposed_times(z, back)
        g.b_dec = back.sum(0)
        fired, n_active, penalty = active.per_latent(is_open.float()) > 0, int(is_open.sum()), excess.square().sum()
    else:
        mse, n_active, penalty = 0.0, 0, torch.zeros(())
        fired = torch.zeros(len(threshold), dtype=torch.bool)
        for block, of_block in _blocks(x, centred, len(threshold)):
            pre = torch.addmm(weights.b_enc, of_block, weights.encoder.T)
            is_open = pre > threshold
            z = pre * is_open
            back = torch.addmm(weights.b_dec, z, weights.decoder).sub_(block)
            mse += back.square().sum().item() / n
            back *= 2.0 / n
            excess = is_open.sum(1).float() - target_l0
            g_z = back @ weights.decoder.T
            near = ((pre - threshold) / bandwidth).abs_() < 0.5
            of_row = (excess * (4.0 * coefficient / target_l0 / n)).unsqueeze(1)
            g.extra["threshold"] -= torch.addcmul(of_row, threshold, g_z).mul_(near).sum(0) / bandwidth
            g_z *= is_open
            g.b_enc += g_z.sum(0)
            g.encoder.addmm_(g_z.T, of_block)
            g.decoder.addmm_(z.T, back)
            g.b_dec += back.sum(0)
            fired |= is_open.any(0)
            n_active += int(is_open.sum())
            penalty = penalty + excess.square().sum()
    g.b_dec -= g.b_enc @ weights.encoder
    parts = {"mse_loss": mse, "l0_loss": coefficient * 2.0 / target_l0 * penalty.item() / n}
    return Outcome(sum(parts.values()), parts, g, fired, n_active)


def _zeros(weights: Weights) -> Weights:
    return Weights.of({name: torch.zeros_like(tensor) for name, tensor in weights.named().items()})


def _blocks(x: Tensor, centred: Tensor, n_latents: int) -> "zip[tuple[Tensor, Tensor]]":
    rows = block_rows(n_latents)
    return zip(torch.split(x, rows), torch.split(centred, rows), strict=True)
