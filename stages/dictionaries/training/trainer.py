"""One dictionary in training: weights, optimiser, schedules, dead latents; any step can be saved and resumed from.

The step is that of SAELens's ``SAETrainer`` (gradient clipped to norm 1, Adam, linear warm-up and decay, coefficients
warmed up linearly), on written-out gradients. Steps see rows that are a function of (seed, step), and the state holds
everything else, so a resumed run equals an uninterrupted one bit for bit.

Shape legend: B = rows of the batch, D = width, F = latents.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.activations.order import generator_for
from stages.dictionaries.architectures.custom_objectives import (
    ACTIVATIONS,
    REGULARISERS,
    Activation,
    Regulariser,
    chosen,
)
from stages.dictionaries.architectures.gated import gated, jump
from stages.dictionaries.architectures.matching_pursuit import pursue
from stages.dictionaries.architectures.objectives import (
    P_EPS,
    Outcome,
    Weights,
    latents_of,
    plugged,
    standard,
    top,
)
from stages.errors import UserError

__all__ = ["OF_BATCH", "Recipe", "Trainer"]

STATE, FACTS = "state.safetensors", "state.json"
DIVERGED = 100.0
"""Training stops where the reconstruction error, as a share of the batch's own size, exceeds this many times the first
one: a batch with a large row has a large error, and nothing diverged."""
MAX_NORM = 1.0
"""Gradients are clipped to this norm, as SAELens does."""
OF_BATCH = ("batchtopk", "matryoshka")
"""Architectures whose sparsity is a mean over the batch."""
P_STEPS = 10
"""Of p-annealing, as in 2408.00113."""


@dataclass(frozen=True)
class Recipe:
    """How one dictionary is trained. Schedules and windows are in samples (rows), not steps."""

    architecture: str
    """One of ``training.ARCHITECTURES``."""
    n_latents: int
    sparsity: float
    """Coefficient of L1 or its power (standard, gated, p_anneal), or latents per row: exactly (topk, abstopk), on
    average (batchtopk, matryoshka), aimed at (jumprelu), or at most (matching_pursuit)."""
    samples: int
    """Rows seen in the whole run; the last batch may be cut short by no more than a batch."""
    batch: int
    lr: float
    """Of Adam, between warm-up and decay."""
    warm_up: int = 0
    """Samples over which the learning rate rises."""
    decay: int = 0
    """Samples at the end over which it falls to 0."""
    l1_warm_up: int = 0
    """Samples over which the coefficient of the sparsity penalty rises from 0 (architectures that have one)."""
    dead_window: int = 20_000
    """Samples without firing after which a latent counts as dead and AuxK works on it (topk kinds)."""
    aux: float = 1.0
    """Coefficient of AuxK."""
    threshold_lr: float = 0.01
    """Rate of the running mean of the smallest active latent (batchtopk, matryoshka): the threshold it is saved
    with."""
    widths: tuple[int, ...] = ()
    """Latents of the nested prefixes, rising, all of them excluded (matryoshka)."""
    l0_coefficient: float = 1.0
    """Of the penalty on missing the target L0 (jumprelu)."""
    bandwidth: float = 0.05
    """Window around a threshold in which the step has a slope (jumprelu)."""
    first_threshold: float = 0.01
    """Thresholds to start from (jumprelu)."""
    residual_threshold: float = 0.01
    """Norm of what is left over, in units of the scaled rows, below which a row stops (matching_pursuit)."""
    anneal_from: int = 0
    """Samples after which the power p of the penalty falls from 1 (p_anneal), in ``P_STEPS`` equal steps to the end."""
    last_p: float = 0.2
    """What it falls to."""
    skip: bool = False
    """With a linear path beside the latents (transcoders only)."""
    regularisers: tuple[tuple[str, float], ...] = ()
    """Names and coefficients of what is added to the loss: built in (``plugs``), or given to the trainer."""
    activation: str = ""
    """Name of an activation in place of ReLU (standard only)."""

    def __post_init__(self) -> None:
        pairs = tuple((str(name), float(coefficient)) for name, coefficient in self.regularisers)
        object.__setattr__(self, "regularisers", pairs)  # JSON has lists
        object.__setattr__(self, "widths", tuple(int(width) for width in self.widths))

    @property
    def steps(self) -> int:
        return self.samples // self.batch

    def learning_rate(self, step: int) -> float:
        """Of one step: those of SAELens's constant schedule with warm-up and decay."""
        warm, decay = self.warm_up // self.batch, self.decay // self.batch
        if step < warm:
            return self.lr * ((step * (warm - 1) / max(warm - 1, 1) + 1) / warm if warm > 1 else 1.0)
        late = step - (self.steps - decay)
        return self.lr * (1.0 - late / decay) if decay and late > 0 else self.lr

    def warmth(self, step: int) -> float:
        """Share of the penalty's coefficient at one step."""
        warm = self.l1_warm_up // self.batch
        return min(step / warm, 1.0) if warm else 1.0

    def l1(self, step: int) -> float:
        return self.sparsity * self.warmth(step)

    def p(self, step: int) -> float:
        """Power of the penalty at one step (p_anneal); 1 elsewhere."""
        start = self.anneal_from // self.batch
        if self.architecture != "p_anneal" or step < start:
            return 1.0
        done = (step - start) * P_STEPS // max(self.steps - start, 1)
        return 1.0 - (1.0 - self.last_p) * min(done, P_STEPS) / P_STEPS


