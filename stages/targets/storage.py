"""Targets on disk: weights.safetensors + target.json + data.safetensors, and nothing executable.

Targets of words have words.json beside them, the word of each id; some targets keep checkpoints.safetensors.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformer_lens import HookedRootModule

from stages.base import paths
from stages.contracts.target import (
    TWIN,
    Corpus,
    Target,
    TargetSpec,
    digest_of,
)
from stages.errors import UserError
from stages.targets.definition import TargetDefinition
from stages.targets.zoo import ZOO

__all__ = [
    "definition_of",
    "freeze",
    "load_checkpoints",
    "load_target",
    "load_weights",
    "load_words",
    "save_checkpoints",
    "save_target",
]

SPLITS = ("train", "validation", "tasks")
WEIGHTS = "weights.safetensors"


def definition_of(name: str) -> TargetDefinition:
    """The zoo's entry of a target, or of its twin."""
    made: TargetDefinition = ZOO.find(name.removesuffix(TWIN))()
    return made


def _twin(target: Target) -> Target:
    model = definition_of(target.name).build(torch.Generator().manual_seed(0))
    spec = replace(target.spec, name=f"{target.name}{TWIN}", digest="")
    spec = replace(spec, digest=digest_of(dict(model.state_dict()), spec.to_json()))
    return Target(spec, model, {split: target.corpus(split) for split in SPLITS})


def freeze(name: str, model: HookedRootModule, data: dict[str, Corpus]) -> Target:
    """A trained model as a Target, its digest computed."""
    definition = ZOO.find(name)()
    hooks, components = definition.hooks(), definition.components()
    spec = TargetSpec(name=name, digest="", hooks=hooks, components=components, **definition.layout())
    spec = replace(spec, digest=digest_of(dict(model.state_dict()), spec.to_json()))
    return Target(spec, model, data)


def save_target(target: Target, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in target.model.state_dict().items()}, folder / WEIGHTS)
    arrays: dict[str, torch.Tensor] = {}
    for split in SPLITS:
        corpus = target.corpus(split)
        arrays |= {f"{split}.inputs": corpus.inputs.contiguous(), f"{split}.labels": corpus.labels.contiguous()}
    save_file(arrays, folder / "data.safetensors")
    text = json.dumps(target.spec.to_json(), indent=1, sort_keys=True)
    (folder / "target.json").write_text(text + "\n", encoding="utf-8")
    words = getattr(definition_of(target.name), "words", None)
    if words is not None:
        text = json.dumps(words(), indent=0, ensure_ascii=False)
        (folder / "words.json").write_text(text + "\n", encoding="utf-8")


def load_words(name: str, folder: Path | None = None) -> tuple[str, ...] | None:
    """The word of each id of a saved target, for readers; None where inputs are no tokens."""
    file = (folder or paths.target_dir(name.removesuffix(TWIN))) / "words.json"
    return tuple(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def save_checkpoints(checkpoints: Mapping[int, Mapping[str, torch.Tensor]], folder: Path) -> None:
    """Write checkpoints.safetensors: every weight stacked over the checkpoints, and ``steps``, ascending."""
    steps = sorted(checkpoints)
    names = sorted(checkpoints[steps[0]])
    stacked = {name: torch.stack([checkpoints[step][name] for step in steps]) for name in names}
    save_file(stacked | {"steps": torch.tensor(steps)}, folder / "checkpoints.safetensors")


def load_checkpoints(name: str, folder: Path | None = None) -> tuple[tuple[int, ...], dict[str, torch.Tensor]]:
    """Steps of a saved target's checkpoints, and each weight stacked over them: as variants are.

    Raises:
        UserError: it keeps none, or was not made.
    """
    folder = folder or paths.target_dir(name)
    paths.require(folder / "target.json", "targets")
    if not (folder / "checkpoints.safetensors").is_file():
        raise UserError(f"target {name} keeps no checkpoints: take one that does, such as grokked_addition")
    stacked = load_file(folder / "checkpoints.safetensors")
    return tuple(stacked.pop("steps").tolist()), stacked


def load_target(name: str, folder: Path | None = None) -> Target:
    """Load and verify a saved target.

    Raises:
        UserError: unknown name, stage not run, or files that do not match their digest or the code.
    """
    if name.endswith(TWIN):
        return _twin(load_target(name.removesuffix(TWIN), folder))
    definition = ZOO.find(name)()
    folder = folder or paths.target_dir(name)
    spec_file = paths.require(folder / "target.json", "targets")
    spec = TargetSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    state = load_file(paths.require(folder / WEIGHTS, "targets"))
    if digest_of(state, spec.to_json()) != spec.digest:
        raise UserError(f"{folder} does not match its digest: it was changed or damaged; delete it and `lensmith run`")
    declared = definition.layout()
    offers = declared.get("offers", ())  # not covered by the digest, and absent in files of earlier versions
    if spec.offers != offers:
        raise UserError(
            f"{spec_file} says that {name} offers {', '.join(spec.offers) or 'nothing'}, the code says"
            f" {', '.join(offers) or 'nothing'}: it is of another version; `dvc repro targets@{name}`"
        )
    model = definition.build(torch.Generator().manual_seed(0))
    load_weights(model, state, folder / WEIGHTS)
    if digest_of(dict(model.state_dict()), spec.to_json()) != spec.digest:
        raise UserError(f"{folder / WEIGHTS} was read, and the model holds something else: report this")
    arrays = load_file(paths.require(folder / "data.safetensors", "targets"))
    return Target(
        spec, model, {split: Corpus(arrays[f"{split}.inputs"], arrays[f"{split}.labels"]) for split in SPLITS}
    )


def load_weights(model: HookedRootModule, state: Mapping[str, torch.Tensor], file: Path) -> None:
    """Put weights into a model: all of them, none left as it was, none left over.

    Raises:
        UserError: a weight is missing, unknown, or of another shape or type; names it.
    """
    expected = model.state_dict()
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    other = sorted(
        name
        for name in set(expected) & set(state)
        if (expected[name].shape, expected[name].dtype) != (state[name].shape, state[name].dtype)
    )
    kinds = (("without", missing), ("with the unknown", extra), ("with another shape or type of", other))
    found = [f"{what} {', '.join(names[:5])}" for what, names in kinds if names]
    if found:
        raise UserError(
            f"{file} is {' and '.join(found)}: it is of another model; delete its folder and `lensmith run`"
        )
    model.load_state_dict(dict(state), strict=True)
