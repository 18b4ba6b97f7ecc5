"""Training through SAELens's public step, on activations in memory.

Standard (ReLU + L1): Bricken et al. 2023 with the April 2024 update of Anthropic's recipe (penalty weighted by
decoder norms). TopK: Gao et al. 2024 (2406.04093), with AuxK. BatchTopK: Bussmann et al. 2024 (2412.06410).

Activations are scaled to mean norm sqrt(D) for training, so that coefficients mean the same at every hook point, and
the scale is folded into the weights afterwards: a dictionary takes raw activations. Windows and schedules are in rows.

Shape legend: N = rows, D = width, F = latents.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.activations.order import BatchOrder, generator_for
from stages.errors import UserError

if TYPE_CHECKING:
    from sae_lens import TrainingSAE

__all__ = ["ARCHITECTURES", "as_dictionary", "train_dictionary", "train_sae"]

ARCHITECTURES = ("standard", "topk", "batchtopk")
DIVERGED = 100.0
"""Training stops where the loss exceeds this many times the first one."""
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
    return as_dictionary(train_sae(acts, architecture, n_latents, sparsity, steps, batch, lr, generator_seed))


def train_sae(
    acts: Tensor,
    architecture: str,
    n_latents: int,
    sparsity: float,
    steps: int,
    batch: int,
    lr: float,
    generator_seed: int,
    *,
    dead_window_rows: int = 20_000,
    metadata: dict[str, str] | None = None,
    log: Log | None = None,
    log_every: int = 50,
) -> "TrainingSAE[Any]":
    """``train_dictionary``, returning SAELens's object.

    Args:
        dead_window_rows: rows without firing after which AuxK works on a latent (topk kinds).
        metadata: written into cfg.json.
        log: called with SAELens's training metrics every ``log_every`` steps and at the last.
    """
    _check(acts, architecture, n_latents, sparsity, steps, lr)
    order = BatchOrder(len(acts), batch, generator_seed)
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    acts = acts.detach().to(torch.float32)
    scale = math.sqrt(acts.shape[1]) / acts.norm(dim=1).mean().item()
    sae = _initial(acts, architecture, n_latents, sparsity, steps, generator_seed, scale, metadata or {})
    # lr_end must be given (SAELens asserts it); dead_feature_window counts steps.
    trainer: Any = SAETrainer(
        cfg=SAETrainerConfig(
            total_training_samples=steps * batch,
            train_batch_size_samples=batch,
            lr=lr,
            lr_end=lr / 10,
            lr_warm_up_steps=int(WARM_UP * steps) if steps >= 40 else 0,
            lr_decay_steps=int(DECAY * steps),
            dead_feature_window=max(1, dead_window_rows // batch),
        ),
        sae=sae,
        data_provider=iter(()),
    )
    trainer.activation_scaler.scaling_factor = scale
    first = math.nan
    for step in range(steps):
        out = trainer.step(acts.index_select(0, order.indices(step)))
        loss = out.loss.item()
        first = loss if step == 0 else first
        if not math.isfinite(loss) or loss > DIVERGED * max(first, 1e-6):
            raise UserError(
                f"training of {architecture} diverged at step {step} of {steps}: loss {loss:g}, at first {first:g};"
                f" lower lr (now {lr:g}) or sparsity (now {sparsity:g})"
            )
        if log is not None and ((step + 1) % log_every == 0 or step == steps - 1):
            values = trainer.build_train_step_log_dict(output=out, n_training_samples=trainer.n_training_samples)
            log({name: float(value) for name, value in values.items()}, step + 1)
        trainer.n_training_steps += 1
    sae.fold_activation_norm_scaling_factor(scale)
    trainer.set_final_sae_metadata()
    sae.eval()
    return sae


def as_dictionary(sae: "TrainingSAE[Any]") -> dict[str, Any]:
    """The inference form of a trained SAE as plain tensors: what saving and loading it would give."""
    state = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    cfg = dict(sae.cfg.get_inference_sae_cfg_dict())
    return {"cfg": cfg, **{name: tensor.detach().clone() for name, tensor in state.items()}}


def _check(acts: Tensor, architecture: str, n_latents: int, sparsity: float, steps: int, lr: float) -> None:
    if architecture not in ARCHITECTURES:
        raise UserError(f"architecture {architecture!r} is unknown; known: {', '.join(ARCHITECTURES)}")
    if acts.dim() != 2 or acts.shape[1] == 0:
        raise UserError(f"activations have shape {tuple(acts.shape)}; give (rows, width), heads flattened")
    if n_latents < 1 or steps < 1 or not lr > 0:
        raise UserError(f"n_latents = {n_latents}, steps = {steps}, lr = {lr:g}: all must be above 0")
    if not sparsity > 0 or (architecture != "standard" and not 1 <= sparsity <= n_latents):
        allowed = "above 0" if architecture == "standard" else f"1 to n_latents = {n_latents}"
        raise UserError(f"sparsity = {sparsity:g} of {architecture} is out of range; allowed: {allowed}")
    if architecture == "topk" and sparsity != int(sparsity):
        raise UserError(f"sparsity = {sparsity:g}: topk takes whole numbers; use batchtopk for an average")
    finite = torch.isfinite(acts).all(dim=1)
    if not finite.all():
        raise UserError(
            f"{int((~finite).sum())} of {len(acts)} rows of activations hold NaN or infinity:"
            " mend what made them (stage `targets` or `activations`)"
        )
    if len(acts) and (acts == acts[0]).all():
        raise UserError("the activations are constant: there is nothing to decompose; choose another hook point")


def _initial(
    acts: Tensor,
    architecture: str,
    n_latents: int,
    sparsity: float,
    steps: int,
    seed: int,
    scale: float,
    metadata: dict[str, str],
) -> "TrainingSAE[Any]":
    """A fresh SAE: tied random weights of decoder norm 0.1, decoder bias at the mean activation."""
    from sae_lens import (
        BatchTopKTrainingSAEConfig,
        StandardTrainingSAEConfig,
        TopKTrainingSAEConfig,
        TrainingSAE,
    )

    shape: dict[str, Any] = {"d_in": acts.shape[1], "d_sae": n_latents}
    shape["normalize_activations"] = "expected_average_only_in"
    cfg: Any
    if architecture == "standard":
        cfg = StandardTrainingSAEConfig(**shape, l1_coefficient=float(sparsity), l1_warm_up_steps=steps // 10)
    elif architecture == "topk":
        cfg = TopKTrainingSAEConfig(**shape, k=int(sparsity))
    else:
        # The threshold is a running mean: at the default rate of 0.01 it lags behind a run of a few hundred steps.
        cfg = BatchTopKTrainingSAEConfig(**shape, k=float(sparsity), topk_threshold_lr=max(0.01, 20 / steps))
    values = cfg.to_dict()
    values["metadata"] = {**values["metadata"], **metadata}
    with torch.random.fork_rng(devices=[]):  # SAELens draws from the global generator; its draws are replaced below
        sae: Any = TrainingSAE.from_dict(values)
    with torch.no_grad():
        w_dec = torch.randn(n_latents, acts.shape[1], generator=generator_for("dictionary", seed))
        w_dec *= 0.1 / w_dec.norm(dim=1, keepdim=True)
        sae.W_dec.copy_(w_dec)
        sae.W_enc.copy_(w_dec.T)
        sae.b_dec.copy_(acts.mean(0) * scale)
    built: TrainingSAE[Any] = sae
    return built
