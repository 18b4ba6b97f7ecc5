"""``manifest.json`` of one cache: what it holds, under which content address, in which shards.

It is written last, into a folder that appears under its final name only when complete.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from stages.base import paths
from stages.errors import UserError

__all__ = ["MANIFEST", "PROTOCOL", "Manifest", "Shard", "cache_dir", "content_key", "sha256_of"]

PROTOCOL = 1
"""Raised when the meaning of the files changes: old caches then no longer match their key."""

MANIFEST = "manifest.json"


class Shard(NamedTuple):
    file: str
    n_rows: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    key: str
    """Content address: ``content_key`` of the fields that determine the rows."""
    target: str
    target_digest: str
    hook: str
    role: str
    split: str
    dtype: str
    seed: int
    width: int
    """Size of a row. Heads are flattened: heads * d_head."""
    n_examples: int
    n_positions: int
    """Rows per example: token positions, or 1. Where inputs are tokens, at most so many."""
    n_rows: int
    rows_per_shard: int
    max_abs: float
    """Largest magnitude, before rounding to ``dtype``."""
    shards: tuple[Shard, ...]
    left_out: int = 0
    """Where inputs are tokens: rows that are not here, those of absent tokens and of each input's first present one
    (whatever stands there is attended to where nothing else is, and can be a hundred times as large as all others). Not
    written where it is 0."""
    protocol: int = PROTOCOL

    def save(self, folder: Path) -> None:
        values = asdict(self) | {"shards": [shard._asdict() for shard in self.shards]}
        if not self.left_out:
            del values["left_out"]
        (folder / MANIFEST).write_text(json.dumps(values, indent=1, sort_keys=True) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read ``folder``/manifest.json.

        Raises:
            UserError: it is missing, not JSON, or of another protocol version.
        """
        file = folder / MANIFEST
        if not file.is_file():
            raise UserError(
                f"{file} is missing: no complete cache is there; run `python -m stages activations {folder.parts[-3]}`"
            )
        try:
            values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            manifest = cls(**values | {"shards": tuple(Shard(**shard) for shard in values["shards"])})
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{file} is damaged ({error}): delete {folder} and run stage `activations`") from error
        if manifest.protocol != PROTOCOL:
            raise UserError(
                f"{file} has protocol {manifest.protocol}, this version reads {PROTOCOL}: run stage `activations`"
            )
        return manifest


def cache_dir(target: str, hook: str, split: str, root: Path | None = None) -> Path:
    return (root or paths.activations_dir(target)) / hook / split


def content_key(**fields: str | int) -> str:
    """sha256 of canonical JSON of the fields and the protocol version."""
    text = json.dumps(fields | {"protocol": PROTOCOL}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
