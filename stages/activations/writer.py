"""Run the target over a corpus once and write every hook point's rows.

Where inputs are tokens there is no row for a token that is absent, nor for each input's first present one.

Shape legend: B = batch, N = examples, T = token positions, R = rows = N * T (tokens: fewer), D = width.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.activations.manifest import Manifest, Shard, cache_dir, content_key, sha256_of
from stages.activations.order import generator_for, shard_bounds, write_order
from stages.base import paths
from stages.contracts.target import HookSpec, Target, TargetSpec, telling_places
from stages.errors import UserError

__all__ = [
    "DTYPES",
    "cached_hooks",
    "n_positions",
    "predicted_bytes",
    "row_width",
    "rows_of",
    "to_dtype",
    "write_caches",
    "write_shards",
]

DTYPES = {"float16": torch.float16, "float32": torch.float32}
SAFE = {torch.float32: "F32", torch.int32: "I32", torch.float16: "F16"}
"""Names of types, in the order in which columns follow each other in a file."""
TYPES = tuple(SAFE)
FORWARD_BATCH = 256
"""Examples per forward pass: large enough to amortise Python, small enough to stay in the processor's cache."""
PASS_BYTES = 1 << 28
"""What the hook points of one forward pass may take, in float32: fewer examples where one is large."""
HELD_BYTES = 1 << 30
"""Rows of all hook points together are gathered in memory up to this size, and in a file beside the cache beyond it."""


def cached_hooks(spec: TargetSpec, roles: Sequence[str], names: Sequence[str] = ()) -> tuple[HookSpec, ...]:
    """Hook points whose role is among ``roles``; with ``names`` those, and no other.

    Raises:
        UserError: none is, or a name is no hook point that holds vectors.
    """
    if names:
        known = {hook.name: hook for hook in spec.hooks if hook.role != "pattern"}
        for name in names:
            if name not in known:
                near = get_close_matches(name, known, 3, 0.3) or list(known)[:3]
                raise UserError(
                    f"{name!r} is no hook point of {spec.name} whose activations can be cached; near it are"
                    f" {', '.join(near)}: correct hooks.{spec.name} in params/activations.yaml"
                )
        return tuple(hook for hook in spec.hooks if hook.name in names)
    hooks = tuple(hook for hook in spec.hooks if hook.role in roles)
    if not hooks:
        has = sorted({hook.role for hook in spec.hooks})
        raise UserError(f"{spec.name} has no hook point of role {', '.join(roles)}; its roles are {', '.join(has)}")
    return hooks


def _per_row(hook: HookSpec) -> int:
    """How many trailing axes make up one row: heads are taken together, everything else is one vector."""
    return 2 if hook.role in ("head", "value") else 1


def row_width(hook: HookSpec) -> int:
    """D: size of one row."""
    return int(torch.Size(hook.shape[-_per_row(hook) :]).numel())


def n_positions(hook: HookSpec) -> int:
    """T: rows per example."""
    return int(torch.Size(hook.shape[: -_per_row(hook)]).numel())


def rows_of(hook: HookSpec, acts: Tensor) -> Tensor:
    """(B, *hook.shape) activations -> (B * T, D) rows, positions of one example together."""
    return acts.reshape(acts.shape[0] * n_positions(hook), row_width(hook))


def predicted_bytes(target: Target, split: str, hooks: Sequence[HookSpec], dtype: str, max_examples: int) -> int:
    """Bytes on disk of the rows of one split, without running the target; at most so many where inputs are tokens."""
    n = min(max_examples, len(target.corpus(split).inputs))
    return sum(n * n_positions(hook) * row_width(hook) for hook in hooks) * DTYPES[dtype].itemsize


def to_dtype(rows: Tensor, dtype: str, hook: str, target: str) -> Tensor:
    """Round rows to the dtype on disk.

    Raises:
        UserError: an activation is NaN or infinite, or too large for the dtype.
    """
    _checked(rows, dtype, hook, target)
    return rows.to(DTYPES[dtype])


def _checked(rows: Tensor, dtype: str, hook: str, target: str) -> float:
    """Largest magnitude; what ``to_dtype`` raises. One pass: NaN and infinity come through minimum and maximum."""
    least, most = rows.aminmax()
    largest = max(-least.item(), most.item())
    if not math.isfinite(largest):
        bad = int((~torch.isfinite(rows)).any(-1).sum())
        raise UserError(
            f"{bad} of {len(rows)} activations of {target} at {hook} are NaN or infinite: the target is broken;"
            " train it again with a lower learning rate (stage `targets`)"
        )
    limit = torch.finfo(DTYPES[dtype]).max
    if largest > limit:
        raise UserError(
            f"an activation of {target} at {hook} has magnitude {largest:g}, beyond the {limit:g} of {dtype};"
            " set dtype: float32 in params/activations.yaml"
        )
    return largest


