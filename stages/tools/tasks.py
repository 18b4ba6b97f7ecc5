"""Looking at families from outside: what they are, fresh instances with their truth, and an audit.

Nothing here opens the files of stage ``tasks``: instances are drawn anew from streams of their own, so looking at a
held-out family shows no instance that a result is computed on.
"""

from collections.abc import Mapping, Sequence
from typing import Required, TypedDict

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.base import paths
from stages.base.params import load
from stages.errors import UserError
from stages.targets.storage import load_target
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import (
    make,
)
from stages.tasks.secret import read_secret
from stages.tasks.stage import Config, FamilyConfig, settings_of
from stages.tasks.storage import Split
from stages.tools.headroom import Known, known

__all__ = ["line_of", "list_families", "make_instances", "show_family"]


class Room(TypedDict):
    """What the last audit that was kept says of a family on a target; see ``stages.tools.headroom``."""

    tight: float
    oracle_gain: float
    best_method: str
    best_reward: float
    fails: list[str]


class ListedFamily(TypedDict):
    """One line about a family."""

    name: str
    split: Split
    version: int
    question: str
    query: str
    cluster: str
    """Families of one cluster count once; a family that stands alone is its own."""
    targets: list[str]
    n_efforts: int
    headroom: dict[str, Room]
    """By target, from results/headroom.json; only where it was audited in this version."""


class ShownFamily(ListedFamily):
    """Everything a family says of itself."""

    source: str
    how_truth_is_made: str
    constants: dict[str, JsonValue]
    why_hard_black_box: str
    why_white_box_helps: str
    score: str


class ShownTarget(TypedDict):
    name: str
    digest: str
    file: str
    input_shape: list[int]


class ShownInstances(TypedDict, total=False):
    """Instances, enough to recompute the truth; the last four only with the truth."""

    family: Required[str]
    version: Required[int]
    seed: Required[int]
    target: Required[ShownTarget]
    how_truth_is_made: Required[str]
    constants: Required[dict[str, JsonValue]]
    n: Required[int]
    arrays: Required[dict[str, list[JsonValue]]]
    variants: Required[dict[str, list[JsonValue]]]
    components: list[list[str | int]]
    truth: list[list[float]]
    planted: dict[str, list[JsonValue]]
    groups: dict[str, JsonValue]
    truth_flops: float


def list_families() -> list[ListedFamily]:
    """One row per family: name, split, version, question, query, cluster, targets, rungs, headroom."""
    config, audited = load("tasks", Config), known()
    return [_listed_family(name, config, audited) for name in FAMILIES.names()]


def _listed_family(name: str, config: Config, audited: Sequence[Known]) -> ListedFamily:
    made, settings = family(name), settings_of(config, name)
    rooms: dict[str, Room] = {}
    for row in audited:
        if (row["family"], row["version"]) == (name, made.version) and row["target"] in settings.targets:
            found = row["headroom"]
            rooms[row["target"]] = {
                "tight": found["tight"],
                "oracle_gain": found["oracle_gain"],
                "best_method": found["best_method"],
                "best_reward": found["best_reward"],
                "fails": row["fails"],
            }
    return {
        "name": name,
        "split": settings.split,
        "version": made.version,
        "question": made.title,
        "query": made.query_kind,
        "cluster": made.cluster or name,
        "targets": list(settings.targets),
        "n_efforts": made.n_efforts,
        "headroom": rooms,
    }


def line_of(row: ListedFamily) -> dict[str, str]:
    """One line of a terminal's table."""
    return {
        "name": row["name"],
        "split": row["split"],
        "query": row["query"],
        "cluster": row["cluster"],
        "targets": ", ".join(row["targets"]),
        "explained at tight": ", ".join(f"{room['tight']:.2f}" for room in row["headroom"].values()),
        "question": row["question"],
    }


def show_family(name: str) -> ShownFamily:
    """Everything a family says of itself.

    Raises:
        UserError: there is no family of that name.
    """
    made = family(name)
    return {
        **_listed_family(name, load("tasks", Config), known()),
        "source": made.source,
        "how_truth_is_made": made.truth_recipe,
        "constants": dict(made.constants),
        "why_hard_black_box": made.why_hard_black_box,
        "why_white_box_helps": made.why_white_box_helps,
        "score": "share of the truth's variance that is explained: 0 = best constant, 1 = perfect, clipped at 0",
    }


def make_instances(name: str, n: int, seed: int, target: str | None = None, with_truth: bool = False) -> ShownInstances:
    """n fresh instances as JSON values, enough to recompute the truth with other code.

    Args:
        name: family.
        n: how many.
        seed: another seed, other instances.
        target: name of a target; None: the family's first.
        with_truth: add the truth, and what was planted.

    Raises:
        UserError: unknown family, a target it is not run on, or n out of range.
    """
    made, settings = family(name), settings_of(load("tasks", Config), name)
    chosen = _target_name(name, settings, target)
    if not 1 <= n <= 10_000:
        raise UserError(f"n = {n}: use 1 to 10000 instances")
    frozen = load_target(chosen)
    torch.set_num_threads(1)
    result = make(made, frozen, settings.split, n, seed, "inspect", read_secret())
    weights = paths.target_dir(chosen) / "weights.safetensors"
    shown: ShownInstances = {
        "family": name,
        "version": made.version,
        "seed": seed,
        "target": {
            "name": chosen,
            "digest": frozen.digest,
            "file": weights.relative_to(paths.root()).as_posix(),
            "input_shape": list(frozen.spec.input_shape),
        },
        "how_truth_is_made": made.truth_recipe,
        "constants": dict(made.constants),
        "n": n,
        "arrays": _listed(result.instances.arrays),
        "variants": _listed(result.instances.variants),
    }
    if made.query_kind == "Localise":
        shown["components"] = [list(component) for component in frozen.spec.components]
    if with_truth:
        shown["truth"] = result.truth.values.tolist()
        shown["planted"] = _listed(result.instances.planted)
        shown["groups"] = dict(result.truth.groups)
        shown["truth_flops"] = result.truth_flops
    return shown


def _target_name(name: str, settings: FamilyConfig, target: str | None) -> str:
    if target is not None and target not in settings.targets:
        raise UserError(f"{name} is not run on target {target!r}; it is on: {', '.join(settings.targets)}")
    return target or settings.targets[0]


def _listed(arrays: Mapping[str, Tensor]) -> dict[str, list[JsonValue]]:
    return {name: array.tolist() for name, array in sorted(arrays.items()) if isinstance(array, Tensor)}
