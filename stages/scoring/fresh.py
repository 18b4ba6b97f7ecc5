"""The fresh-instance gap: does a method do as well on instances nobody could have seen?

After I(M) is frozen, new instances are drawn and their truth is computed. The same calibrator, fitted on the method's
answers to the old calibration instances, predicts the old evaluation instances and the new ones. A method that carries
answers in I(M), or is fitted to the old instances, does worse on the new ones.

For a method nobody has reviewed (`lensmith score`) the new instances come from a secret seed. For the built-in methods
and the one the campaign found, stage ``fresh`` derives the seed from the bytes of all frozen I(M): nobody could know
it before they were frozen (the idea of Fiat and Shamir 1986), and the stage stays a function of its inputs.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import delayed

from stages.base import paths
from stages.base.files import save_json
from stages.base.processes import processes
from stages.contracts.target import Target
from stages.execution.answering import Answered, ask_in_process
from stages.execution.arms import split
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.interpretation.artifact import load_interpretation, pack, unpack
from stages.interpretation.loading import built_in
from stages.metering.cpu_time import Calibration
from stages.scoring.composed import Spec
from stages.scoring.isolated import Apart, Frozen, answer_apart
from stages.scoring.settings import (
    Settings,
    cached_target,
    cached_task,
    jobs,
    settings,
)
from stages.scoring.trial import freeze_spec, method_of
from stages.tasks.generation import make
from stages.tasks.storage import Task, list_tasks

__all__ = ["fresh_gap", "fresh_task", "main", "run"]

N_FRESH = 40
DRAWS = 400
FloatArray = npt.NDArray[np.float64]


def fresh_task(task: Task, target: Target, n: int = N_FRESH, seed: int | None = None) -> Task:
    """New instances of a task's family, from a secret seed unless one is given, with their truth."""
    drawn = secrets.randbits(48) if seed is None else seed
    made = make(task.family, target, task.split, n, drawn, "fresh")
    return Task(task.family, task.target_name, task.split, made.instances.public(), made.truth)


def fresh_gap(
    source: str | Path,
    name: str,
    frozen: Frozen,
    old: Apart,
    task: Task,
    target: Target,
    chosen: Settings,
    timeout_s: float,
    trust: bool,
    rates: Calibration,
) -> dict[str, Any] | None:
    """Score on old against new instances, both answered in the sandbox; None where the method did not answer.

    Returns:
        {"task", "outcome", "old", "fresh", "gap", "gap_low", "gap_high" (95%, bootstrap over instances), "n_old",
        "n_fresh"}.
    """
    if old.outcome != "ok" or old.answered.rows is None:
        return None
    fresh = fresh_task(task, target)
    new = answer_apart(source, name, frozen, fresh, target, timeout_s, trust, rates)
    if new.outcome != "ok" or new.answered.rows is None:
        return {"task": task.name, "outcome": new.outcome, "reason": new.reason}
    return _row(task, _draws(task, fresh, old.answered.rows, new.answered.rows, chosen), fresh, chosen)


def _draws(task: Task, fresh: Task, old: FloatArray, new: FloatArray, chosen: Settings) -> FloatArray:
    """(2, 1 + DRAWS) score on the old and the new instances, first as they are, then resampled."""
    config, truth = chosen.execution, task.truth.values.numpy()
    old_x, new_x = assemble(old), assemble(new)
    calibration, evaluation = split(task, 0, config)

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    kind = cross_validate(old_x[calibration], truth[calibration], score, config.folds, config.max_features, 0).kind
    model = Calibrator(config.max_features, 0).fit(old_x[calibration], truth[calibration])
    pairs = [
        (model.predict(old_x[evaluation])[kind], truth[evaluation]),
        (model.predict(new_x)[kind], fresh.truth.values.numpy()),
    ]
    rng = np.random.default_rng(0)
    draws = []
    for predictions, wanted in pairs:
        n = len(wanted)
        weights = np.concatenate([np.ones((1, n)), rng.multinomial(n, np.full(n, 1 / n), size=DRAWS)])
        draws.append(task.family.score(predictions, wanted, weights))
    return np.stack(draws)


