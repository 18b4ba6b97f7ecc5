"""Arms that were computed before, kept in .lensmith/arms/ by a digest of what they depend on.

One entry per task, seed and answer: the executor's work is by far the largest part of a score, and two methods that
answer the same at the same price get the same arms. So a new family, target or seed pays for itself alone, and stages,
`lensmith score`, campaigns and nights share what one of them has computed. An entry holds what would be computed, byte
for byte; deleting the folder loses time and nothing else.
"""

import hashlib
import json
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError

from stages.base import paths
from stages.base.code import code_digest
from stages.contracts.arms import Answered, Baseline, MethodArms
from stages.execution.results import load_arms, load_baseline, save_arms, save_baseline
from stages.execution.settings import ExecutorConfig
from stages.tasks.storage import Task

__all__ = ["arms_key", "baseline_key", "kept", "prune"]

MAX_BYTES = 2 << 30
"""Entries written longest ago go when the folder is larger than this."""
EntryT = TypeVar("EntryT", Baseline, MethodArms)
DAMAGED = (ValueError, KeyError, TypeError, OSError, SafetensorError)


def baseline_key(task: Task, target_digest: str, config: ExecutorConfig, seed: int) -> str:
    """What one seed of the baseline arm depends on; see ``kept`` for the empty key."""
    if not _ours(task):
        return ""
    return _digest("baseline", *_common(task, config, seed), target_digest)


def arms_key(
    task: Task, baseline: Baseline, answered: Answered, config: ExecutorConfig, seed: int, placebo: bool
) -> str:
    """What one seed of a method's arms depends on: what was answered and charged, not who answered it.

    Args:
        baseline: of that seed alone.
    """
    if not _ours(task):
        return ""
    sha = hashlib.sha256()
    for step in baseline.rungs[0]:
        sha.update(repr((step.effort, step.flops, step.look)).encode() + step.features.astype("<f8").tobytes())
    sha.update(repr(baseline.fits[0]).encode())
    for result in baseline.first:
        sha.update(repr((result.budget, result.flops, result.effort)).encode() + result.predictions.tobytes())
    if answered.rows is not None:
        sha.update(repr(answered.rows.shape).encode() + np.ascontiguousarray(answered.rows, "<f8").tobytes())
    price = (
        answered.status,
        answered.reason,
        repr(answered.target_flops),
        repr(answered.own_flops),
        repr(answered.unseen_flops),
    )
    return _digest("arms", *_common(task, config, seed), sha.hexdigest(), *price, str(placebo))


def _ours(task: Task) -> bool:
    """Whether the family's code can be digested; that of a file of the user's own is not known in full."""
    return type(task.family).__module__.startswith("stages.")


@cache
def _libraries() -> str:
    """Versions of what computes an arm: code of theirs that changed is as good as code of ours that did."""
    return " ".join(f"{name}=={version(name)}" for name in ("numpy", "scipy", "torch"))


def _common(task: Task, config: ExecutorConfig, seed: int) -> tuple[str, ...]:
    code = code_digest("stages.execution.runs", type(task.family).__module__)
    settings = json.dumps(config.model_dump(exclude={"n_seeds"}), sort_keys=True)
    return task.name, str(task.family.version), task.digest, code, _libraries(), settings, str(seed)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def kept(key: str, kind: type[EntryT], compute: Callable[[], EntryT]) -> EntryT:
    """The entry, computed and written where it is not there or is damaged. Without a key it is computed."""
    if not key:
        return compute()
    folder = paths.arms_store() / key[:2]
    try:
        if (folder / f"{key}.json").is_file():
            found = load_baseline(folder, key) if kind is Baseline else load_arms(folder, key)
            assert isinstance(found, kind)
            return found
    except DAMAGED:
        pass  # half of one, left by a process that was killed: it is computed again
    made = compute()
    if isinstance(made, Baseline):
        save_baseline(made, folder, key)
    else:
        save_arms(made, folder, key)
    return made


def prune(max_bytes: int = MAX_BYTES) -> int:
    """Delete the entries written longest ago until the folder is within ``max_bytes``; returns how many went."""
    entries: list[tuple[float, int, Path]] = []
    for file in paths.arms_store().glob("??/*.json"):
        arrays = file.with_suffix(".safetensors")
        size = file.stat().st_size + (arrays.stat().st_size if arrays.is_file() else 0)
        entries.append((file.stat().st_mtime, size, file))
    total, gone = sum(size for _, size, _ in entries), 0
    for _, size, file in sorted(entries):
        if total <= max_bytes:
            break
        file.unlink(missing_ok=True)
        file.with_suffix(".safetensors").unlink(missing_ok=True)
        total, gone = total - size, gone + 1
    return gone
