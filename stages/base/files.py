"""Result files: byte-stable (sorted keys, no time, NaN refused) and atomic, so a reader never sees half of one."""

import json
import os
from pathlib import Path
from typing import Any

from stages.errors import UserError

__all__ = ["load_json", "save_bytes", "save_json", "save_text"]


def save_bytes(path: Path, content: bytes) -> None:
    """Write ``path`` whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def save_text(path: Path, text: str) -> None:
    """As ``save_bytes``, in UTF-8."""
    save_bytes(path, text.encode())


def save_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write JSON values.

    Raises:
        ValueError: it holds NaN or infinity, or something that is no JSON value.
    """
    separators = (",", ": ") if indent else (",", ":")
    save_text(path, json.dumps(value, indent=indent, sort_keys=True, separators=separators, allow_nan=False) + "\n")


def load_json(path: Path) -> Any:
    """Read JSON values.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: `lensmith run` makes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({error}): delete it and run `lensmith run`") from error
