"""Targets on disk: weights.safetensors + target.json + data.safetensors, and nothing executable."""

import json
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

__all__ = ["definition_of", "freeze", "load_target", "save_target"]


def definition_of(name: str) -> TargetDefinition:
    """The zoo's entry of a target, or of its twin."""
    made: TargetDefinition = ZOO.find(name.removesuffix(TWIN))()
    return made


def _twin(target: Target) -> Target:
    model = definition_of(target.name).build(torch.Generator().manual_seed(0))
    spec = replace(target.spec, name=f"{target.name}{TWIN}", digest="")
    spec = replace(spec, digest=digest_of(dict(model.state_dict()), spec.to_json()))
    return Target(spec, model, {split: target.corpus(split) for split in ("train", "validation", "tasks")})


def freeze(name: str, model: HookedRootModule, data: dict[str, Corpus]) -> Target:
    """A trained model as a Target, its digest computed."""
    definition = ZOO.find(name)()
    hooks, components = definition.hooks(), definition.components()
    spec = TargetSpec(name=name, digest="", hooks=hooks, components=components, **definition.layout())
    state = dict(model.state_dict())
    spec = TargetSpec(**{**spec.__dict__, "digest": digest_of(state, spec.to_json())})
    return Target(spec, model, data)


def save_target(target: Target, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in target.model.state_dict().items()}, folder / "weights.safetensors")
    arrays: dict[str, torch.Tensor] = {}
    for split in ("train", "validation", "tasks"):
        corpus = target.corpus(split)
        arrays |= {f"{split}.inputs": corpus.inputs.contiguous(), f"{split}.labels": corpus.labels.contiguous()}
    save_file(arrays, folder / "data.safetensors")
    text = json.dumps(target.spec.to_json(), indent=1, sort_keys=True)
    (folder / "target.json").write_text(text + "\n", encoding="utf-8")


def load_target(name: str, folder: Path | None = None) -> Target:
    """Load and verify a saved target.

    Raises:
        UserError: unknown name, stage not run, or files that do not match their digest.
    """
    if name.endswith(TWIN):
        return _twin(load_target(name.removesuffix(TWIN), folder))
    definition = ZOO.find(name)()
    folder = folder or paths.target_dir(name)
    spec_file = paths.require(folder / "target.json", "targets")
    spec = TargetSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    state = load_file(paths.require(folder / "weights.safetensors", "targets"))
    if digest_of(state, spec.to_json()) != spec.digest:
        raise UserError(f"{folder} does not match its digest: it was changed or damaged; delete it and `lensmith run`")
    model = definition.build(torch.Generator().manual_seed(0))
    model.load_state_dict(state, strict=False)
    arrays = load_file(paths.require(folder / "data.safetensors", "targets"))
    data = {
        split: Corpus(arrays[f"{split}.inputs"], arrays[f"{split}.labels"])
        for split in ("train", "validation", "tasks")
    }
    return Target(spec, model, data)
