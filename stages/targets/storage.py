"""Targets on disk: weights.safetensors + target.json + data.safetensors, and nothing executable.

Targets of words have words.json beside them, the word of each id; some targets keep checkpoints.safetensors.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import JsonValue
from safetensors.torch import load_file, save_file
from transformer_lens import HookedRootModule

from stages.base import paths
from stages.base.params import Params, checked
from stages.contracts.target import (
    TWIN,
    Corpus,
    Target,
    TargetSpec,
    digest_of,
)
from stages.errors import UserError
from stages.targets.definition import ReadsModel, TargetDefinition
from stages.targets.zoo import ZOO

__all__ = [
    "defined",
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
SOURCE = "source.json"
"""The entry of params/targets.yaml that a target was made by."""


def definition_of(name: str, folder: Path | None = None) -> TargetDefinition:
    """The definition of a saved target, or of its twin; of a target that was not saved, the zoo's file of its name."""
    file = (folder or paths.target_dir(name.removesuffix(TWIN))) / SOURCE
    entry = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"source": name.removesuffix(TWIN)}
    return defined(entry)


def defined(entry: Mapping[str, JsonValue]) -> TargetDefinition:
    """The definition that an entry of params/targets.yaml names, validated.

    Raises:
        UserError: no file of the zoo has its source's name, or one of its values is wrong.
    """
    found = ZOO.find(str(entry.get("source")))
    config: type[Params] | None = getattr(found, "Config", None)
    made: TargetDefinition = found() if config is None else found(checked(config, entry, "targets"))
    return made


def _twin(target: Target, definition: TargetDefinition) -> Target:
    model = definition.build(torch.Generator().manual_seed(0))
    spec = replace(target.spec, name=f"{target.name}{TWIN}", digest="")
    spec = replace(spec, digest=digest_of(dict(model.state_dict()), spec.to_json()))
    return Target(spec, model, {split: target.corpus(split) for split in SPLITS})


def freeze(
    name: str, model: HookedRootModule, data: dict[str, Corpus], definition: TargetDefinition | None = None
) -> Target:
    """A model as a Target, its digest computed.

    Args:
        definition: what it was made by; None: the zoo's file of its name.
    """
    definition = definition or definition_of(name)
    hooks, components = definition.hooks(), definition.components()
    spec = TargetSpec(name=name, digest="", hooks=hooks, components=components, **definition.layout())
    spec = replace(spec, digest=digest_of(dict(model.state_dict()), spec.to_json()))
    return Target(spec, model, data)


def save_target(
    target: Target,
    folder: Path,
    entry: Mapping[str, JsonValue] | None = None,
    definition: TargetDefinition | None = None,
) -> None:
    """Write a target.

    Args:
        entry: what params/targets.yaml says of it; None: the zoo's file of its name.
        definition: what it was made by; None: a new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    definition = definition or definition_of(target.name)
    if not isinstance(definition, ReadsModel):  # whose weights stay where they are
        save_file({k: v.contiguous() for k, v in target.model.state_dict().items()}, folder / WEIGHTS)
    arrays: dict[str, torch.Tensor] = {}
    for split in SPLITS:
        corpus = target.corpus(split)
        arrays |= {f"{split}.inputs": corpus.inputs.contiguous(), f"{split}.labels": corpus.labels.contiguous()}
    save_file(arrays, folder / "data.safetensors")
    _save_json(folder / "target.json", target.spec.to_json())
    _save_json(folder / SOURCE, dict(entry or {"source": target.name}))
    words = getattr(definition, "words", None)
    if words is not None:
        text = json.dumps(words(), indent=0, ensure_ascii=False)
        (folder / "words.json").write_text(text + "\n", encoding="utf-8")


def _save_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n", encoding="utf-8")


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
    target, definition = _loaded(name.removesuffix(TWIN), folder)
    return _twin(target, definition) if name.endswith(TWIN) else target


def _loaded(name: str, folder: Path | None) -> tuple[Target, TargetDefinition]:
    """A saved target, and the definition that has built or read its model."""
    folder = folder or paths.target_dir(name)
    if name not in ZOO and not (folder / "target.json").is_file():
        raise UserError(
            f"target {name!r} is unknown; known: {', '.join(ZOO.names())}, and what is in {folder.parent}. One that has"
            f" an entry in params/targets.yaml is made with `dvc repro targets@{name}`"
        )
    spec_file = paths.require(folder / "target.json", "targets")
    definition = definition_of(name, folder)
    spec = TargetSpec.from_json(json.loads(spec_file.read_text(encoding="utf-8")))
    if isinstance(definition, ReadsModel):
        model = definition.read()
        changed = f"{name} is not what it was when its stage ran: `dvc repro -f targets@{name}`"
    else:
        model = _saved_model(definition, spec, folder)
        changed = f"{folder / WEIGHTS} was read, and the model holds something else: report this"
    declared = definition.layout()
    offers = declared.get("offers", ())  # not covered by the digest, and absent in files of earlier versions
    if spec.offers != offers:
        raise UserError(
            f"{spec_file} says that {name} offers {', '.join(spec.offers) or 'nothing'}, the code says"
            f" {', '.join(offers) or 'nothing'}: it is of another version; `dvc repro targets@{name}`"
        )
    if digest_of(dict(model.state_dict()), spec.to_json()) != spec.digest:
        raise UserError(changed)
    arrays = load_file(paths.require(folder / "data.safetensors", "targets"))
    data = {split: Corpus(arrays[f"{split}.inputs"], arrays[f"{split}.labels"]) for split in SPLITS}
    return Target(spec, model, data), definition


def _saved_model(definition: TargetDefinition, spec: TargetSpec, folder: Path) -> HookedRootModule:
    state = load_file(paths.require(folder / WEIGHTS, "targets"))
    if digest_of(state, spec.to_json()) != spec.digest:
        raise UserError(f"{folder} does not match its digest: it was changed or damaged; delete it and `lensmith run`")
    model = definition.build(torch.Generator().manual_seed(0))
    load_weights(model, state, folder / WEIGHTS)
    return model


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
