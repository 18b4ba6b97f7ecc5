"""Training on activations in memory, and the inference form of what comes out, in SAELens's own format.

Standard (ReLU + L1): Bricken et al. 2023 with the April 2024 update of Anthropic's recipe (penalty weighted by
decoder norms). TopK: Gao et al. 2024 (2406.04093), with AuxK. BatchTopK: Bussmann et al. 2024 (2412.06410).

Activations are scaled to mean norm sqrt(D) for training, so that coefficients mean the same at every hook point, and
the scale is folded into the weights afterwards: a dictionary takes raw activations. Windows and schedules are in rows.

Shape legend: N = rows, D = width, F = latents.
"""

import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.activations.order import BatchOrder
from stages.dictionaries.codec import OWN
from stages.dictionaries.objectives import Outcome
from stages.dictionaries.plugs import Activation, Regulariser
from stages.dictionaries.trainer import Recipe, Trainer
from stages.errors import UserError

__all__ = ["ARCHITECTURES", "check_rows", "inference_form", "recipe_for", "scale_of", "train", "train_dictionary"]

ARCHITECTURES = ("standard", "topk", "batchtopk")
WARM_UP, DECAY = 0.05, 0.2
"""Share of the steps over which the learning rate rises, and falls to 0 (the recipe of 2408.05147 and its kin)."""

Log = Callable[[dict[str, float], int], None]


def train_dictionary(
    acts: Tensor,
    architecture: str,
    n_latents: int,
    sparsity: float,
    steps: int,
    batch: int,
    lr: float,
    generator_seed: int,
) -> dict[str, Any]:
    """Train one dictionary.

    Args:
        acts: (N, D) float; N >= batch.
        architecture: standard, topk or batchtopk.
        n_latents: F.
        sparsity: L1 coefficient (standard), or latents per row (topk: a whole number; batchtopk: on average).
        steps: optimiser steps.
        batch: rows per step.
        lr: learning rate of Adam after warm-up.
        generator_seed: of the initial weights and of the order of rows. Same arguments, same weights, bit for bit.

    Returns:
        ``{"cfg": dict, "W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}`` plus "threshold" (F,) for
        batchtopk, which is returned in its inference form, jumprelu.

    Raises:
        UserError: a value out of range, activations that are NaN or constant, or training that diverged.
    """
    return train(acts, recipe_for(architecture, n_latents, sparsity, steps, batch, lr), generator_seed)


