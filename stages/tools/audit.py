"""Auditing families on fresh instances: floor and ceiling of the score, leaks, the ladder, and the headroom.

Headroom is a gate: a family stays on a target where what a tight budget pays for explains little enough that a method
could show something. It is measured with the executor that scores methods; see ``headroom``.
"""

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from joblib import delayed

from stages.base.params import load, names
from stages.base.processes import process_pool
from stages.contracts.target import Target
from stages.contracts.task import Instances, TaskFamily
from stages.errors import UserError
from stages.scoring.cached import jobs
from stages.targets.storage import load_target
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import Made, instance_keys, make, pool_of, stream
from stages.tasks.secret import read_secret
from stages.tasks.stage import LEAST, Config, settings_of
from stages.tasks.storage import Split, Task
from stages.tools.headroom import Headroom, headroom, retest, shortfalls

__all__ = ["AuditRow", "audit", "audit_family", "told"]

MOST_OF_ONE = 1 / 3
"""Of the truth's variance, that one instance may have."""


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
    version: int
    n: int
    n_items: int
    truth_mean: float
    truth_std: float
    constant: float
    truth: float
    permuted: float
    overlap: int
    truth_flops_per_instance: float
    rises: bool
    headroom: Headroom
    fails: list[str]
    """What is not as it should be; empty where ``ok``."""
    seconds: float
    """CPU time of the audit of this row, the truth included."""
    truth_seconds: float
    ok: bool


