"""Targets that are named on the command line: known ones, and those of params/optional, which are written into params.

A file params/optional/<name>.yaml says everything about one target at once: what makes its source available, its entry
in params/targets.yaml, the hook points whose activations are kept, its dictionaries, and how many instances of which
families are asked about it.
"""

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import Field
from ruamel.yaml import YAML

from stages.base.files import save_text
from stages.base.params import Params, load, names
from stages.errors import UserError

__all__ = ["OptionalTarget", "add_target", "known_targets"]


class OptionalTarget(Params):
    needs: str = ""
    """What makes its source available, as a command."""
    target: dict[str, Any]
    """Its entry in params/targets.yaml."""
    activations: tuple[str, ...] = ()
    """Hook points to cache; empty: all of the roles in params/activations.yaml."""
    dictionaries: dict[str, Any] = Field(default_factory=dict)
    """Its entry under ``trained_on`` in params/dictionaries.yaml; empty: none are trained."""
    families: dict[str, int] = Field(default_factory=dict)
    """Instances of each family that is asked about it."""


def known_targets(root: Path, wanted: Sequence[str]) -> list[str]:
    """The names once each; a target of params/optional is added to params first. Returns lines to show.

    Raises:
        UserError: a name is neither.
    """
    there, lines = set(names("targets", "targets")), list[str]()
    optional = sorted(path.stem for path in (root / "params" / "optional").glob("*.yaml"))
    for name in dict.fromkeys(wanted):
        if name in there:
            continue
        if name not in optional:
            raise UserError(
                f"--targets {name}: no such target in params/targets.yaml ({', '.join(sorted(there))}), nor in"
                f" params/optional ({', '.join(optional) or 'empty'}); docs/targets.md says how to add one"
            )
        lines += add_target(root, name)
    return lines


def add_target(root: Path, name: str) -> list[str]:
    """Write a target of params/optional into the files of params that it concerns; comments stay. Returns what changed.

    Raises:
        UserError: its file is wrong, or it names a family that there is not.
    """
    recipe = load("optional", OptionalTarget, root / "params" / "optional" / f"{name}.yaml")
    families = set(names("tasks", "families"))
    unknown = sorted(set(recipe.families) - families)
    if unknown:
        raise UserError(
            f"params/optional/{name}.yaml: families {', '.join(unknown)} are not in params/tasks.yaml: "
            f"known are {', '.join(sorted(families))}"
        )
    changed = [_change(root, "targets", ("targets", name), recipe.target)]
    changed.append(_change(root, "interpretation", ("targets",), name))
    if recipe.activations:
        changed.append(_change(root, "activations", ("hooks", name), list(recipe.activations)))
    if recipe.dictionaries:
        changed.append(_change(root, "dictionaries", ("trained_on", name), recipe.dictionaries))
    for family, n in recipe.families.items():
        changed.append(_change(root, "tasks", ("families", family, "targets"), name))
        changed.append(_change(root, "tasks", ("families", family, "n_instances", name), n))
    needs = f"; it needs `{recipe.needs}`" if recipe.needs else ""
    files = ", ".join(f"params/{stage}.yaml" for stage in dict.fromkeys(changed))
    return [f"{name}: written into {files} (`git checkout params` takes it out again){needs}"]


def _change(root: Path, stage: str, keys: tuple[str, ...], value: object) -> str:
    """Set a key of params/<stage>.yaml, or append to the list that is there; returns the stage."""
    path, yaml = root / "params" / f"{stage}.yaml", YAML()
    yaml.width, yaml.preserve_quotes = 4096, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    document: Any = yaml.load(path.read_text(encoding="utf-8"))
    place: Any = document
    for key in keys[:-1]:
        if key not in place:
            place[key] = {}
        place = place[key]
    if isinstance(place.get(keys[-1]), list) and not isinstance(value, list):
        if value not in place[keys[-1]]:
            place[keys[-1]].append(value)
    else:
        place[keys[-1]] = value
    text = StringIO()
    yaml.dump(document, text)
    save_text(path, text.getvalue())
    return stage
