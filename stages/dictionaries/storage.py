"""Dictionaries on disk, in SAELens format: sae_weights.safetensors and cfg.json, read by ``SAE.load_from_disk``."""

import json
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.base import paths
from stages.contracts.dictionary import Dictionary
from stages.contracts.target import TWIN
from stages.dictionaries.foreign import checked_weights, present_form
from stages.errors import UserError

__all__ = ["CFG", "attached_folders", "load_dictionaries", "load_dictionary", "save_dictionary"]

WEIGHTS, CFG = "sae_weights.safetensors", "cfg.json"


def save_dictionary(dictionary: Dictionary, folder: Path) -> None:
    """Write a dictionary, byte-stable: ``SAE.load_from_disk(folder)`` reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: value for name, value in dictionary.items() if isinstance(value, Tensor)}, folder / WEIGHTS)
    partial = folder / f".{CFG}.partial"
    partial.write_text(json.dumps(dictionary["cfg"], indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(folder / CFG)


def load_dictionary(folder: Path) -> Dictionary:
    """What was saved, by us or by somebody else, in any form of SAELens (see ``foreign``), which is not imported.

    Raises:
        UserError: a file is missing or damaged, or the weights are not those of the architecture in cfg.json.
    """
    cfg_file, weights_file = folder / CFG, folder / WEIGHTS
    for file in (cfg_file, weights_file):
        if not file.is_file():
            raise UserError(
                f"{folder} holds no {file.name}: copy it from where the dictionary was saved, or run `lensmith run` if"
                " it is one of a target's own"
            )
    try:
        given: object = json.loads(cfg_file.read_text(encoding="utf-8"))
        weights: dict[str, Tensor] = load_file(weights_file)
    except (ValueError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"{folder} is damaged ({said}): copy it again from where it was saved, or delete it and run stage"
            " `dictionaries` if it is one of a target's own"
        ) from error
    cfg = present_form(given, cfg_file)
    return cast(Dictionary, {"cfg": cfg, **checked_weights(cfg, weights, folder)})


def attached_folders(target: str, root: Path | None = None) -> list[Path]:
    """Folders of the dictionaries that were attached to a target; none beside another ``root``."""
    base = paths.attached_dir(target.removesuffix(TWIN))
    return [] if root else sorted(file.parent for file in base.glob(f"*/*/{CFG}"))


def load_dictionaries(target: str, root: Path | None = None) -> dict[str, Dictionary]:
    """All dictionaries of a target: ``{"<hook point>/<architecture>": dictionary}``, sorted by name; those that were
    attached (``lensmith dictionaries attach``) under the name they were given. A twin has those of the target it is a
    twin of.

    Raises:
        UserError: stage ``dictionaries`` has not run and none was attached, or a file is damaged.
    """
    base, attached = root or paths.dictionaries_dir(target.removesuffix(TWIN)), attached_folders(target, root)
    if not attached:
        paths.require(base, "dictionaries")
    folders = sorted([*(file.parent for file in base.glob(f"*/*/{CFG}")), *attached], key=lambda one: one.parts[-2:])
    if not folders:
        raise UserError(f"{base} holds no dictionary: run `python -m stages dictionaries {target}`")
    return {f"{folder.parent.name}/{folder.name}": load_dictionary(folder) for folder in folders}
