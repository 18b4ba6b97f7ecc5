"""A dictionary from elsewhere beside a target's own: for the other commands, and for methods that read latents."""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.activations.writer import row_width
from stages.base import paths
from stages.base.params import load, names
from stages.contracts.dictionary import Dictionary, DictionaryConfig
from stages.contracts.record import Record
from stages.contracts.score_result import ScoreResult
from stages.contracts.target import HookSpec, Target
from stages.dictionaries.architectures.codec import ENCODERS, latent_kind
from stages.dictionaries.foreign import check_place, present_form, present_hook, unknown_architecture
from stages.dictionaries.releases import from_object, from_release
from stages.dictionaries.storage import CFG, load_dictionary, save_dictionary
from stages.dictionaries.training.train import ARCHITECTURES
from stages.errors import UserError
from stages.interpretation.methods.sae import Sae
from stages.interpretation.representation import corpus_vectors
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.scoring.score import score_method
from stages.targets.stage import Config as TargetsConfig
from stages.targets.storage import load_target
from stages.tasks.storage import list_tasks
from stages.tools.dictionaries import dictionary_folder

__all__ = ["Attached", "AttachedSae", "Given", "attach", "name_for", "score_attached", "score_dictionary"]

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"
NORMALISED = ("none", "layer_norm", "constant_norm_rescale")
"""What is done to a row by what is in it; ``encode`` does it."""
RIVAL = "raw_activations"
Given = str | Path | tuple[str, str] | Any
"""A folder or listed name, (release, id), or an SAE of SAELens."""

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
Progress = Callable[[str], None]


class AttachedSae(Sae):
    """Answers as the built-in ``sae`` does, with the latents of the dictionary that was attached under a name.

    Args:
        called: that name.
    """

    def __init__(self, called: str) -> None:
        super().__init__(architecture=called)
        self.name = f"sae_{called}"


class Attached(Record):
    """Where a dictionary was attached."""

    name: str
    """<target>/<hook point>/<name>, for other commands."""
    architecture: str
    """The form in which it is saved."""
    n_latents: int
    """Size of the dictionary."""
    notes: tuple[str, ...] = ()
    """What is not as it was where it was trained."""


def attach(
    given: Given, called: str, *, target: str | None = None, hook: str | None = None, known_as: str | None = None
) -> Attached:
    """Check a dictionary against a target and keep it beside the target's own. To do so again changes nothing.

    Args:
        given: a folder in SAELens format, the name of a listed dictionary, (release, id) of SAELens, or an SAE or
            transcoder of SAELens in memory.
        called: what it is called from now on.
        target, hook: where the dictionary does not say it, or says another name of the same.
        known_as: the name that the dictionary has for the target's model.

    Raises:
        UserError: it does not fit the target, cannot be encoded, or its name is taken.
    """
    if not re.fullmatch(NAME, called) or called in (*ARCHITECTURES, "random"):
        raise UserError(
            f"--name {called!r}: up to 64 letters, digits, dots, dashes and underscores, and no name of an architecture"
        )
    dictionary, where = _read(given)
    about = dictionary["cfg"].get("metadata", {})
    made = load_target(target or _said(about, "model_name", "target", where))
    hook = hook or present_hook(_said(about, "hook_name", "hook", where), made)
    spec = _hook_of(made, hook, "--hook")
    check_place(about, made, hook, {*([known_as] if known_as else ()), *_names_of(made.name)})
    cfg = dictionary["cfg"]
    if latent_kind(cfg["architecture"]) not in ENCODERS:
        raise unknown_architecture(cfg["architecture"], where)
    if cfg["d_in"] != row_width(spec):
        raise UserError(
            f"{where} takes rows of {cfg['d_in']}, {hook} of {made.name} has {row_width(spec)}: give the hook point"
            f" that it was trained on; of that width are {', '.join(_of_width(made, cfg['d_in'])) or 'none'}"
        )
    _check_output(made, hook, cfg, where)
    notes = _notes(about, cfg.get("dtype"))
    if cfg.get("normalize_activations", "none") == "expected_average_only_in":
        dictionary, note = _folded(dictionary, made, spec)
        notes = (*notes, note)
    elif cfg.get("normalize_activations", "none") not in NORMALISED:
        raise UserError(
            f"{where} normalises activations ({cfg['normalize_activations']}), which is not done here: fold that into"
            " its weights with SAELens, and save it again"
        )
    place = paths.attached_dir(made.name) / hook / called
    if (paths.dictionaries_dir(made.name) / hook / called / CFG).is_file():
        raise UserError(f"{made.name} has a dictionary {called} at {hook} of its own: choose another --name")
    kept = about | {"model_name": made.name, "hook_name": hook, "target_digest": made.digest}
    whole = cast(Dictionary, {**dictionary, "cfg": {**dictionary["cfg"], "metadata": kept}})
    if (place / CFG).is_file() and not _same(load_dictionary(place), whole):
        raise UserError(
            f"another one is attached to {made.name} at {hook} as {called}: delete {place}, or choose another --name"
        )
    save_dictionary(whole, place)
    return Attached(
        name=f"{made.name}/{hook}/{called}",
        architecture=cfg["architecture"],
        n_latents=cfg["d_sae"],
        notes=notes,
    )


