"""A dictionary from elsewhere beside a target's own: for the other commands, and for methods that read latents."""

import re
from collections.abc import Callable
from typing import Literal

from stages.activations.writer import row_width
from stages.base import paths
from stages.contracts.record import Record
from stages.contracts.score_result import ScoreResult
from stages.dictionaries.architectures.codec import ENCODERS, latent_kind
from stages.dictionaries.foreign import check_place, unknown_architecture
from stages.dictionaries.storage import CFG, load_dictionary, save_dictionary
from stages.dictionaries.training.train import ARCHITECTURES
from stages.errors import UserError
from stages.interpretation.methods.sae import Sae
from stages.scoring.score import score_method
from stages.targets.storage import load_target
from stages.tasks.storage import list_tasks
from stages.tools.dictionaries import dictionary_folder, place_of

__all__ = ["Attached", "AttachedSae", "attach", "score_attached"]

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


def attach(name: str, called: str, *, target: str | None, hook: str | None) -> Attached:
    """Check a saved dictionary against a target and copy it beside the target's own.

    Args:
        name: a folder in SAELens format.
        called: what it is called from now on.
        target, hook: where the folder does not say it.

    Raises:
        UserError: it does not fit the target, cannot be encoded, or its name is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", called) or called in (*ARCHITECTURES, "random"):
        raise UserError(
            f"--name {called!r}: up to 64 letters, digits, dots, dashes and underscores, and no name of an architecture"
        )
    folder = dictionary_folder(name)
    if target is None or hook is None:
        target, hook = place_of(folder)
    made, dictionary = load_target(target), load_dictionary(folder)
    spec = {one.name: one for one in made.spec.hooks}.get(hook)
    if spec is None:
        known = ", ".join(one.name for one in made.spec.hooks[:8])
        raise UserError(f"{hook!r} is no hook point of {target}; it has {known} and more: correct --hook")
    cfg = dictionary["cfg"]
    check_place(cfg.get("metadata", {}), made, hook)
    if latent_kind(cfg["architecture"]) not in ENCODERS:
        raise unknown_architecture(cfg["architecture"], str(folder))
    if cfg["d_in"] != row_width(spec) or cfg.get("d_out", cfg["d_in"]) != row_width(spec):
        raise UserError(f"{folder} takes rows of {cfg['d_in']}, {hook} of {target} has {row_width(spec)}")
    place = paths.attached_dir(target) / hook / called
    if (paths.dictionaries_dir(target) / hook / called / CFG).is_file():
        raise UserError(f"{target} has a dictionary {called} at {hook} of its own: choose another --name")
    if (place / CFG).is_file():
        raise UserError(f"{called} is attached to {target} at {hook} already: delete {place}, or choose another --name")
    about = cfg.get("metadata", {}) | {"model_name": target, "hook_name": hook, "target_digest": made.digest}
    save_dictionary({**dictionary, "cfg": {**cfg, "metadata": about}}, place)
    return Attached(
        name=f"{target}/{hook}/{called}",
        architecture=cfg["architecture"],
        n_latents=cfg["d_sae"],
    )


def score_attached(called: str, progress: Progress = print) -> ScoreResult:
    """The method that answers with an attached dictionary's latents, beside the built-in methods, on the tasks of the
    targets it is attached to.

    Args:
        called: the name it was attached under.
        progress: told what is being done.

    Raises:
        UserError: nothing is attached under that name, or there is no task about those targets.
    """
    base = paths.attached_dir("any").parent
    found = sorted({file.parts[-4] for file in base.glob(f"*/*/{called}/{CFG}")})
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
    return score_method(AttachedSae(called), only=only, progress=progress)
