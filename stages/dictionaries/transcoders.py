"""Transcoders and skip transcoders: from one hook point to another (2406.11944, 2501.18823).

    y^ = latents(x W_enc + b_enc) W_dec + b_dec  [+ x W_skip^T]

Latents are ReLU with the L1 penalty, TopK, or BatchTopK (saved as jumprelu). SAELens has the classes for use, not for
training; what is trained here loads with ``SAE.load_from_disk``, but for topk, of which it has no transcoder. Caches of
one target are aligned row by row, so pairs cost nothing. Training is that of dictionaries (``training.train``): the
same step, schedules, checkpoints and checks.

Shape legend: N = rows, D = width of the input, O = width of the output, F = latents.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.activations import ActivationCache
from stages.dictionaries.codec import decode, encode
from stages.dictionaries.trainer import Recipe
from stages.dictionaries.training import Log, train
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
    inputs: Tensor,
    outputs: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    skip: bool = False,
    metadata: dict[str, str] | None = None,
    log: Log | None = None,
    log_every: int = 50,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
) -> dict[str, Any]:
    """Train one transcoder.

    Args:
        inputs, outputs: (N, D) and (N, O), row by row of the same example and position.
        recipe: with architecture ``standard``, ``topk`` or ``batchtopk``.
        seed: of weights and the order of rows. Same arguments, same weights, bit for bit.
        skip: with a linear path beside the latents, from 0.
        metadata, log, log_every, checkpoint, checkpoint_every: as of ``train``.

    Returns:
        A dictionary in SAELens's format: W_enc (D, F), b_enc, W_dec (F, O), b_dec, and W_skip (O, D) with ``skip``.

    Raises:
        UserError: rows that do not match, NaN, constant activations, another architecture, or training that diverged.
    """
    return train(
        inputs, replace(recipe, skip=skip), seed, outputs=outputs, metadata=metadata, log=log, log_every=log_every,
        checkpoint=checkpoint, checkpoint_every=checkpoint_every,
    )  # fmt: skip


def transcode(transcoder: dict[str, Any], inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(N, F) latents and (N, O) outputs of (N, D) inputs, in plain torch operations."""
    latents = encode(transcoder, inputs)
    made = decode(transcoder, latents)
    if "W_skip" in transcoder:
        made = made + inputs @ transcoder["W_skip"].T
    return latents, made