def _read(given: Given) -> tuple[Dictionary, str]:
    """The dictionary, and what to call it in an error."""
    if isinstance(given, tuple):
        return from_release(*given), f"{given[1]} of release {given[0]}"
    if isinstance(given, str | Path):
        folder = dictionary_folder(str(given))
        return load_dictionary(folder), str(folder)
    return from_object(given), type(given).__name__


def _said(about: Mapping[str, JsonValue], key: str, option: str, where: str) -> str:
    found = about.get(key)
    if not found:
        raise UserError(f"{where} does not say which target and hook point it is of (metadata.{key}): give --{option}")
    return str(found)


def _names_of(target: str) -> set[str]:
    """What else the model of a target is called: the name that it was read by."""
    if not paths.params_file("targets").is_file():  # a folder that holds a target alone
        return set()
    entry = load("targets", TargetsConfig).targets.get(target)
    name = (entry.model_extra or {}).get("name") if entry else None
    return {str(name)} if name else set()


def _of_width(target: Target, width: int) -> list[str]:
    return [one.name for one in target.spec.hooks if row_width(one) == width][:6]


def _hook_of(target: Target, hook: str, option: str) -> HookSpec:
    found = {one.name: one for one in target.spec.hooks}.get(hook)
    if found is None:
        names = [one.name for one in target.spec.hooks]
        near = difflib.get_close_matches(hook, names, 3, 0.6) or names[:8]
        raise UserError(
            f"{hook!r} is no hook point of {target.name}; it has {', '.join(near)} and more: correct {option}"
        )
    return found


def _check_output(target: Target, hook: str, cfg: DictionaryConfig, where: str) -> None:
    """A transcoder predicts another hook point, which must be there and as wide as its output."""
    width = cfg.get("d_out", cfg["d_in"])
    to = cfg.get("metadata", {}).get("hook_name_out") or ("" if "transcoder" in cfg["architecture"] else hook)
    if not to:  # what it predicts is not said, and latents do not need it
        return
    out = present_hook(str(to), target)
    if out not in {one.name for one in target.spec.hooks}:
        return  # such as what an MLP adds, which targets do not show; latents do not need it
    if row_width(target.spec.hook(out)) != width:
        raise UserError(
            f"{where} predicts rows of {width}, {out} of {target.name} has {row_width(target.spec.hook(out))}: it is of"
            " another model or hook point (metadata.hook_name_out)"
        )


def _notes(about: Mapping[str, JsonValue], dtype: str | None) -> tuple[str, ...]:
    """What is done otherwise here than where it was trained."""
    notes = []
    if about.get("prepend_bos"):
        notes.append("trained on texts that begin with a BOS word; inputs here are as the target's corpus has them")
    if dtype not in (None, "float32", "torch.float32"):
        notes.append(f"weights were saved as {dtype} and are used in float32")
    if about.get("hook_head_index") is not None:
        notes.append(f"trained on head {about['hook_head_index']} alone; rows here are of the whole hook point")
    return tuple(notes)


