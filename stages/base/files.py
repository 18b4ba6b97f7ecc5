"""Result files: byte-stable (sorted keys, no time, NaN refused) and atomic, so a reader never sees half of one."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["save_bytes", "save_json", "save_text"]


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
