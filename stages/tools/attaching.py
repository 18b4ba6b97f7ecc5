"""A dictionary from elsewhere beside a target's own: for the other commands, and for methods that read latents."""

import re
from pathlib import Path

from stages.activations.writer import row_width
from stages.base import paths
from stages.base.files import save_text
from stages.contracts.record import Record
from stages.dictionaries.architectures.codec import ENCODERS, latent_kind
from stages.dictionaries.foreign import check_place, unknown_architecture
from stages.dictionaries.storage import CFG, load_dictionary, save_dictionary
from stages.dictionaries.training.train import ARCHITECTURES
from stages.errors import UserError
from stages.targets.storage import load_target
from stages.tools.dictionaries import dictionary_folder, place_of

__all__ = ["Attached", "attach"]

METHOD = '''"""Latents of the dictionary {name} that was attached to {target}: worth more than raw activations?"""

from stages.interpretation.methods.sae import Sae


class Attached(Sae):
    """Answers as the built-in `sae` does, with the latents of {name} at {hook}."""

    name = "sae_{slug}"

    def __init__(self) -> None:
        super().__init__(architecture="{name}")
'''


class Attached(Record):
    """Where a dictionary was attached."""

    name: str
    """<target>/<hook point>/<name>, for other commands."""
    architecture: str
    """The form in which it is saved."""
    n_latents: int
    """Size of the dictionary."""
    method: str | None
    """File of the method that answers with its latents, if one was asked for."""


def attach(name: str, called: str, *, target: str | None, hook: str | None, method: Path | None) -> Attached:
    """Check a saved dictionary against a target and copy it beside the target's own.

    Args:
        name: a folder in SAELens format.
        called: what it is called from now on.
        target, hook: where the folder does not say it.
        method: file to write a method to that answers with its latents; None: none.

    Raises:
        UserError: it does not fit the target, cannot be encoded, or its name is taken.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", called) or called in (*ARCHITECTURES, "random"):
        raise UserError(
            f"--name {called!r}: up to 64 letters, digits, dots, dashes and underscores, and no name of an architecture"
        )
    if method is not None and (method.suffix != ".py" or method.exists()):
        raise UserError(f"--method {method}: give a file that ends in .py and does not exist yet")
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
    if method is not None:
        slug = re.sub(r"[^A-Za-z0-9_]", "_", called)
        save_text(method, METHOD.format(name=called, target=target, hook=hook, slug=slug))
    return Attached(
        name=f"{target}/{hook}/{called}",
        architecture=cfg["architecture"],
        n_latents=cfg["d_sae"],
        method=None if method is None else str(method),
    )