def _folded(dictionary: Dictionary, target: Target, spec: HookSpec) -> tuple[Dictionary, str]:
    """With the scale of the activations in its weights (SAELens, ``fold_activation_norm_scaling_factor``): the mean
    norm of a row times it is the root of the width. It is not saved with the dictionary, so it is measured."""
    access = MeteredAccess(target, Ledger(), free=True)
    norms = corpus_vectors(access, [spec.name])[spec.name].norm(dim=-1)
    factor = float(dictionary["cfg"]["d_in"] ** 0.5 / norms.mean())
    scaled = {"W_enc": dictionary["W_enc"] * factor, "W_dec": dictionary["W_dec"] / factor}
    scaled["b_dec"] = dictionary["b_dec"] / factor
    cfg = {**dictionary["cfg"], "normalize_activations": "none"}
    note = f"rows were scaled where it was trained, by a factor that is not saved; measured on {len(norms)} rows here"
    return cast(Dictionary, {**dictionary, **scaled, "cfg": cfg}), f"{note}: {factor:.4g}"


def _same(one: Dictionary, other: Dictionary) -> bool:
    """Whether two have the same weights and the same settings."""
    weights = [{key: value for key, value in of.items() if isinstance(value, Tensor)} for of in (one, other)]
    equal = weights[0].keys() == weights[1].keys() and all(
        torch.equal(value, weights[1][key]) for key, value in weights[0].items()
    )
    return equal and present_form(one["cfg"], Path(CFG)) == present_form(other["cfg"], Path(CFG))


def name_for(given: Given) -> str:
    """What a dictionary is called where nobody says it: its folder, or its release and id."""
    said = "-".join(given) if isinstance(given, tuple) else Path(str(given)).resolve().name
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", said).strip("-._")[-56:].strip("-._") or "dictionary"
    return f"given-{plain}" if plain in (*ARCHITECTURES, "random") else plain


def score_dictionary(
    given: Given,
    called: str | None = None,
    *,
    target: str | None = None,
    hook: str | None = None,
    known_as: str | None = None,
    progress: Progress = print,
) -> ScoreResult:
    """Is a dictionary worth more than raw activations? Attached under a name, if it is not yet, and scored.

    Args:
        given: as of ``attach``, or the name it was attached under.
        called, target, hook, known_as: as of ``attach``.
        progress: told what is being done.

    Raises:
        UserError: as of ``attach``, or there is no task about its targets.
    """
    base = paths.attached_dir("any").parent
    if isinstance(given, str) and not (Path(given) / CFG).is_file() and list(base.glob(f"*/*/{given}/{CFG}")):
        return score_attached(given, progress)
    done = attach(given, called or name_for(given), target=target, hook=hook, known_as=known_as)
    progress(f"attached as {done.name}")
    for note in done.notes:
        progress(f"note: {note}")
    return score_attached(done.name.rpartition("/")[2], progress, target=done.name.partition("/")[0])


def score_attached(called: str, progress: Progress = print, *, target: str | None = None) -> ScoreResult:
    """The method that answers with an attached dictionary's latents, beside the built-in methods, on the tasks of the
    targets it is attached to.

    Args:
        called: the name it was attached under.
        progress: told what is being done.
        target: of that one alone.

    Raises:
        UserError: nothing is attached under that name, or there is no task about those targets.
    """
    base = paths.attached_dir("any").parent
    found = sorted({file.parts[-4] for file in base.glob(f"{target or '*'}/*/{called}/{CFG}")})
    if not found:
        raise UserError(
            f"no dictionary is attached as {called!r}: `lensmith dictionaries attach FOLDER --name {called}`"
        )
    only = [task for split in SPLITS for task in list_tasks(split) if task[1] in found]
    if not only:
        raise UserError(
            f"no train or validation task is about {', '.join(found)}: name one in `targets` of a family in"
            " params/tasks.yaml and `lensmith run`; `lensmith dictionaries eval` measures it without tasks"
        )
    rival = RIVAL if RIVAL in names("reward", "methods") else None
    return score_method(AttachedSae(called), only=only, rival=rival, progress=progress)
