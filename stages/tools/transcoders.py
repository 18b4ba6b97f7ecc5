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

import torch
from torch import Tensor

from stages.activations.cache import ActivationCache
from stages.activations.order import generator_for
from stages.base.intervals import percentile_interval, resamples
from stages.contracts.dictionary import Dictionary
from stages.contracts.record import Estimate, Record
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.metrics import dead_ratio, explained_variance, l0
from stages.dictionaries.storage import CFG, load_dictionary, save_dictionary
from stages.dictionaries.training.train import Log, recipe_for, train
from stages.dictionaries.training.trainer import Recipe
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["aligned", "train_between", "train_transcoder", "transcode"]

N_RESAMPLES = 200
"""Bootstrap resamples of the intervals of ``train_between``."""


class TranscoderRow(Record):
    """One saved transcoder and its metrics on held-out rows."""

    folder: str
    """Where it was saved."""
    target: str
    """Model."""
    hook_point: str
    """What it reads."""
    hook_point_out: str
    """What it predicts."""
    seed: int
    """Of its initial weights and the order of rows."""
    architecture: str
    """The form in which it is saved."""
    n_latents: int
    """Size of the transcoder."""
    n_validation_rows: int
    """Held-out activation rows."""
    explained_variance: Estimate
    """Share of the output's variance that is predicted; the null is the linear map fitted by least squares."""
    l0: Estimate
    """Mean number of active latents per row."""
    dead_ratio: Estimate
    """Share of latents that never fire on held-out rows."""


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
) -> Dictionary:
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


def transcode(transcoder: Dictionary, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """(N, F) latents and (N, O) outputs of (N, D) inputs, in plain torch operations."""
    latents = encode(transcoder, inputs)
    made = decode(transcoder, latents)
    if "W_skip" in transcoder:
        made = made + inputs @ transcoder["W_skip"].T
    return latents, made


def train_between(
    target_name: str,
    hook: str,
    to: str,
    architecture: str,
    *,
    skip: bool,
    n_latents: int,
    sparsity: float,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
    out: Path,
    checkpoint: Path | None = None,
) -> TranscoderRow:
    """Train a transcoder from one cached hook point of a target to another, save it, measure what was saved.

    Raises:
        UserError: a value out of range, a hook point that is not cached or has other positions, an output folder that
            holds something else.
    """
    if out.exists() and not (out / CFG).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something that is no dictionary: choose another --out")
    torch.set_num_threads(1)
    target = load_target(target_name)

    def pairs(split: str) -> tuple[ActivationCache, Tensor, Tensor]:
        one, other = (ActivationCache.open(target.name, name, split, digest=target.digest) for name in (hook, to))
        return one, *aligned(one, other)

    train_cache, x, y = pairs("train")
    held, x_held, y_held = pairs("validation")
    about = {"model_name": target.name, "hook_name": hook, "hook_name_out": to, "target_digest": target.digest,
             "activations_key": train_cache.manifest.key}  # fmt: skip
    recipe = recipe_for(architecture, n_latents, sparsity, steps, batch, lr)
    made = train_transcoder(x, y, recipe, seed, skip=skip, metadata=about, checkpoint=checkpoint)
    save_dictionary(made, out)
    latents, predicted = transcode(load_dictionary(out), x_held)
    null = explained_variance(y_held, _linear(x, y, x_held))
    weights = resamples(held.manifest.n_examples, N_RESAMPLES, generator_for("transcoder", seed))
    examples = torch.unique(held.read().example, return_inverse=True)[1]

    def per_example(values: Tensor) -> Tensor:
        sums = torch.zeros(held.manifest.n_examples, dtype=torch.float64)
        return weights @ sums.index_add(0, examples, values.double())

    error = per_example((predicted - y_held).square().sum(1))
    total = per_example((y_held - y_held.mean(0)).square().sum(1))
    active = per_example((latents != 0).sum(1)) / per_example(torch.ones(len(latents)))
    return TranscoderRow(
        folder=str(out),
        target=target.name,
        hook_point=hook,
        hook_point_out=to,
        seed=seed,
        architecture=made["cfg"]["architecture"],
        n_latents=n_latents,
        n_validation_rows=len(x_held),
        explained_variance=Estimate.of(
            explained_variance(y_held, predicted), *percentile_interval(1.0 - error / total), null
        ),
        l0=Estimate.of(l0(latents), *percentile_interval(active)),
        dead_ratio=Estimate.of(dead_ratio(latents)),
    )


def _linear(inputs: Tensor, outputs: Tensor, held: Tensor) -> Tensor:
    """What the linear map fitted to (N, D) inputs and (N, O) outputs makes of held-out inputs.

    With a ridge of a millionth of the mean variance: latents of a target that are always 0 leave the fit open.
    """
    x, y = inputs.double() - inputs.double().mean(0), outputs.double() - outputs.double().mean(0)
    gram = x.T @ x
    ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    solved: Tensor = torch.linalg.solve(gram + ridge, x.T @ y)
    fitted: Tensor = (held.double() - inputs.double().mean(0)) @ solved + outputs.double().mean(0)
    return fitted.float()