def audit(
    names_: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda said: None,
    *,
    targets: Sequence[str] | None = None,
    share: float = 1.0,
    methods: Sequence[str] | None = None,
) -> list[AuditRow]:
    """Check families on fresh instances; one row per family and target.

    ``constant``, ``truth`` and ``permuted`` are scores of those predictions; ``overlap`` counts instances shared with
    another seed, or with the instances of the stage; ``order_hint`` and ``array_hint`` are the largest correlations of
    the truth with the position and with any single public number, ``..._chance`` what such a maximum reaches under
    permuted truth; ``headroom`` is what the executor makes of it. ``fails`` says
    what is not as it should be: constant 0, truth 1, permuted < 0.05, no overlap, no order hint beyond chance, a ladder
    that rises, no instance that has most of the variance, and what ``headroom.shortfalls`` says.
    (An input may well tell something: ``array_hint`` is shown, not judged, and must only stay far from 1.)

    Args:
        names_: families; None: all.
        targets: only on these of their targets.
        share: of the instances that the stage makes; below 1 the calibrator has fewer labels, so budgets explain less.
        methods: built-in methods to try; None: all of params/reward.yaml.

    Raises:
        UserError: an unknown family, targets that were not trained, or a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise UserError(f"share = {share}: use a number above 0 and at most 1")
    config = load("tasks", Config)
    tried = names("reward", "methods") if methods is None else tuple(methods)
    tasks = [
        (family(name), target_name)
        for name in names_ or FAMILIES.names()
        for target_name in settings_of(config, name).targets
        if targets is None or target_name in targets
    ]
    if not tasks:
        raise UserError(f"no family asked for is run on {', '.join(targets or ())}: see `lensmith tasks list`")
    tasks.sort(key=lambda task: task[1])  # a target is loaded and interpreted once
    work = (delayed(_on_target)(made, target_name, config, share, tried) for made, target_name in tasks)
    rows = []
    for row in process_pool(min(jobs(), len(tasks)), return_as="generator")(work):
        rows.append(row)
        progress(f"{row['family']} on {row['target']}, {len(rows)} of {len(tasks)}")
    return sorted(rows, key=lambda row: (row["family"], row["target"]))


def _on_target(made: TaskFamily, target_name: str, config: Config, share: float, tried: Sequence[str]) -> AuditRow:
    torch.set_num_threads(1)
    of_family, target = settings_of(config, made.name), load_target(target_name)
    n = max(LEAST, round(share * of_family.n_on(made, target.spec, config.n_instances)))
    return audit_family(made, target, of_family.split, n, config.seed, tried)


def audit_family(made: TaskFamily, target: Target, split: Split, n: int, seed: int, methods: Sequence[str]) -> AuditRow:
    """One row; see ``audit``.

    Args:
        n: instances.
        seed: of the stage, whose instances none of these may be.
        methods: built-in methods to try.
    """
    started, key = time.process_time(), read_secret()
    result = make(made, target, split, n, 1, "audit", key)
    truth_seconds = time.process_time() - started
    values = result.truth.values.numpy()
    rng = np.random.default_rng(0)
    permuted = float(np.mean([made.score(values[rng.permutation(n)], values)[0] for _ in range(20)]))
    constant = float(made.score(np.full_like(values, values.mean()), values)[0])
    perfect, overlap = float(made.score(values, values)[0]), _overlap(made, target, split, result, seed)
    hints = _hints(result.instances, values, rng)
    task = Task(made, target.name, split, result.instances.public(), result.truth)
    found = headroom(task, target, methods, retest(task, target, result.instances, key))
    costs, scores = ([rung[what] for rung in found["ladder"]] for what in ("flops_per_instance", "score"))
    rises = scores[-1] > scores[0] + 0.02 and all(b > a for a, b in pairwise(costs)) and costs[0] > 0
    heaviest = heaviest_share(values)
    wrong = {
        f"the best constant scores {constant:.2f} (wanted: 0)": constant != 0.0,
        f"the truth scores {perfect:.2f} (wanted: 1)": perfect != 1.0,
        f"the truth in another order scores {permuted:.2f} (wanted: below 0.05)": permuted >= 0.05,
        f"{overlap} instances are those of another seed": overlap > 0,
        f"the position tells the truth at {hints['order_hint']:.2f} (chance: {hints['order_chance']:.2f})": (
            hints["order_hint"] > hints["order_chance"]
        ),
        "the ladder does not rise in price and score": not rises,
        f"one instance has {heaviest:.2f} of the truth's variance (wanted: at most"
        f" {MOST_OF_ONE:.2f}; another scale of the truth may help)": heaviest > MOST_OF_ONE,
    }
    fails = [*(said for said, is_so in wrong.items() if is_so), *shortfalls(found)]
    return {
        "family": made.name,
        "target": target.name,
        "split": split,
        "version": made.version,
        "n": n,
        "n_items": values.shape[1],
        "truth_mean": round(float(values.mean()), 6),
        "truth_std": round(float(values.std()), 6),
        "constant": constant,
        "truth": perfect,
        "permuted": round(permuted, 4),
        "overlap": overlap,
        **hints,
        "truth_flops_per_instance": result.truth_flops / n,
        "rises": rises,
        "headroom": found,
        "fails": fails,
        "seconds": round(time.process_time() - started, 1),
        "truth_seconds": round(truth_seconds, 1),
        "ok": not fails,
    }


def heaviest_share(values: npt.NDArray[np.float64]) -> float:
    """(n, items) -> the largest share of the variance that one instance has: a score hangs on whether it was met in
    calibration. 0 where nothing varies."""
    squares = ((values - values.mean()) ** 2).sum(1)
    return float(squares.max() / squares.sum()) if squares.sum() > 0 else 0.0


def told(row: AuditRow) -> dict[str, str | float]:
    """One line of a terminal's table."""
    found = row["headroom"]
    by_budget = " / ".join(f"{found[budget]:.2f}" for budget in ("tight", "medium", "ample"))
    best = f"{found['best_method']} {found['best_reward']:+.3f}" if found["best_method"] else "none"
    return {
        "family": row["family"],
        "target": row["target"],
        "explained at tight / medium / ample": by_budget,
        "oracle": round(found["oracle_gain"], 2),
        "cheap rule": f"{found['cheap_rule']} {found['cheap_score']:.2f}",
        "best method": best,
        "visible": "-" if found["visible"] is None else f"{found['visible']:.3f}",
        "truth again": "-" if found["retest"] is None else f"{found['retest']:.2f}",
        "verdict": "ok" if row["ok"] else "; ".join(row["fails"]),
    }


def _overlap(made: TaskFamily, target: Target, split: Split, result: Made, seed: int) -> int:
    """Instances also met under another seed or in the stage. Variants are made by training, so few are compared."""
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