def write_caches(
    target: Target,
    split: str,
    *,
    roles: Sequence[str] = ("residual", "mlp", "head"),
    names: Sequence[str] = (),
    dtype: str = "float16",
    max_examples: int = 4096,
    rows_per_shard: int = 16_384,
    seed: int = 0,
    root: Path | None = None,
) -> list[Manifest]:
    """Write the cache of every hook point of one split; a cache that is already there and whole is kept.

    All hook points are captured in the same forward passes, which end at the last of them. Rows of all are there at
    once, in the dtype on disk (rows x width x 2 bytes), so that the shuffle is a true one over (example, position): in
    memory up to ``HELD_BYTES``, in a file that is deleted afterwards beyond it.

    Args:
        roles: roles of the hook points to cache.
        names: the hook points to cache, in place of those of the roles.
        dtype: float16 or float32.
        max_examples: a seeded subset of the corpus where it is larger.
        seed: of the subset and of the shuffle.
        root: folder of this target's caches; data/activations/<target> by default.

    Raises:
        UserError: NaN, infinite or too large activations; no hook point of these roles.
    """
    hooks = cached_hooks(target.spec, roles, names)
    corpus = target.corpus(split)
    total = len(corpus.inputs)
    n = min(max_examples, total)
    chosen = torch.randperm(total, generator=generator_for("subset", split, seed, total))[:n].sort().values
    keys = {
        hook.name: content_key(
            target=target.digest, hook=hook.name, split=split, dtype=dtype, seed=seed, n_examples=n,
            n_corpus=total, rows_per_shard=rows_per_shard,
        )
        for hook in hooks
    }  # fmt: skip
    done = {hook.name: _whole(cache_dir(target.name, hook.name, split, root), keys[hook.name]) for hook in hooks}
    missing = [hook for hook in hooks if done[hook.name] is None]
    kept = telling_places(target.spec, corpus.inputs[chosen])
    beside = root or paths.activations_dir(target.name)
    captured = _capture(target, corpus.inputs[chosen], missing, dtype, kept, beside) if missing else {}
    index: dict[int, tuple[Tensor, dict[str, Tensor]]] = {}  # hook points with the same positions share it
    manifests: list[Manifest] = []
    for hook in hooks:
        whole = done[hook.name]
        if whole is not None:
            manifests.append(whole)
            continue
        rows, largest = captured.pop(hook.name)
        positions = n_positions(hook)
        if positions not in index:
            order = write_order(len(rows), split, seed)
            mask = _mask(kept, hook)
            which = order if mask is None else torch.nonzero(mask).squeeze(1)[order]
            index[positions] = (
                order,
                {
                    "example": chosen.repeat_interleave(positions)[which].to(torch.int32),
                    "position": torch.arange(positions).repeat(n)[which].to(torch.int32),
                    "label": corpus.labels[chosen].repeat_interleave(positions)[which].to(torch.int32),
                },
            )
        order, columns = index[positions]
        final = cache_dir(target.name, hook.name, split, root)
        unfinished = final.parent / f".{final.name}.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        manifest = Manifest(
            key=keys[hook.name], target=target.name, target_digest=target.digest, hook=hook.name, role=hook.role,
            split=split, dtype=dtype, seed=seed, width=row_width(hook), n_examples=n, n_positions=positions,
            n_rows=len(rows), rows_per_shard=rows_per_shard, max_abs=largest,
            shards=write_shards(unfinished, {"acts": rows} | columns, rows_per_shard, order),
            left_out=n * positions - len(rows),
        )  # fmt: skip
        manifest.save(unfinished)
        shutil.rmtree(final, ignore_errors=True)
        unfinished.replace(final)
        manifests.append(manifest)
    return manifests


def _mask(kept: Tensor | None, hook: HookSpec) -> Tensor | None:
    """(N * T,) which positions of this hook point have a row; None: all."""
    return None if kept is None or n_positions(hook) != kept.shape[1] else kept.flatten()


class _Enough(Exception):
    """Every hook point of a forward pass was met."""