class Trainer:
    """Training of one dictionary, step by step.

    Args:
        recipe: how.
        mean: (D,) of the rows that ``step`` gets, in their units: the decoder bias to start from.
        seed: of the initial weights: tied, random, decoder rows of norm 0.1 (matching pursuit: 1).
        regularisers, activations: of one's own, by the names the recipe uses.
        target_mean: of the targets that ``step`` gets: with it, this is a transcoder. Its latents start centred on the
            inputs, its outputs on their mean, its skip connection at 0.
    """

    def __init__(
        self,
        recipe: Recipe,
        mean: Tensor,
        seed: int,
        regularisers: Mapping[str, Regulariser] | None = None,
        activations: Mapping[str, Activation] | None = None,
        target_mean: Tensor | None = None,
    ) -> None:
        self.recipe, self.seed = recipe, seed
        if recipe.regularisers and recipe.architecture == "matching_pursuit":
            raise UserError("regularisers: matching_pursuit chooses its latents one by one and takes none; use topk")
        self._terms = {
            name: (chosen("regulariser", name, REGULARISERS, regularisers), coefficient)
            for name, coefficient in recipe.regularisers
        }
        self._activation: Activation | None = None
        if recipe.activation:
            if recipe.architecture != "standard":
                raise UserError(f"activation = {recipe.activation}: {recipe.architecture} has its own; use standard")
            self._activation = chosen("activation", recipe.activation, ACTIVATIONS, activations)
        self.weights = _first_weights(recipe, mean, target_mean, seed)
        self.n_steps = 0
        self.rows_since_fired = torch.zeros(recipe.n_latents, dtype=torch.int64)
        self.threshold = 0.0
        """Running mean of the smallest active latent (batchtopk, matryoshka)."""
        self.rescaled = 1.0
        """What the penalty's coefficient is multiplied by: it stays as large when p falls (p_anneal)."""
        self.n_active = 0
        """Non-zero latents so far, over all rows seen."""
        self.first_loss = math.nan
        self._optimiser = self._new_optimiser()

    def _new_optimiser(self) -> torch.optim.Adam:
        return torch.optim.Adam(self.weights.tensors(), lr=self.recipe.lr, betas=(0.9, 0.999), fused=True)

    @property
    def dead(self) -> Tensor:
        """(F,) bool: latents that have not fired for ``dead_window`` rows."""
        return self.rows_since_fired > self.recipe.dead_window

    def outcome(self, x: Tensor, target: Tensor | None = None) -> Outcome:
        """Loss and gradients of a (B, D) float32 batch, at the present weights; nothing changes."""
        recipe = self.recipe
        if self._activation is not None:
            terms = {"l1": (REGULARISERS["l1"], recipe.l1(self.n_steps)), **self._terms}
            return plugged(self.weights, x, self._own_latents, terms, reconstruct=True)
        with torch.no_grad():
            out = self._base(x, target)
        if self._terms:
            dense = latents_of(recipe.architecture, recipe.sparsity)
            more = plugged(self.weights, x, dense, self._terms, reconstruct=False)
            for gradient, added in zip(out.gradients.tensors(), more.gradients.tensors(), strict=True):
                gradient += added
            out.loss += more.loss
            out.parts |= more.parts
        return out

    def _own_latents(self, weights: Weights, centred: Tensor) -> Tensor:
        assert self._activation is not None, "no activation was plugged in"
        return self._activation(torch.addmm(weights.b_enc, centred, weights.encoder.T))

    def _base(self, x: Tensor, target: Tensor | None) -> Outcome:
        recipe, weights, step = self.recipe, self.weights, self.n_steps
        match recipe.architecture:
            case "standard":
                return standard(weights, x, recipe.l1(step), target=target)
            case "p_anneal":
                return standard(weights, x, recipe.l1(step) * self.rescaled, recipe.p(step))
            case "gated":
                return gated(weights, x, recipe.l1(step))
            case "jumprelu":
                return jump(weights, x, recipe.sparsity, recipe.l0_coefficient * recipe.warmth(step), recipe.bandwidth)
            case "matching_pursuit":
                return pursue(weights, x, int(recipe.sparsity), recipe.residual_threshold)
        return top(
            weights, x, recipe.sparsity, self.dead, of_batch=recipe.architecture in OF_BATCH,
            signed=recipe.architecture == "abstopk", widths=recipe.widths, aux=recipe.aux, target=target,
        )  # fmt: skip

    def _anneal(self, x: Tensor) -> None:
        """Where p falls, scale the coefficient so that the penalty of this batch stays what it is."""
        before, now = self.recipe.p(self.n_steps - 1), self.recipe.p(self.n_steps)
        if self.n_steps == 0 or before == now:
            return
        with torch.no_grad():
            z = latents_of("standard", 0)(self.weights, x - self.weights.b_dec)
            sizes = z * self.weights.decoder.norm(dim=1) + P_EPS
            old, new = ((sizes.pow(p) - P_EPS**p).sum().item() for p in (before, now))
        if old > 0.0 and new > 0.0:
            self.rescaled *= old / new

    def step(self, x: Tensor, target: Tensor | None = None) -> Outcome:
        """Train on one (B, D) batch; with a (B, D of the target) target where this is a transcoder.

        Raises:
            UserError: the loss is not finite, or far above the first one.
        """
        recipe = self.recipe
        if recipe.architecture == "p_anneal":
            self._anneal(x)
        out = self.outcome(x, target)
        # Not the whole loss: a penalty that is warmed up may well grow a hundredfold.
        goal = x if target is None else target
        # Rows are scaled to a mean norm of sqrt(width): only a batch that is larger than that is discounted.
        error = out.parts.get("mse_loss", out.loss) / max(float(goal.square().sum(1).mean()), goal.shape[1])
        self.first_loss = error if self.n_steps == 0 else self.first_loss
        if not math.isfinite(out.loss) or error > DIVERGED * max(self.first_loss, 1e-6):
            raise UserError(
                f"training of {recipe.architecture} diverged at step {self.n_steps} of {recipe.steps}: loss"
                f" {out.loss:g}, error {error:g} of the rows' squared size, at first {self.first_loss:g}; lower lr (now"
                f" {recipe.lr:g}) or sparsity (now {recipe.sparsity:g})"
            )
        gradients = out.gradients.tensors()
        norm = torch.nn.utils.get_total_norm(gradients)
        for weight, gradient in zip(self.weights.tensors(), gradients, strict=True):
            weight.grad = gradient
        torch.nn.utils.clip_grads_with_norm_(self.weights.tensors(), MAX_NORM, norm)
        self._optimiser.param_groups[0]["lr"] = recipe.learning_rate(self.n_steps)
        self._optimiser.step()
        if "threshold" in self.weights.extra:  # below 0 the gate would pass negative pre-activations
            self.weights.extra["threshold"].clamp_(min=0.0)
        self.rows_since_fired += len(x)
        self.rows_since_fired.masked_fill_(out.fired, 0)
        self.n_active += out.n_active
        least = out.extra.get("least_active", 0.0)
        if recipe.architecture in OF_BATCH and least > 0.0:
            self.threshold += recipe.threshold_lr * (least - self.threshold)
        self.n_steps += 1
        return out

    def save(self, folder: Path) -> None:
        """Write everything the next step depends on; a half-written checkpoint never carries the final name."""
        partial = folder.with_name(f".{folder.name}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        named = self.weights.named()
        state = {"rows_since_fired": self.rows_since_fired, **named}
        for name, tensor in named.items():
            for key, value in self._optimiser.state.get(tensor, {}).items():
                state[f"adam.{key}.{name}"] = value
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, partial / STATE)
        facts = {
            "recipe": asdict(self.recipe), "seed": self.seed, "n_steps": self.n_steps, "threshold": self.threshold,
            "rescaled": self.rescaled, "n_active": self.n_active,
            "first_loss": None if math.isnan(self.first_loss) else self.first_loss,
        }  # fmt: skip
        (partial / FACTS).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for name in (STATE, FACTS):
            (partial / name).replace(folder / name)
        partial.rmdir()

    @classmethod
    def resume(
        cls,
        folder: Path,
        recipe: Recipe,
        regularisers: Mapping[str, Regulariser] | None = None,
        activations: Mapping[str, Activation] | None = None,
    ) -> "Trainer":
        """The trainer as it was saved.

        Raises:
            UserError: no checkpoint, a damaged one, or one of another recipe.
        """
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            state = load_file(folder / STATE)
            saved = Recipe(**facts["recipe"])
            if saved != recipe:
                changed = [key for key, value in asdict(recipe).items() if asdict(saved)[key] != value]
                raise UserError(f"{folder} was trained with another {', '.join(changed)}: delete it to start anew")
            trainer = cls(saved, state["b_dec"], int(facts["seed"]), regularisers, activations)
            named = {
                name: tensor
                for name, tensor in state.items()
                if not name.startswith("adam.") and name != "rows_since_fired"
            }
            trainer.weights = Weights.of(named)
            trainer._optimiser = trainer._new_optimiser()
            for name, tensor in trainer.weights.named().items():
                found = {
                    key.split(".")[1]: value
                    for key, value in state.items()
                    if key.startswith("adam.") and key.endswith(f".{name}")
                }
                if found:
                    trainer._optimiser.state[tensor] = found
            trainer.rows_since_fired = state["rows_since_fired"]
            trainer.n_steps, trainer.threshold = int(facts["n_steps"]), float(facts["threshold"])
            trainer.n_active, trainer.rescaled = int(facts["n_active"]), float(facts["rescaled"])
            trainer.first_loss = math.nan if facts["first_loss"] is None else float(facts["first_loss"])
        except FileNotFoundError as error:
            raise UserError(f"{folder} holds no checkpoint ({error.filename} is missing)") from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"{folder} is damaged ({error}): delete it to start anew") from error
        return trainer


