"""Stage ``activations``: data/targets/<target>/ -> data/activations/<target>/<hook point>/<split>/.

Each folder holds shard-NNN.safetensors with the columns acts (rows, width), example, position, label (rows,), and
manifest.json, written last. Rows are shuffled over (example, position) when written, with the same permutation at
every hook point, so rows with the same number belong to the same example and position everywhere.

Cached are the hook points of the roles in params: the residual stream, hidden units of MLPs, and head outputs with
the heads flattened to heads * d_head. Attention patterns are left out (distributions, not vectors to decompose), and
so are values (what heads do with them is in the head outputs). Of a target whose hook points together are large,
those that ``hooks`` in params names.
"""

import sys
import time
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from stages.activations.manifest import Manifest
from stages.activations.writer import cached_hooks, predicted_bytes, row_width, write_caches
from stages.base.params import Params, load
from stages.contracts.target import HookSpec, Target
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["Config", "main", "run"]


class Config(Params):
    dtype: Literal["float16", "float32"]
    """Type on disk. float16 holds magnitudes up to 65504."""
    roles: tuple[Literal["residual", "mlp", "head", "value"], ...] = Field(min_length=1)
    """Roles of the hook points to cache."""
    hooks: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Hook points of a target to cache, in place of those of the roles."""
    max_bytes: int = Field(default=4_000_000_000, ge=1)
    """Bytes of the rows of one target on disk, at most; more is refused before anything is computed."""
    splits: tuple[Literal["train", "validation"], ...] = Field(min_length=1)
    """Splits of the corpus to cache; the tasks split is nobody's to read."""
    max_examples: int = Field(ge=1, le=1_000_000)
    """Examples per split; a seeded subset where the corpus is larger."""
    rows_per_shard: int = Field(ge=1, le=10_000_000)
    """Rows per shard file."""
    seed: int = Field(ge=0)
    """Of the subset and of the shuffle."""


def run(config: Config, target_name: str) -> list[Manifest]:
    """Write all caches of one target; returns their manifests.

    Raises:
        UserError: they would take more than ``max_bytes``, or what ``write_caches`` raises.
    """
    torch.set_num_threads(1)
    target = load_target(target_name)
    names = config.hooks.get(target_name, ())
    _check_size(config, target, cached_hooks(target.spec, config.roles, names))
    manifests: list[Manifest] = []
    for split in config.splits:
        start = time.monotonic()
        manifests += write_caches(
            target,
            split,
            roles=config.roles,
            names=names,
            dtype=config.dtype,
            max_examples=config.max_examples,
            rows_per_shard=config.rows_per_shard,
            seed=config.seed,
        )
        here = [manifest for manifest in manifests if manifest.split == split]
        rows = sum(manifest.n_rows for manifest in here)
        seconds = time.monotonic() - start
        print(f"{target_name}: {split}: {rows} rows at {len(here)} hook points in {seconds:.1f} s", flush=True)
    return manifests


def _check_size(config: Config, target: Target, hooks: Sequence[HookSpec]) -> None:
    def size(hooks: Sequence[HookSpec]) -> float:
        each = (predicted_bytes(target, split, hooks, config.dtype, config.max_examples) for split in config.splits)
        return sum(each) / 1e9

    if size(hooks) * 1e9 > config.max_bytes:
        some = max(hooks, key=row_width)
        raise UserError(
            f"the activations of {target.name} at {len(hooks)} hook points would take {size(hooks):.1f} GB, and"
            f" max_bytes allows {config.max_bytes / 1e9:.1f}: name those that dictionaries are trained on in"
            f" params/activations.yaml, as `hooks: {{{target.name}: [{some.name}]}}` (that one takes"
            f" {size([some]):.2f} GB), or lower max_examples, or raise max_bytes"
        )


def main() -> None:
    run(load("activations", Config), sys.argv[1])