def _capture(
    target: Target, inputs: Tensor, hooks: Sequence[HookSpec], dtype: str, kept: Tensor | None, beside: Path
) -> dict[str, tuple[Tensor, float]]:
    """(R, D) rows of each hook point in the dtype on disk, checked, and their largest magnitude.

    Args:
        kept: (N, T) positions that have a row; None: all.
        beside: folder for the rows where they are more than memory should hold.
    """
    masks = {hook.name: _mask(kept, hook) for hook in hooks}
    counts = {
        hook.name: len(inputs) * n_positions(hook) if (mask := masks[hook.name]) is None else int(mask.sum())
        for hook in hooks
    }
    total = sum(counts[hook.name] * row_width(hook) for hook in hooks) * DTYPES[dtype].itemsize
    made = {
        hook.name: _room((counts[hook.name], row_width(hook)), dtype, beside if total > HELD_BYTES else None)
        for hook in hooks
    }
    largest, filled = dict.fromkeys(made, 0.0), dict.fromkeys(made, 0)
    batch: Tensor | None = None
    waited: set[str] = set()

    def take(acts: Tensor, hook: Any, spec: HookSpec) -> None:
        keep(rows_of(spec, acts), spec)
        waited.discard(spec.name)
        if not waited:
            raise _Enough

    def keep(rows: Tensor, spec: HookSpec) -> None:
        mask = _mask(batch, spec)
        if mask is not None:
            rows = rows[mask]
        if not len(rows):
            return
        largest[spec.name] = max(largest[spec.name], _checked(rows, dtype, spec.name, target.name))
        made[spec.name].narrow(0, filled[spec.name], len(rows)).copy_(rows)  # rounds while the rows are hot
        filled[spec.name] += len(rows)

    taking = [(hook.name, partial(take, spec=hook)) for hook in hooks]
    floats = sum(math.prod(hook.shape) for hook in hooks) + target.spec.n_outputs
    size = min(FORWARD_BATCH, max(1, PASS_BYTES // (4 * floats)))
    with torch.no_grad():
        for start in range(0, len(inputs), size):
            batch = None if kept is None else kept[start : start + size]
            waited.update(made)
            with suppress(_Enough):  # what comes after the last hook point is not needed
                target.model.run_with_hooks(inputs[start : start + size], fwd_hooks=taking)
            if waited:
                raise UserError(f"{target.name} did not pass {', '.join(sorted(waited))}: it is no hook point of it")
    return {name: (rows, largest[name]) for name, rows in made.items()}


def _room(shape: tuple[int, int], dtype: str, beside: Path | None) -> Tensor:
    """Uninitialised memory; ``beside`` a folder, a file there that nobody sees and that goes when it is not used."""
    if beside is None or not math.prod(shape):
        # numpy asks the system for large pages, torch does not: a fourth of the time to touch this memory first.
        return torch.from_numpy(np.empty(shape, dtype))
    beside.mkdir(parents=True, exist_ok=True)
    return torch.from_numpy(np.memmap(TemporaryFile(dir=beside), dtype, "w+", shape=shape))


def write_shards(
    folder: Path, columns: dict[str, Tensor], rows_per_shard: int, order: Tensor | None = None
) -> tuple[Shard, ...]:
    """Write safetensors files of the columns, cut into shards; "acts" in ``order``, where it is given.

    A shard is gathered, hashed and written while it is in the processor's cache.
    """

    shards = []
    for number, (start, end) in enumerate(shard_bounds(len(columns["acts"]), rows_per_shard)):
        cut = {name: column[start:end] for name, column in columns.items() if order is None or name != "acts"}
        if order is not None:
            cut["acts"] = columns["acts"].index_select(0, order[start:end])
        file = folder / f"shard-{number:03d}.safetensors"
        digest = hashlib.sha256()
        with file.open("wb") as opened:
            for part in _parts(cut):
                digest.update(part)
                opened.write(part)
        shards.append(Shard(file.name, end - start, digest.hexdigest()))
    return tuple(shards)


def _parts(columns: dict[str, Tensor]) -> Iterator[bytes | memoryview]:
    """Bytes of a safetensors file, as ``save_file`` writes them (tested): columns by type, then by name."""
    names = sorted(columns, key=lambda name: (TYPES.index(columns[name].dtype), name))
    header: dict[str, dict[str, str | list[int]]] = {}
    place = 0
    for name in names:
        column = columns[name]
        end = place + column.numel() * column.element_size()
        header[name] = {"dtype": SAFE[column.dtype], "shape": list(column.shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in names:
        yield columns[name].contiguous().numpy().reshape(-1).view(np.uint8).data


def _whole(folder: Path, key: str) -> Manifest | None:
    """The manifest, if the folder holds exactly the cache of this key, undamaged."""
    try:
        manifest = Manifest.load(folder)
    except UserError:
        return None
    intact = manifest.key == key and all(
        (folder / shard.file).is_file() and sha256_of(folder / shard.file) == shard.sha256 for shard in manifest.shards
    )
    return manifest if intact else None
