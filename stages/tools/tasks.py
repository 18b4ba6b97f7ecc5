"""Looking at families from outside: what they are, fresh instances with their truth, and an audit.

Nothing here opens the files of stage ``tasks``: instances are drawn anew from streams of their own, so looking at a
held-out family shows no instance that a result is computed on.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Required, TypedDict

import numpy as np
import torch
from pydantic import JsonValue
from torch import Tensor

from stages.base import paths
from stages.base.params import load
from stages.contracts.target import Target
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.errors import UserError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import load_target
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import (
    Made,
    instance_keys,
    make,
    stream,
)
from stages.tasks.secret import read_secret
from stages.tasks.stage import Config, FamilyConfig, settings_of
from stages.tasks.storage import Split

__all__ = ["audit", "ladder_scores", "list_families", "make_instances", "show_family"]

AUDIT_INSTANCES = 160
"""Enough to see a correlation of 0.25 beyond chance (three standard errors)."""


class ListedFamily(TypedDict):
    """One line about a family."""

    name: str
    split: Split
    version: int
    question: str
    query: str
    targets: list[str]
    n_efforts: int


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


class LadderScore(TypedDict):
    """One step of the black-box ladder."""

    effort: int
    flops_per_instance: float
    score: float


class Hints(TypedDict):
    order_hint: float
    order_chance: float
    array_hint: float
    array_chance: float


class AuditRow(Hints):
    """One family on one target; see ``audit``."""

    family: str
    target: str
    split: Split
    n: int
    n_items: int
    truth_mean: float
    truth_std: float
    constant: float
    truth: float
    permuted: float
    overlap: int
    ladder: list[LadderScore]
    truth_flops_per_instance: float
    rises: bool
    ok: bool


def list_families() -> list[ListedFamily]:
    """One row per family: name, split, version, question, query, targets, rungs."""
    config = load("tasks", Config)
    rows: list[ListedFamily] = []
    for name in FAMILIES.names():
        made, settings = family(name), settings_of(config, name)
        rows.append(
            {
                "name": name,
                "split": settings.split,
                "version": made.version,
                "question": made.title,
                "query": made.query_kind,
                "targets": list(settings.targets),
                "n_efforts": made.n_efforts,
            }
        )
    return rows


def show_family(name: str) -> ShownFamily:
    """Everything a family says of itself.

    Raises:
        UserError: there is no family of that name.
    """
    made, settings = family(name), settings_of(load("tasks", Config), name)
    return {
        "name": name,
        "split": settings.split,
        "version": made.version,
        "question": made.title,
        "query": made.query_kind,
        "targets": list(settings.targets),
        "n_efforts": made.n_efforts,
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


def audit(names: Sequence[str] | None = None, progress: Callable[[str], None] = lambda said: None) -> list[AuditRow]:
    """Check families on fresh instances; one row per family and target.

    ``constant``, ``truth`` and ``permuted`` are scores of those predictions; ``overlap`` counts instances shared with
    another seed, or with the instances of the stage; ``order_hint`` and ``array_hint`` are the largest correlations of
    the truth with the position and with any single public number, ``..._chance`` what such a maximum reaches under
    permuted truth; ``ladder`` has one entry per rung. ``ok`` needs constant 0, truth 1, permuted < 0.05, no overlap,
    no order hint beyond chance, and a ladder that rises. (An input may well tell something: ``array_hint`` is shown,
    not judged, and must only stay far from 1.)

    Raises:
        UserError: an unknown family, or targets that were not trained.
    """
    config = load("tasks", Config)
    torch.set_num_threads(1)
    tasks = [
        (family(name), settings_of(config, name).split, target_name)
        for name in names or FAMILIES.names()
        for target_name in settings_of(config, name).targets
    ]
    rows = []
    for i, (made, split, target_name) in enumerate(tasks, start=1):
        progress(f"{made.name} on {target_name}, {i} of {len(tasks)}")
        rows.append(_audit_one(made, load_target(target_name), split, config.seed))
    return rows


def ladder_scores(made: TaskFamily, target: Target, instances: Instances, truth: Truth) -> list[LadderScore]:
    """Score and cost of every rung: half the instances calibrate, the other half is scored, both ways round.

    The better of two tree ensembles is taken, the same way as an executor would choose.
    """
    from sklearn.ensemble import ExtraTreesRegressor, HistGradientBoostingRegressor

    values, public = truth.values.numpy(), instances.public()
    rungs: list[LadderScore] = []
    half = instances.n // 2
    folds = ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half)))
    for effort in range(made.n_efforts):
        ledger = Ledger()
        access = MeteredAccess(target, ledger, variants=public.variants)
        features = made.behavioural(access, public, effort, stream(b"", "audit", made.name, target.name)).numpy()
        scores = []
        for model in (
            ExtraTreesRegressor(100, min_samples_leaf=3, max_features=0.5, random_state=0),
            HistGradientBoostingRegressor(learning_rate=0.08, max_leaf_nodes=8, min_samples_leaf=8, random_state=0),
        ):
            predictions = np.zeros_like(values)
            for fit, test in folds:
                model.fit(features[fit].reshape(-1, features.shape[-1]), values[fit].reshape(-1))
                shape = values[test].shape
                predictions[test] = model.predict(features[test].reshape(-1, features.shape[-1])).reshape(shape)
            scores.append(float(made.score(predictions, values)[0]))
        rungs.append(
            {"effort": effort, "flops_per_instance": ledger.flops / instances.n, "score": round(max(scores), 4)}
        )
    return rungs


def _audit_one(made: TaskFamily, target: Target, split: Split, seed: int) -> AuditRow:
    n = max(40, round(AUDIT_INSTANCES * made.share_on(target.spec)))
    result = make(made, target, split, n, 1, "audit", read_secret())
    values = result.truth.values.numpy()
    rng = np.random.default_rng(0)
    permuted = float(np.mean([made.score(values[rng.permutation(n)], values)[0] for _ in range(20)]))
    ladder = ladder_scores(made, target, result.instances, result.truth)
    costs, scores = [r["flops_per_instance"] for r in ladder], [r["score"] for r in ladder]
    constant = float(made.score(np.full_like(values, values.mean()), values)[0])
    perfect, overlap = float(made.score(values, values)[0]), _overlap(made, target, split, result, seed)
    hints = _hints(result.instances, values, rng)
    rises = scores[-1] > scores[0] + 0.02 and all(b > a for a, b in pairwise(costs)) and costs[0] > 0
    clean = constant == 0.0 and perfect == 1.0 and permuted < 0.05 and overlap == 0
    return {
        "family": made.name,
        "target": target.name,
        "split": split,
        "n": n,
        "n_items": values.shape[1],
        "truth_mean": round(float(values.mean()), 6),
        "truth_std": round(float(values.std()), 6),
        "constant": constant,
        "truth": perfect,
        "permuted": round(permuted, 4),
        "overlap": overlap,
        **hints,
        "ladder": ladder,
        "truth_flops_per_instance": result.truth_flops / n,
        "rises": rises,
        "ok": bool(rises and clean and hints["order_hint"] <= hints["order_chance"]),
    }


def _overlap(made: TaskFamily, target: Target, split: Split, result: Made, seed: int) -> int:
    """Instances also met under another seed or in the stage. Variants are made by training, so few are compared."""
    from stages.tasks.generation import pool_of

    key = read_secret()
    n = 12 if result.instances.variants else result.instances.n
    keys = set(instance_keys(result.instances))
    for purpose, other in (("audit", 2), ("stage", seed)):
        rng = stream(key, "instances", purpose, made.name, made.version, target.name, other)
        keys_there = instance_keys(made.generate(pool_of(target, split, key), rng, n))
        if keys & set(keys_there):
            return len(keys & set(keys_there))
    return 0


def _hints(instances: Instances, values: Any, rng: np.random.Generator) -> Hints:
    mean_N = values.mean(1)
    columns = [np.arange(instances.n, dtype=float)[:, None]]
    for name, array in sorted(instances.arrays.items()):
        if not name.startswith("shared_") and name != "variant":
            columns.append(array.double().numpy().reshape(instances.n, -1))

    def largest(column: Any, truth: Any) -> float:
        centred = column - column.mean(0)
        norm = np.linalg.norm(centred, axis=0) * np.linalg.norm(truth - truth.mean())
        alive = norm > 1e-9
        return float(np.abs(centred.T[alive] @ (truth - truth.mean()) / norm[alive]).max()) if alive.any() else 0.0

    public = np.concatenate(columns[1:], axis=1) if len(columns) > 1 else columns[0]
    shuffled = [rng.permutation(mean_N) for _ in range(200)]
    return {
        "order_hint": round(largest(columns[0], mean_N), 4),
        "order_chance": round(max(largest(columns[0], s) for s in shuffled), 4),
        "array_hint": round(largest(public, mean_N), 4),
        "array_chance": round(max(largest(public, s) for s in shuffled[:20]), 4),
    }


def _target_name(name: str, settings: FamilyConfig, target: str | None) -> str:
    if target is not None and target not in settings.targets:
        raise UserError(f"{name} is not run on target {target!r}; it is on: {', '.join(settings.targets)}")
    return target or settings.targets[0]


def _listed(arrays: Mapping[str, Tensor]) -> dict[str, list[JsonValue]]:
    return {name: array.tolist() for name, array in sorted(arrays.items()) if isinstance(array, Tensor)}
