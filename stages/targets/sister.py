"""A sister of a target: the same recipe and the same data, other initial weights and another order of batches.

Two such networks behave alike and are made differently inside (Li et al. 2016, "Convergent Learning", section 1), so an
interpretation that says what the network does can be used on a sister, and one that remembers this network's units
or answers cannot.
"""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from stages.base import paths
from stages.base.code import code_digest
from stages.contracts.target import Target, digest_of
from stages.errors import UserError
from stages.targets.definition import ReadsModel
from stages.targets.storage import SOURCE, SPLITS, definition_of, load_target, load_weights

__all__ = ["sister_of"]


def sister_of(name: str) -> Target:
    """The sister of a saved target, trained once and kept in .lensmith/sisters/. It has the target's name, spec and
    corpora; its digest is its own.

    Raises:
        UserError: the target was not made, is read and not trained, or the sister did not learn what the target must.
    """
    home, definition = load_target(name), definition_of(name)
    if isinstance(definition, ReadsModel):
        raise UserError(f"target {name} is read and not trained, so it has no sister: take one that is trained here")
    entry = json.loads((paths.target_dir(name) / SOURCE).read_text(encoding="utf-8"))
    if "seed" not in entry or "steps" not in entry:
        raise UserError(
            f"{paths.target_dir(name) / SOURCE} does not say how {name} was trained: `dvc repro targets@{name}`"
        )
    seed, steps = int(entry["seed"]), int(entry["steps"])
    start = seed + 1
    code = code_digest(type(definition).__module__)
    file = paths.work_dir() / "sisters" / f"{name}-{start}-{home.digest[:16]}-{code[:16]}.safetensors"
    generator = torch.Generator().manual_seed(start)
    model = definition.build(generator)
    if file.is_file():
        load_weights(model, load_file(file), file)
    else:
        torch.set_num_threads(1)
        data = definition.data(seed)
        definition.fit(model, data, steps, generator, lambda metrics, step: None)
        held_out = home.corpus("validation")
        with torch.no_grad():
            metrics = home.metric(model(held_out.inputs), held_out.labels)
        if hasattr(definition, "skills"):
            metrics |= definition.skills(model, data, seed)
        low = [key for key, least in definition.minimum.items() if not metrics[key] >= least]
        if low:
            said = ", ".join(f"{key} {metrics[key]:.3f} of at least {definition.minimum[key]}" for key in low)
            raise UserError(f"the sister of {name} did not learn: {said}; leave {name} out, or give it more steps")
        _save(model, file)
    spec = replace(home.spec, digest=digest_of(dict(model.state_dict()), home.spec.to_json()))
    return Target(spec, model, {split: home.corpus(split) for split in SPLITS})


def _save(model: torch.nn.Module, file: Path) -> None:
    """Whole or not at all: whoever is killed here trains it again."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".part")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, unfinished)
    unfinished.replace(file)
