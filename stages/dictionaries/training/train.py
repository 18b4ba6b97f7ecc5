"""Training on activations in memory, and the inference form of what comes out, in SAELens's own format.

Standard (ReLU + L1): Bricken et al. 2023 with the April 2024 update of Anthropic's recipe (penalty weighted by
decoder norms). TopK: Gao et al. 2024 (2406.04093), with AuxK. BatchTopK: Bussmann et al. 2024 (2412.06410). Gated and
JumpReLU: ``gates``. Matryoshka: Bussmann et al. 2025 (2503.17547). AbsTopK: 2510.00404. Matching pursuit: ``pursuit``.
P-annealing: Karvonen et al. 2024 (2408.00113).

Activations are scaled to mean norm sqrt(D) for training, so that coefficients mean the same at every hook point, and
the scale is folded into the weights afterwards: a dictionary takes raw activations. Windows and schedules are in rows.

Shape legend: N = rows, D = width, F = latents.
"""

import math
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.activations.order import BatchOrder
from stages.base.progress import report
from stages.contracts.dictionary import Dictionary, DictionaryConfig
from stages.dictionaries.architectures.codec import OWN
from stages.dictionaries.architectures.custom_objectives import Activation, Regulariser
from stages.dictionaries.architectures.objectives import Outcome
from stages.dictionaries.training.checks import ARCHITECTURES, PENALISED, check_training
from stages.dictionaries.training.trainer import OF_BATCH, Recipe, Trainer
from stages.errors import UserError

__all__ = [
    "ARCHITECTURES",
    "PENALISED",
    "inference_form",
    "recipe_for",
    "scale_of",
    "train",
    "train_dictionary",
    "train_many",
]

WARM_UP, DECAY = 0.05, 0.2
"""Share of the steps over which the learning rate rises, and falls to 0 (the recipe of 2408.05147 and its kin)."""

