"""Transcoders and skip transcoders: from one hook point to another (2406.11944, 2501.18823).

    y^ = relu(x W_enc + b_enc) W_dec + b_dec  [+ x W_skip^T]

ReLU with the L1 penalty of ``objectives.standard``. SAELens has the classes for use, not for training; what is trained
here loads with ``SAE.load_from_disk``. Caches of one target are aligned row by row, so pairs cost nothing.

Shape legend: N = rows, D = width of the input, O = width of the output, F = latents.
"""

import math
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from stages.activations import ActivationCache, BatchOrder
from stages.activations.order import generator_for
from stages.dictionaries.trainer import DIVERGED, MAX_NORM, Recipe
from stages.dictionaries.training import check_rows, scale_of
from stages.errors import UserError

__all__ = ["aligned", "train_transcoder", "transcode"]


def aligned(one: ActivationCache, other: ActivationCache) -> tuple[Tensor, Tensor]:
    """Activations of two hook points, row by row of the same example and position.

    Raises:
        UserError: the caches are of different targets or splits, or their rows do not belong together.
    """
    first, second = one.read(), other.read()
    same = (one.manifest.target_digest, one.manifest.split) == (other.manifest.target_digest, other.manifest.split)
    if (
        not same
        or len(first.example) != len(second.example)
        or not (torch.equal(first.example, second.example) and torch.equal(first.position, second.position))
    ):
        raise UserError(
            f"rows of {one.manifest.hook} ({one.manifest.target}, {one.manifest.split}) and {other.manifest.hook}"
            f" ({other.manifest.target}, {other.manifest.split}) do not belong to the same examples and positions:"
            " choose two hook points of one target with the same positions"
        )
    return first.acts, second.acts


def train_transcoder(
    inputs: Tensor, outputs: Tensor, recipe: Recipe, seed: int, *, skip: bool = False
) -> dict[str, Any]:
    """Train one transcoder.

    Args:
        inputs, outputs: (N, D) and (N, O), row by row of the same example and position.
        recipe: with architecture ``standard``.
        seed: of weights and the order of rows. Same arguments, same weights, bit for bit.
        skip: with a linear path beside the latents, from 0.

    Returns:
        A dictionary in SAELens's format: W_enc (D, F), b_enc, W_dec (F, O), b_dec, and W_skip (O, D) with ``skip``.

    Raises:
        UserError: rows that do not match, NaN, constant activations, another architecture, or training that diverged.
    """
    if recipe.architecture != "standard" or recipe.activation or recipe.regularisers:
        raise UserError("a transcoder is trained with architecture = standard, without plugs")
    if len(inputs) != len(outputs):
        raise UserError(f"{len(inputs)} rows of input and {len(outputs)} of output do not belong together")
    check_rows(inputs)
    check_rows(outputs)
    order = BatchOrder(len(inputs), recipe.batch, seed)
    x_all, y_all = inputs.detach().float(), outputs.detach().float()
    s_in, s_out = scale_of(x_all), scale_of(y_all)
    generator = generator_for("transcoder", seed)
    encoder = torch.randn(recipe.n_latents, x_all.shape[1], generator=generator)
    encoder *= 0.1 / encoder.norm(dim=1, keepdim=True)
    decoder = torch.randn(recipe.n_latents, y_all.shape[1], generator=generator)
    decoder *= 0.1 / decoder.norm(dim=1, keepdim=True)
    # Latents start centred on the inputs, outputs on their mean.
    b_enc, b_dec = -(encoder @ (x_all.mean(0) * s_in)), y_all.mean(0) * s_out
    weights = [encoder, b_enc, decoder, b_dec]
    if skip:
        weights.append(torch.zeros(y_all.shape[1], x_all.shape[1]))
    for weight in weights:
        weight.requires_grad_()
    optimiser = torch.optim.Adam(weights, lr=recipe.lr, fused=True)
    first = math.nan
    for step in range(recipe.steps):
        rows = order.indices(step)
        x, y = x_all.index_select(0, rows) * s_in, y_all.index_select(0, rows) * s_out
        z = torch.addmm(b_enc, x, encoder.T).relu()
        made = torch.addmm(b_dec, z, decoder)
        if skip:
            made = made + x @ weights[4].T
        loss = (made - y).square().sum() / len(x) + recipe.l1(step) * (z.sum(0) @ decoder.norm(dim=1)) / len(x)
        value = loss.item()
        first = value if step == 0 else first
        if not math.isfinite(value) or value > DIVERGED * max(first, 1e-6):
            raise UserError(
                f"training of a transcoder diverged at step {step} of {recipe.steps}: loss {value:g}, at first"
                f" {first:g}; lower lr (now {recipe.lr:g}) or sparsity (now {recipe.sparsity:g})"
            )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, MAX_NORM)
        optimiser.param_groups[0]["lr"] = recipe.learning_rate(step)
        optimiser.step()
    with torch.no_grad():
        made_of: dict[str, Any] = {
            "W_enc": (encoder.detach() * s_in).T.contiguous(), "b_enc": b_enc.detach().clone(),
            "W_dec": decoder.detach() / s_out, "b_dec": b_dec.detach() / s_out,
        }  # fmt: skip
        if skip:
            made_of["W_skip"] = weights[4].detach() * (s_in / s_out)
    cfg = {
        "architecture": "skip_transcoder" if skip else "transcoder", "d_in": x_all.shape[1], "d_out": y_all.shape[1],
        "d_sae": recipe.n_latents, "dtype": "float32", "device": "cpu", "apply_b_dec_to_input": False,
        "normalize_activations": "none", "reshape_activations": "none",
        "metadata": {"sae_lens_version": version("sae-lens"), "training_architecture_details":
                     {"l1_coefficient": recipe.sparsity}},
    }  # fmt: skip
    return {"cfg": cfg, **made_of}


def transcode(transcoder: dict[str, Any], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(N, F) latents and (N, O) outputs of (N, D) inputs, in plain torch operations."""
    latents = torch.addmm(transcoder["b_enc"], inputs, transcoder["W_enc"]).relu()
    made = torch.addmm(transcoder["b_dec"], latents, transcoder["W_dec"])
    if "W_skip" in transcoder:
        made = made + inputs @ transcoder["W_skip"].T
    return latents, made