def _row(task: Task, draws: FloatArray, fresh: Task, chosen: Settings) -> dict[str, Any]:
    n_old = len(split(task, 0, chosen.execution)[1])
    return {"task": task.name, "outcome": "ok", "n_old": n_old, "n_fresh": fresh.instances.n} | _numbers(draws)


def _numbers(draws: FloatArray) -> dict[str, float]:
    gap = draws[0] - draws[1]
    low, high = np.quantile(gap[1:], [0.025, 0.975])
    named = {"old": draws[0][0], "fresh": draws[1][0], "gap": gap[0], "gap_low": low, "gap_high": high}
    return {name: round(float(value), 6) for name, value in named.items()}


def _one(
    contenders: Mapping[str, str | dict[str, Any]], frozen: Mapping[str, tuple[bytes, bytes]], family: str, target: str,
    seed: int, chosen: Settings,
) -> list[tuple[dict[str, Any], FloatArray | None]]:  # fmt: skip
    """All methods on one task: a row each, and the draws behind it."""
    task, model = cached_task(family, target), cached_target(target)
    fresh = fresh_task(task, model, seed=seed)
    found: list[tuple[dict[str, Any], FloatArray | None]] = []
    for name, what in contenders.items():
        method = built_in(what) if isinstance(what, str) else method_of(Spec(**what), name)
        made = unpack(*frozen[name])
        old, new = (ask_in_process(method, name, made, of, model) for of in (task, fresh))
        about = {"method": name, "split": task.split}
        worst: Answered = old if old.status != "ok" else new
        if old.rows is None or new.rows is None:
            found.append((about | {"task": task.name, "outcome": worst.status, "reason": worst.reason}, None))
            continue
        draws = _draws(task, fresh, old.rows, new.rows, chosen)
        found.append((about | _row(task, draws, fresh, chosen), draws))
    return found


def run() -> list[dict[str, Any]]:
    """Stage ``fresh``: rows of metrics/fresh.json, one per method and task, and one per method over all (task "all").

    The row of all tasks is the mean over the tasks the method answered; instances are resampled within each task.
    """
    chosen, methods = settings()
    tasks = [task for split_name in ("train", "validation") for task in list_tasks(split_name)]
    targets = sorted({target for _, target in tasks})
    contenders: dict[str, str | dict[str, Any]] = {name: name for name in methods}
    file = paths.require(paths.metrics_file("campaign"), "research")
    star = json.loads(file.read_text(encoding="utf-8"))["incumbent"]
    if star is not None:
        contenders[star["name"]] = star["spec"]
    frozen = {target: _frozen(contenders, target, chosen) for target in targets}
    sha = hashlib.sha256()
    for target in targets:
        for _, parts in sorted(frozen[target].items()):
            sha.update(b"".join(parts))
    seed = int.from_bytes(sha.digest()[:6], "big")
    done: Sequence[list[tuple[dict[str, Any], FloatArray | None]]] = processes(jobs())(
        delayed(_one)(contenders, frozen[target], family, target, seed, chosen) for family, target in tasks
    )
    rows = [row for of_task in done for row, _ in of_task]
    for name in contenders:
        draws = [d for of_task in done for row, d in of_task if row["method"] == name and d is not None]
        about = {"method": name, "task": "all", "split": "all", "n_tasks": len(draws)}
        numbers = {"outcome": "ok", **_numbers(np.mean(draws, axis=0))} if draws else {"outcome": "declined"}
        rows.append(about | numbers)
    rows.sort(key=lambda row: (row["task"] != "all", row["task"], row["method"]))
    save_json(paths.metrics_file("fresh"), rows)
    return rows


def _frozen(
    contenders: Mapping[str, str | dict[str, Any]], target: str, chosen: Settings
) -> dict[str, tuple[bytes, bytes]]:
    out = {}
    for name, what in contenders.items():
        if isinstance(what, str):
            made = load_interpretation(paths.interpretation_dir(what), target)
            out[name] = pack(made, name, "interpret", chosen.interpretation.max_bytes)
        else:
            out[name] = freeze_spec(Spec(**what), name, target, chosen.interpretation)
    return out


def main() -> None:
    for row in run():
        if row["task"] == "all":
            gap = row.get("gap", "-")
            print(f"{row['method']}: {row['outcome']}, gap {gap} over {row['n_tasks']} tasks", flush=True)