def _first_weights(recipe: Recipe, mean: Tensor, target_mean: Tensor | None, seed: int) -> Weights:
    n_latents, b_dec = recipe.n_latents, mean.detach().clone()
    size = 1.0 if recipe.architecture == "matching_pursuit" else 0.1

    def directions(width: int, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(n_latents, width, generator=generator)
        return drawn.mul_(size / drawn.norm(dim=1, keepdim=True))

    if target_mean is not None:
        generator = generator_for("transcoder", seed)
        encoder, decoder = directions(len(mean), generator), directions(len(target_mean), generator)
        extra = {"skip": torch.zeros(len(target_mean), len(mean))} if recipe.skip else {}
        return Weights(encoder, -(encoder @ mean), decoder, target_mean.detach().clone(), extra)
    decoder, none = directions(len(mean), generator_for("dictionary", seed)), torch.zeros(n_latents)
    match recipe.architecture:
        case "matching_pursuit":
            return Weights(torch.empty(0), torch.empty(0), decoder, b_dec)
        case "gated":
            extra = {"r_mag": none.clone(), "b_mag": none.clone()}
        case "jumprelu":
            extra = {"threshold": torch.full((n_latents,), recipe.first_threshold)}
        case _:
            extra = {}
    return Weights(decoder.clone(), none, decoder, b_dec, extra)