TRANSCODERS = {
    ("standard", False): "transcoder", ("standard", True): "skip_transcoder",
    ("jumprelu", False): "jumprelu_transcoder", ("jumprelu", True): "jumprelu_skip_transcoder",
    ("topk", False): "topk_transcoder", ("topk", True): "topk_skip_transcoder",
}  # fmt: skip
"""SAELens's name of a transcoder whose latents are those of an architecture; it has none with topk."""

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
) -> Dictionary:
    """Train one dictionary.

    Args:
        acts: (N, D) float; N >= batch.
        architecture: one of ``ARCHITECTURES``.
        n_latents: F.
        sparsity: coefficient of L1 (standard, gated) or of its power (p_anneal); or latents per row: a whole number
            (topk, abstopk; matching_pursuit: at most), a mean (batchtopk, matryoshka), or a target (jumprelu).
        steps: optimiser steps.
        batch: rows per step.
        lr: learning rate of Adam after warm-up.
        generator_seed: of the initial weights and of the order of rows. Same arguments, same weights, bit for bit.

    Returns:
        ``{"cfg": dict, "W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}``, in the form that is used:
        batchtopk and matryoshka become jumprelu, with "threshold" (F,), p_anneal becomes standard. Gated has "b_gate",
        "b_mag" and "r_mag" (F,) in place of "b_enc"; matching_pursuit neither "W_enc" nor "b_enc".

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
        widths=_halves(n_latents) if architecture == "matryoshka" else (),
        anneal_from=(steps // 5) * batch,
    )


def _halves(n_latents: int) -> tuple[int, ...]:
    """An eighth, a quarter and half of the latents, where they differ."""
    return tuple(sorted({n_latents // part for part in (8, 4, 2)} - {0, n_latents}))


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
    order_seed: int | None = None,
    outputs: Tensor | None = None,
) -> Dictionary:
    """``train_dictionary`` to a recipe.

    Args:
        metadata: written into the cfg.
        log: called with training metrics every ``log_every`` steps and at the last.
        checkpoint: folder to save the state in, every ``checkpoint_every`` steps; what is there is resumed.
        regularisers, activations: functions of one's own, by the names the recipe uses (``plugs``).
        order_seed: of the order of rows; ``seed`` by default.
        outputs: (N, O) row by row what ``acts`` are to predict: a transcoder (``transcoders``).
    """
    course = Course(acts, recipe, seed, order_seed=order_seed, outputs=outputs, checkpoint=checkpoint,
                    regularisers=regularisers, activations=activations)  # fmt: skip
    trainer = course.trainer
    for step in range(trainer.n_steps, recipe.steps):
        report(f"training {recipe.architecture}", step, recipe.steps)
        out, goal = course.step(course.order.indices(step))
        if log is not None and ((step + 1) % log_every == 0 or step == recipe.steps - 1):
            log(_logged(trainer, out, goal), step + 1)
        if checkpoint is not None and trainer.n_steps % checkpoint_every == 0:
            trainer.save(checkpoint)
    return course.result(metadata)


def train_many(
    acts: Tensor,
    jobs: Mapping[str, tuple[Recipe, int]],
    order_seed: int,
    *,
    metadata: Mapping[str, dict[str, str]] | None = None,
    log: Callable[[str, dict[str, float], int], None] | None = None,
    log_every: int = 50,
    checkpoint: Path | None = None,
    checkpoint_every: int = 1000,
    outputs: Tensor | None = None,
) -> dict[str, Dictionary]:
    """Train many dictionaries in one pass: each batch is read once and goes to all of them.

    Each comes out as ``train(acts, recipe, seed, order_seed=order_seed)`` has it, bit for bit.

    Args:
        jobs: name -> recipe and seed of the weights; all of one batch size, any mix of architectures and steps.
        order_seed: of the order of rows.
        metadata, log: as of ``train``, with the name.
        checkpoint: folder with a state per name.
        outputs: of transcoders.

    Raises:
        UserError: as ``train``; no job, or different batch sizes.
    """
    sizes = sorted({recipe.batch for recipe, _ in jobs.values()})
    if len(sizes) != 1:
        raise UserError(f"batch sizes {sizes}: dictionaries trained in one pass share their batches; give one size")
    courses = {
        name: Course(acts, recipe, seed, order_seed=order_seed, outputs=outputs,
                     checkpoint=None if checkpoint is None else checkpoint / name)
        for name, (recipe, seed) in jobs.items()
    }  # fmt: skip
    order = next(iter(courses.values())).order
    first = min(course.trainer.n_steps for course in courses.values())
    steps = max(recipe.steps for recipe, _ in jobs.values())
    for step in range(first, steps):
        report(f"training {len(jobs)} dictionaries", step, steps)
        rows = order.indices(step)
        batch: tuple[Tensor, Tensor] | None = None
        for name, course in courses.items():
            trainer = course.trainer
            if not trainer.n_steps == step < trainer.recipe.steps:
                continue
            batch = batch or course.batch(rows)
            out, goal = course.step(rows, batch)
            if log is not None and ((step + 1) % log_every == 0 or step == trainer.recipe.steps - 1):
                log(name, _logged(trainer, out, goal), step + 1)
            if checkpoint is not None and trainer.n_steps % checkpoint_every == 0:
                trainer.save(checkpoint / name)
    return {name: course.result((metadata or {}).get(name)) for name, course in courses.items()}


class Course:
    """Rows, their scale and their order, and the trainer they go to."""

    def __init__(
        self,
        acts: Tensor,
        recipe: Recipe,
        seed: int,
        *,
        order_seed: int | None = None,
        outputs: Tensor | None = None,
        checkpoint: Path | None = None,
        regularisers: Mapping[str, Regulariser] | None = None,
        activations: Mapping[str, Activation] | None = None,
    ) -> None:
        check_training(acts, recipe, outputs)
        self.order = BatchOrder(len(acts), recipe.batch, seed if order_seed is None else order_seed)
        self.acts = acts.detach().to(torch.float32)
        self.outputs = None if outputs is None else outputs.detach().to(torch.float32)
        self.scale = scale_of(self.acts)
        self.scale_out = self.scale if self.outputs is None else scale_of(self.outputs)
        if checkpoint is not None and checkpoint.is_dir():
            self.trainer = Trainer.resume(checkpoint, recipe, regularisers, activations)
            if self.trainer.seed != seed:
                raise UserError(
                    f"{checkpoint} was trained with seed {self.trainer.seed}, not {seed}: delete it to start anew"
                )
        else:
            mean_out = None if self.outputs is None else self.outputs.mean(0) * self.scale_out
            self.trainer = Trainer(recipe, self.acts.mean(0) * self.scale, seed, regularisers, activations, mean_out)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled rows, and what they are to predict."""
        x = self.acts.index_select(0, rows).mul_(self.scale)
        return x, x if self.outputs is None else self.outputs.index_select(0, rows).mul_(self.scale_out)

    def step(self, rows: Tensor, batch: tuple[Tensor, Tensor] | None = None) -> tuple[Outcome, Tensor]:
        x, goal = batch or self.batch(rows)
        return self.trainer.step(x, None if self.outputs is None else goal), goal

    def result(self, metadata: dict[str, str] | None) -> Dictionary:
        made = inference_form(self.trainer, self.scale, metadata, None if self.outputs is None else self.scale_out)
        bad = [name for name, value in made.items() if isinstance(value, Tensor) and not torch.isfinite(value).all()]
        if bad:
            raise UserError(
                f"the {self.trainer.recipe.architecture} dictionary is not finite ({', '.join(bad)}): rows of mean size"
                f" {math.sqrt(self.acts.shape[1]) / self.scale:.2g} are out of float32's reach; scale them to about 1"
            )
        return made


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


