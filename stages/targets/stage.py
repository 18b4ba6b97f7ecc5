"""Stage ``targets``: train one target of the zoo, measure it on held-out data, freeze it.

Writes data/targets/<name>/: weights.safetensors, target.json (spec with digest), data.safetensors, metrics.json; of a
target of words words.json, and checkpoints.safetensors where some are kept.
"""

import json
import sys
from collections.abc import Callable, Mapping
from math import prod
from typing import NamedTuple

import torch
from pydantic import ConfigDict, Field

from stages import tracking
from stages.base import paths
from stages.base.params import Params, checked, load
from stages.contracts.target import Target
from stages.errors import UserError
from stages.targets.definition import ReadsModel, TargetDefinition, TrainedConfig
from stages.targets.storage import defined, freeze, save_checkpoints, save_target
from stages.targets.zoo import ZOO

__all__ = ["Config", "Entry", "Trained", "main", "run", "train"]

PASS_BYTES = 1 << 28
"""Of what one forward pass computes at hook points and outputs, at most."""


class Entry(Params):
    """One target, as its source says; see ``Config`` of the source's file in stages/targets/zoo."""

    model_config = ConfigDict(frozen=True, extra="allow")

    source: str
    """The file in stages/targets/zoo that trains or reads it."""

    def checked(self, name: str) -> Params:
        """The entry as its source's Config.

        Raises:
            UserError: there is no such source, or a value is wrong.
        """
        config: type[Params] = getattr(ZOO.find(self.source), "Config", TrainedConfig)
        return checked(config, self.model_dump(), f"targets.targets.{name}")


class Config(Params):
    targets: dict[str, Entry]
    """One entry per target."""
    n_corpus: int = Field(ge=64, le=100_000)
    """Inputs in the train corpus handed to methods, where a target does not say how many; a quarter as many for
    validation."""


class Trained(NamedTuple):
    target: Target
    metrics: dict[str, float]
    """Held-out loss (nats) and accuracy, and what the definition measures of its own."""
    checkpoints: Mapping[int, Mapping[str, torch.Tensor]]
    """Weights after some steps; empty where none are kept."""
    definition: TargetDefinition
    """What made it."""


def train(name: str, entry: Entry, n_corpus: int, log: Callable[[dict[str, float], int], None]) -> Trained:
    """Train one target, or read it, and measure it; whether it learned is for the caller to say.

    Args:
        n_corpus: inputs in the train corpus of a target that does not say how many.
        log: takes metrics and the step they are of.

    Raises:
        UserError: the name is unknown.
    """
    torch.set_num_threads(1)
    settings = entry.checked(name)
    definition = defined(settings.model_dump())
    seed, steps = int(getattr(settings, "seed", 0)), int(getattr(settings, "steps", 0))
    n_corpus = int(getattr(settings, "n_corpus", n_corpus))
    generator = torch.Generator().manual_seed(seed)
    data = definition.data(seed)
    if isinstance(definition, ReadsModel):
        model = definition.read()
    else:
        model = definition.build(generator)
        definition.fit(model, data, steps, generator, log)
    corpora = {
        "train": definition.sample(data, "train", n_corpus, generator),
        "validation": definition.sample(data, "validation", n_corpus // 4, generator),
        "tasks": data["tasks"],
    }
    target = freeze(name, model, corpora, definition)
    n_held_out = 300 if isinstance(definition, ReadsModel) else 2000  # of a large model each takes its time
    held_out = definition.sample(data, "validation", n_held_out, generator)
    metrics = target.metric(_outputs(target, held_out.inputs), held_out.labels)
    if hasattr(definition, "skills"):
        metrics |= definition.skills(model, data, seed)
    log({f"heldout_{key}": value for key, value in metrics.items()}, steps)
    return Trained(target, metrics, getattr(definition, "checkpoints", {}), definition)


def run(config: Config, name: str) -> dict[str, float]:
    """Train and save one target; returns its held-out metrics.

    Raises:
        UserError: the name is unknown, or the target did not learn.
    """
    if name not in config.targets:
        raise UserError(f"target {name!r} has no settings: add it to params/targets.yaml, as the others are")
    entry = config.targets[name]
    settings = entry.checked(name).model_dump()
    steps = settings.get("steps", 0)
    with tracking.stage_run(f"targets {name}", settings) as log:

        def report(metrics: dict[str, float], step: int) -> None:
            log(metrics, step)
            if "loss" in metrics and (step % 500 == 0 or step == steps - 1):
                print(f"{name}: step {step + 1}/{steps} loss {metrics['loss']:.3f}", flush=True)

        target, metrics, checkpoints, definition = train(name, entry, config.n_corpus, report)
    minimum = definition.minimum
    others = "".join(f", {key} {value:.3f}" for key, value in metrics.items() if key not in ("accuracy", "loss"))
    print(f"{name}: held-out accuracy {metrics['accuracy']:.3f}, loss {metrics['loss']:.3f} nats{others}", flush=True)
    low = [key for key, least in minimum.items() if not metrics[key] >= least]  # NaN is low
    if low:
        said = ", ".join(f"{key} {metrics[key]:.3f}, at least {minimum[key]} is needed" for key in low)
        raise UserError(
            f"target {name} did not learn: held-out {said}; raise targets.{name}.steps in"
            f" {paths.params_file('targets')}"
        )
    folder = paths.target_dir(name)
    save_target(target, folder, settings, definition)
    if checkpoints:
        save_checkpoints(checkpoints, folder)
    rounded = {key: round(value, 6) for key, value in metrics.items()}
    (folder / "metrics.json").write_text(json.dumps(rounded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return metrics


def _outputs(target: Target, inputs: torch.Tensor) -> torch.Tensor:
    """(n, C) logits, in as few passes as memory allows."""
    held = sum(prod(hook.shape) for hook in target.spec.hooks) + target.spec.n_outputs
    with torch.no_grad():
        return torch.cat([target.model(part) for part in torch.split(inputs, max(1, PASS_BYTES // (4 * held)))])


def main() -> None:
    run(load("targets", Config), sys.argv[1])
