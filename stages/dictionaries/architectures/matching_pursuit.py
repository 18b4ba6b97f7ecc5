"""Matching pursuit (2506.05239): latents are chosen one after the other, each the best for what the others leave over.

    r_0 = x - b;  i_t = argmax_i <r_{t-1}, w_i>;  v_t = relu(<r_{t-1}, w_{i_t}>);  r_t = r_{t-1} - v_t w_{i_t}

A row stops when its residual is below a threshold, when the latent chosen was chosen before, or when nothing points its
way. The reconstruction's error is the last residual, so the loss is mean_n ||r_T||^2, as SAELens has it (tested), and
its gradient runs back along the choices, an entry per row and iteration: no (rows, latents) matrix but the products
that choose. There is no encoder.

Shape legend: B = rows of the batch, D = width, F = latents, T = iterations.
"""

import numpy as np
import torch
from torch import Tensor

from stages.dictionaries.architectures.objectives import Outcome, Weights

__all__ = ["choose", "pursue"]


def choose(
    rows: Tensor, decoder: Tensor, iterations: int, threshold: float
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """The choices of each iteration, and the last residual.

    Args:
        rows: (B, D), the bias subtracted.
        decoder: (F, D).
        iterations: T, at most.
        threshold: norm of the residual below which a row stops.

    Returns:
        Per iteration the numbers of the rows still at it, the latents they chose and their values; (B, D) residuals.
    """
    residual = rows.clone()
    going = torch.arange(len(rows))
    chosen = torch.full((len(rows), iterations), -1)
    steps = []
    for t in range(iterations):
        at = residual if len(going) == len(rows) else residual.index_select(0, going)
        latents = (at @ decoder.T).argmax(1)
        vectors = decoder.index_select(0, latents)
        values = (at * vectors).sum(1).relu_()
        left = torch.addcmul(at, values.unsqueeze(1), vectors, value=-1.0)
        residual.index_copy_(0, going, left)
        steps.append((going, latents, values))
        # Nothing new in the support: chosen before, or with value 0.
        before = (chosen.index_select(0, going)[:, :t] == latents.unsqueeze(1)).any(1)
        chosen[going, t] = torch.where(values > 0, latents, -1)
        stays = (values > 0) & ~before
        if threshold > 0:
            stays &= left.norm(dim=1) >= threshold
        going = going[stays]
        if not len(going):
            break
    return steps, residual


def pursue(weights: Weights, x: Tensor, iterations: int, threshold: float) -> Outcome:
    """One step: loss and gradients of decoder and bias; the encoder's are empty.

    Backwards through r_t = r - v w, with r = r_{t-1}, w the chosen row, v = relu(<r, w>), up = dL/dr_t and slope =
    -<up, w> [v > 0], which is dL/d<r, w>, the choice adds slope r - v up to dL/dw, and dL/dr = up + slope w. r itself
    is r_t + v w, so no residual but the last is kept. r_0 = x - b, so dL/db = -sum dL/dr_0.
    """
    n, decoder = len(x), weights.decoder
    centred = x - weights.b_dec
    steps, residual = choose(centred, decoder, iterations, threshold)
    loss = residual.square().sum().item() / n
    back = residual * (2.0 / n)
    g_decoder = torch.zeros_like(decoder)
    left = residual
    for going, latents, values in reversed(steps):
        vectors, up = decoder.index_select(0, latents), back.index_select(0, going)
        at = torch.addcmul(left.index_select(0, going), values.unsqueeze(1), vectors)  # before this choice
        slope = (up * vectors).sum(1).mul_(values > 0).neg_().unsqueeze(1)
        g_decoder.index_add_(0, latents, torch.addcmul(at * slope, values.unsqueeze(1), up, value=-1.0))
        back.index_copy_(0, going, torch.addcmul(up, slope, vectors))
        if left is residual:
            left = residual.clone()
        left.index_copy_(0, going, at)
    places = torch.cat([going * len(decoder) + latents for going, latents, values in steps])
    live = np.unique(places[torch.cat([values for _, _, values in steps]) > 0].numpy())
    fired = torch.zeros(len(decoder), dtype=torch.bool)
    fired[torch.from_numpy(live % len(decoder))] = True
    gradients = Weights(torch.empty(0), torch.empty(0), g_decoder, -back.sum(0))
    return Outcome(loss, {"mse_loss": loss}, gradients, fired, len(live))
