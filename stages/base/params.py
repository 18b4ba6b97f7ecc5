"""params/<stage>.yaml -> that stage's frozen ``Config``. One loader, so that YAML 1.1 surprises happen nowhere."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from stages.base import paths
from stages.errors import UserError

__all__ = ["Params", "load", "names"]

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
    path = path or paths.params_file(stage)
    try:
        values = _values(path)
        return config(**{key: values[key] for key in values if key in config.model_fields} if part else values)
    except ValidationError as error:
        raise UserError(f"{path}: {_explain(error, config)}") from error


def _values(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is missing: restore it with `git checkout -- {path.name}`")
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; mend the line it names") from error
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