def inference_form(
    trainer: Trainer, scale: float, metadata: dict[str, str] | None = None, scale_out: float | None = None
) -> Dictionary:
    """The dictionary of raw activations: the scale and, for topk kinds, decoder norms folded into the weights.

    Args:
        scale: that rows were multiplied by.
        scale_out: of a transcoder: that its targets were multiplied by.
    """
    recipe, weights = trainer.recipe, trainer.weights
    kind, transcoding = recipe.architecture, scale_out is not None
    scale_out = scale if scale_out is None else scale_out
    decoder, b_dec = weights.decoder / scale_out, weights.b_dec / scale_out
    encoder, b_enc = weights.encoder * scale, weights.b_enc.clone()
    extra: dict[str, Tensor] = {}
    cfg: DictionaryConfig = {
        "architecture": kind, "d_in": len(b_dec), "d_sae": recipe.n_latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
    }  # fmt: skip
    details: dict[str, JsonValue] = {"decoder_init_norm": 1.0 if kind == "matching_pursuit" else 0.1}
    if kind in PENALISED:
        details |= {"l1_coefficient": recipe.sparsity, "l1_warm_up_steps": recipe.l1_warm_up // recipe.batch}
    match kind:
        case "p_anneal":
            cfg["architecture"] = "standard"
            details |= {"anneal_from": recipe.anneal_from, "last_p": recipe.last_p}
        case "gated":
            extra = {name: weights.extra[name].clone() for name in ("b_mag", "r_mag")}
        case "jumprelu":
            extra["threshold"] = weights.extra["threshold"].clone()
            details |= {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": recipe.sparsity,
                        "l0_coefficient": recipe.l0_coefficient, "jumprelu_bandwidth": recipe.bandwidth}  # fmt: skip
        case "matching_pursuit":  # values scale with rows, so decoder rows stay
            decoder = weights.decoder.clone()
            cfg |= {"residual_threshold": recipe.residual_threshold / scale, "max_iterations": int(recipe.sparsity),
                    "stop_on_duplicate_support": True}  # fmt: skip
        case "topk" | "abstopk" | "batchtopk" | "matryoshka":
            norms = decoder.norm(dim=1).clamp_min(1e-8)
            encoder, b_enc, decoder = encoder * norms.unsqueeze(1), b_enc * norms, decoder / norms.unsqueeze(1)
            details |= {"aux_loss_coefficient": recipe.aux, "k": recipe.sparsity}
    if kind in ("topk", "abstopk"):
        cfg |= {"k": int(recipe.sparsity), "rescale_acts_by_decoder_norm": True}
    if kind in OF_BATCH:
        cfg["architecture"] = "jumprelu"
        details["topk_threshold_lr"] = recipe.threshold_lr
        extra["threshold"] = torch.full_like(b_enc, trainer.threshold / scale_out)
    if recipe.widths:
        details["matryoshka_widths"] = [*recipe.widths, recipe.n_latents]
    if recipe.regularisers:
        details["regularisers"] = dict(recipe.regularisers)
    if recipe.activation:  # SAELens has no such class, and must not take it for one with ReLU
        cfg |= {"architecture": OWN, "activation": recipe.activation}
    if transcoding:
        cfg |= {"architecture": TRANSCODERS[cfg["architecture"], recipe.skip], "d_in": encoder.shape[1],
                "d_out": len(b_dec), "apply_b_dec_to_input": False}  # fmt: skip
        if recipe.skip:
            extra["W_skip"] = weights.extra["skip"] * (scale / scale_out)
    cfg["metadata"] = {
        "sae_lens_version": version("sae-lens"),
        "training_architecture": kind,
        "training_architecture_details": details,
        "l0": trainer.n_active / max(trainer.n_steps * recipe.batch, 1),
        "num_dead_features": int(trainer.dead.sum()),
        **(metadata or {}),
    }
    if kind != "matching_pursuit":
        extra = {"W_enc": encoder.T.contiguous(), "b_gate" if kind == "gated" else "b_enc": b_enc} | extra
    return cast(Dictionary, {"cfg": cfg, "W_dec": decoder, "b_dec": b_dec, **extra})
