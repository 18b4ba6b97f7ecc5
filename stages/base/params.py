"""params/<stage>.yaml, under the active profile -> that stage's frozen ``Config``. One loader for all stages.

params/profile.yaml is a link to one of params/profiles/*.yaml, which holds sizes that differ from those of the other
files. `lensmith run --profile full` points it to another one.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from stages.base import paths
from stages.errors import UserError

__all__ = ["Params", "checked", "load", "names", "profile_name"]

ConfigT = TypeVar("ConfigT", bound="Params")


class Params(BaseModel):
    """Base of every stage's Config: immutable, and an unknown key is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def load(stage: str, config: type[ConfigT], path: Path | None = None, *, part: bool = False) -> ConfigT:
    """Read and validate params/<stage>.yaml.

    Args:
        part: keep only the keys that ``config`` has, for a stage that reads some of another's.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value is out of range; says which.
    """
    given, path = path, path or paths.params_file(stage)
    try:
        values = _values(path)
        if given is None:
            values = _merged(values, _profile(stage))
        return config(**{key: values[key] for key in values if key in config.model_fields} if part else values)
    except ValidationError as error:
        profile = paths.params_file("profile") if given is None else None
        written = _Written({path: ()} if profile is None else {profile: (stage,), path: ()})
        raise UserError(f"{path}: {_explain(error, config, written)}") from error


def checked(config: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Values that stand somewhere inside params/<stage>.yaml as the Config that they are.

    Args:
        where: the stage, and the keys above them: ``targets.targets.smollm2_135m``.

    Raises:
        UserError: a key is unknown, or a value is out of range; says which.
    """
    stage, *above = where.split(".")
    try:
        return config(**values)
    except ValidationError as error:
        path = paths.params_file(stage)
        place = f"{path}: {'.'.join(above)}: " if above else f"{path}: "
        raise UserError(place + _explain(error, config, _Written({path: tuple(above)}))) from error


def profile_name() -> str:
    """The active profile: the file that params/profile.yaml points to."""
    return paths.params_file("profile").resolve().stem


def _profile(stage: str) -> dict[str, Any]:
    """What the active profile changes of params/<stage>.yaml."""
    path = paths.params_file("profile")
    changes = _values(path).get(stage) or {} if path.is_file() else {}
    if not isinstance(changes, dict):
        raise UserError(f"{path}: {stage} = {changes!r} is no mapping; write `key: value` lines under it")
    return changes


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Values with changes over them; mappings are merged key by key, anything else is replaced."""
    out = dict(values)
    for key, change in changes.items():
        old = out.get(key)
        out[key] = _merged(old, change) if isinstance(old, dict) and isinstance(change, dict) else change
    return out


def _values(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: restore it with `git checkout -- {_short(path)}`")
    try:
        # YAML 1.2, as DVC reads the same files: `on` and `no` are words, 1e-3 is a number.
        values: Any = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or {}
    except DuplicateKeyError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        said = str(error.problem).removeprefix("found ")
        raise UserError(f"{path} line {line}: {said}: keep one of them") from error
    except YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; mend the line it names") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}): save it as UTF-8") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, not keys and values; write `key: value` lines")
    return values


class _Written:
    """What stands in the files, since `1.10` is a number by the time a check fails, and nobody wrote `1.1`."""

    def __init__(self, places: Mapping[Path, tuple[str, ...]]) -> None:
        """
        Args:
            places: files, the first of which to have a key is where its value comes from; and the keys above it there.
        """
        self._places = places

    def value(self, keys: Sequence[str | int]) -> tuple[str, str]:
        """(text of a value as written, file and line); empty texts where it is not written."""
        for path, above in self._places.items():
            try:
                text = path.read_text(encoding="utf-8")
                node = _node(YAML(typ="rt").compose(text), [*above, *keys])
            except (OSError, YAMLError):
                continue
            if node is not None:
                written = " ".join(text[node.start_mark.index : node.end_mark.index].split())
                return written[:80], f"{path.name} line {node.start_mark.line + 1}"
        return "", ""


def _node(node: Any, keys: Sequence[str | int]) -> Any:
    """The node of a composed YAML text that keys lead to; None where they lead nowhere."""
    for key in keys:
        if isinstance(node, MappingNode):
            node = next((value for name, value in node.value if name.value == str(key)), None)
        elif isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
        else:
            return None
    return node


_REMEDIES = {
    "string_type": "put it in quotes: {quoted}",
    "int_parsing": "write a whole number, such as 3",
    "int_type": "write a whole number, such as 3",
    "int_from_float": "write a whole number, such as 3",
    "float_parsing": "write a number, such as 0.5 (with a point, without a unit)",
    "float_type": "write a number, such as 0.5",
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "tuple_type": "write a list: [{written}]",
    "list_type": "write a list: [{written}]",
    "dict_type": "write `key: value` lines under it",
    "model_type": "write `key: value` lines under it",
    "model_attributes_type": "write `key: value` lines under it",
    "none_required": "leave it out",
    "finite_number": "write a number that is finite",
}
"""What to write instead, by pydantic's name of the fault; a bound or a choice is its own remedy."""


def _explain(error: ValidationError, config: type[Params], written: _Written) -> str:
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(config.model_fields))
            parts.append(f"unknown key {key!r}; known keys: {known}")
        elif problem["type"] == "missing":
            parts.append(f"key {key!r} is missing; add it")
        else:
            text, place = written.value(problem["loc"])
            value = problem["input"]
            shown = text or repr(value)
            remedy = _REMEDIES.get(problem["type"], "choose such a value").format(
                quoted=f'"{shown}"', written=shown if shown.isprintable() else "..."
            )
            taken = f" ({_taken(value)})" if problem["type"] == "string_type" else ""
            where = f" ({place})" if place else ""
            parts.append(f"{key} = {shown}{where}: {problem['msg']}{taken}; {remedy}")
    return "; ".join(parts)


def _taken(value: object) -> str:
    """What YAML makes of a word without quotes."""
    kinds = {bool: "a truth value", int: "a number", float: "a number", type(None): "nothing", dict: "keys and values"}
    kind = kinds.get(type(value), "a date" if isinstance(value, date) else "a list")
    return f"without quotes it is {kind}"


def names(stage: str, key: str) -> tuple[str, ...]:
    """Sorted names under one key of params/<stage>.yaml, for a stage that needs no more of it than those.

    Raises:
        UserError: the file or the key is missing.
    """
    values = _values(paths.params_file(stage)).get(key)
    if not isinstance(values, dict | list):
        raise UserError(f"{paths.params_file(stage)}: key {key!r} is missing or holds no names; add them")
    return tuple(sorted(map(str, values)))


def _short(path: Path) -> str:
    """As seen from the working copy."""
    return path.relative_to(paths.root()).as_posix() if path.is_relative_to(paths.root()) else str(path)