def recipe_for(
    architecture: str, n_latents: int, sparsity: float, steps: int, batch: int, lr: float, *, dead_window: int = 20_000
) -> Recipe:
    """The house's schedules for a run of this length."""
    return Recipe(
        architecture=architecture,
        n_latents=n_latents,
        sparsity=float(sparsity),
        samples=steps * batch,
        batch=batch,
        lr=lr,
        warm_up=(int(WARM_UP * steps) if steps >= 40 else 0) * batch,
        decay=int(DECAY * steps) * batch,
        l1_warm_up=(steps // 10) * batch,
        dead_window=dead_window,
        # The threshold is a running mean: at SAELens's rate of 0.01 it lags behind a run of a few hundred steps.
        threshold_lr=max(0.01, 20 / max(steps, 20)),
    )


def scale_of(acts: Tensor) -> float:
    """What the rows are multiplied by, to have mean norm sqrt(D)."""
    return math.sqrt(acts.shape[1]) / float(acts.norm(dim=1).mean())


def train(
    acts: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    metadata: dict[str, str] | None = None,
    log: Log | None = None,
    log_every: int = 50,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
    regularisers: Mapping[str, Regulariser] | None = None,
    activations: Mapping[str, Activation] | None = None,
) -> dict[str, Any]:
    """``train_dictionary`` to a recipe.

    Args:
        metadata: written into the cfg.
        log: called with training metrics every ``log_every`` steps and at the last.
        checkpoint: folder to save the state in, every ``checkpoint_every`` steps; what is there is resumed.
        regularisers, activations: functions of one's own, by the names the recipe uses (``plugs``).
    """
    _check(acts, recipe)
    order = BatchOrder(len(acts), recipe.batch, seed)
    acts = acts.detach().to(torch.float32)
    scale = scale_of(acts)
    if checkpoint is not None and checkpoint.is_dir():
        trainer = Trainer.resume(checkpoint, recipe, regularisers, activations)
        if trainer.seed != seed:
            raise UserError(f"{checkpoint} was trained with seed {trainer.seed}, not {seed}: delete it to start anew")
    else:
        trainer = Trainer(recipe, acts.mean(0) * scale, seed, regularisers, activations)
    for step in range(trainer.n_steps, recipe.steps):
        x = acts.index_select(0, order.indices(step)).mul_(scale)
        out = trainer.step(x)
        if log is not None and ((step + 1) % log_every == 0 or step == recipe.steps - 1):
            log(_logged(trainer, out, x), step + 1)
        if checkpoint is not None and trainer.n_steps % checkpoint_every == 0:
            trainer.save(checkpoint)
    return inference_form(trainer, scale, metadata)


def _logged(trainer: Trainer, out: Outcome, x: Tensor) -> dict[str, float]:
    """Names as SAELens logs them."""
    total = (x - x.mean(0)).square().sum(-1).mean().item()
    values = {
        "losses/overall_loss": out.loss,
        "metrics/explained_variance": 1.0 - out.parts["mse_loss"] / total,
        "metrics/l0": out.n_active / len(x),
        "sparsity/dead_features": float(trainer.dead.sum()),
        "details/current_learning_rate": trainer.recipe.learning_rate(trainer.n_steps - 1),
        "details/n_training_samples": float(trainer.n_steps * trainer.recipe.batch),
    }
    return values | {f"losses/{name}": value for name, value in out.parts.items()}


def inference_form(trainer: Trainer, scale: float, metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """The dictionary of raw activations: the scale and, for topk kinds, decoder norms folded into the weights."""
    recipe, weights = trainer.recipe, trainer.weights
    decoder, b_dec = weights.decoder / scale, weights.b_dec / scale
    encoder, b_enc = weights.encoder * scale, weights.b_enc.clone()
    extra: dict[str, Tensor] = {}
    cfg: dict[str, Any] = {
        "architecture": recipe.architecture, "d_in": decoder.shape[1], "d_sae": decoder.shape[0], "dtype": "float32",
        "device": "cpu", "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
    }  # fmt: skip
    details: dict[str, Any] = {"decoder_init_norm": 0.1}
    if recipe.architecture == "standard":
        details |= {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": recipe.l1_warm_up // recipe.batch}
    else:
        norms = decoder.norm(dim=1).clamp_min(1e-8)
        encoder, b_enc, decoder = encoder * norms.unsqueeze(1), b_enc * norms, decoder / norms.unsqueeze(1)
        details["aux_loss_coefficient"] = recipe.aux
    if recipe.architecture == "topk":
        cfg |= {"k": int(recipe.sparsity), "rescale_acts_by_decoder_norm": True}
    if recipe.architecture == "batchtopk":
        cfg["architecture"] = "jumprelu"
        details |= {"k": recipe.sparsity, "topk_threshold_lr": recipe.threshold_lr}
        extra["threshold"] = torch.full_like(b_enc, trainer.threshold / scale)
    if recipe.regularisers:
        details["regularisers"] = dict(recipe.regularisers)
    if recipe.activation:  # SAELens has no such class, and must not take it for one with ReLU
        cfg |= {"architecture": OWN, "activation": recipe.activation}
    cfg["metadata"] = {
        "sae_lens_version": version("sae-lens"),
        "training_architecture": recipe.architecture,
        "training_architecture_details": details,
        "l0": trainer.n_active / max(trainer.n_steps * recipe.batch, 1),
        "num_dead_features": int(trainer.dead.sum()),
        **(metadata or {}),
    }
    return {"cfg": cfg, "W_enc": encoder.T.contiguous(), "b_enc": b_enc, "W_dec": decoder, "b_dec": b_dec, **extra}


def _check(acts: Tensor, recipe: Recipe) -> None:
    architecture, n_latents, sparsity = recipe.architecture, recipe.n_latents, recipe.sparsity
    if architecture not in ARCHITECTURES:
        raise UserError(f"architecture {architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    if acts.dim() != 2 or acts.shape[1] == 0:
        raise UserError(f"activations have shape {tuple(acts.shape)}; give (rows, width), heads flattened")
    if n_latents < 1 or recipe.steps < 1 or not recipe.lr > 0:
        raise UserError(f"n_latents = {n_latents}, steps = {recipe.steps}, lr = {recipe.lr:g}: all must be above 0")
    if not sparsity > 0 or (architecture != "standard" and not 1 <= sparsity <= n_latents):
        allowed = "above 0" if architecture == "standard" else f"1 to n_latents = {n_latents}"
        raise UserError(f"sparsity = {sparsity:g} of {architecture} is out of range; allowed: {allowed}")
    if architecture == "topk" and sparsity != int(sparsity):
        raise UserError(f"sparsity = {sparsity:g}: topk takes whole numbers; use batchtopk for an average")
    check_rows(acts)


def check_rows(acts: Tensor) -> None:
    """Raise UserError where rows are NaN, infinite or all the same."""
    finite = torch.isfinite(acts).all(dim=1)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(acts)} rows of activations hold NaN or infinity:"
            " mend what made them (stage `targets` or `activations`)"
        )
    if len(acts) and (acts == acts[0]).all():
        raise UserError("the activations are constant: there is nothing to decompose; choose another hook point")
