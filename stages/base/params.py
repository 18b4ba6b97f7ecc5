"""params/<stage>.yaml, under the active profile -> that stage's frozen ``Config``. One loader for all stages.

params/profile.yaml is a link to one of params/profiles/*.yaml, which holds sizes that differ from those of the other
files. `lensmith run --profile full` points it to another one.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from stages.base import paths
from stages.errors import UserError

__all__ = ["Params", "load", "names", "profile_name"]

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
        raise UserError(f"{path}: {_explain(error, config)}") from error


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
        raise UserError(f"{path} is missing: restore it with `git checkout -- {path.name}`")
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


def _explain(error: ValidationError, config: type[Params]) -> str:
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(config.model_fields))
            parts.append(f"unknown key {key!r}; known keys: {known}")
        elif problem["type"] == "missing":
            parts.append(f"key {key!r} is missing; add it")
        else:
            parts.append(f"{key} = {problem['input']!r}: {problem['msg']}")
    return "; ".join(parts)


def names(stage: str, key: str) -> tuple[str, ...]:
    """Sorted names under one key of params/<stage>.yaml, for a stage that needs no more of it than those.

    Raises:
        UserError: the file or the key is missing.
    """
    values = _values(paths.params_file(stage)).get(key)
    if not isinstance(values, dict | list):
        raise UserError(f"{paths.params_file(stage)}: key {key!r} is missing or holds no names; add them")
    return tuple(sorted(map(str, values)))
