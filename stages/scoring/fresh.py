"""The fresh-instance gap: does a method do as well on instances nobody could have seen?

After I(M) is frozen, new instances are drawn and their truth is computed. The same calibrator, fitted on the method's
answers to the old calibration instances, predicts the old evaluation instances and the new ones. A method that carries
answers in I(M), or is fitted to the old instances, does worse on the new ones.

For a method nobody has reviewed (`lensmith score`) the new instances come from a secret seed. For the built-in methods
and the one the campaign found, stage ``fresh`` derives the seed from the bytes of all frozen I(M): nobody could know
it before they were frozen (the idea of Fiat and Shamir 1986), and the stage stays a function of its inputs.
"""

import hashlib
import secrets
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from joblib import delayed

from stages.base.intervals import percentile_interval
from stages.base.params import names
from stages.base.processes import process_pool
from stages.contracts.arms import Answered
from stages.contracts.measurement_rows import FRESH, FreshRow
from stages.contracts.outcomes import Outcome
from stages.contracts.target import Target
from stages.execution.arms import split
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.scoring.cached import cached_target, cached_task, jobs
from stages.scoring.candidate import Candidate, Frozen, Host
from stages.scoring.in_process import InProcess
from stages.scoring.proposals import contenders
from stages.scoring.settings import Settings, settings
from stages.scoring.stage import stage_frozen
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.storage import Task, dearest_first, list_tasks

__all__ = ["fresh_gap", "fresh_task", "main", "n_fresh", "run"]

N_FRESH = 40
"""At most; of a task that was given few instances, since its truth is dear, a third of them."""
DRAWS = 400
FloatArray = npt.NDArray[np.float64]


def n_fresh(task: Task) -> int:
    """How many new instances are drawn of a task."""
    return max(1, min(N_FRESH, task.instances.n // 3))


def fresh_task(task: Task, target: Target, n: int | None = None, seed: int | None = None) -> Task:
    """New instances of a task's family, from a secret seed unless one is given, with their truth."""
    drawn = secrets.randbits(48) if seed is None else seed
    made = make(task.family, target, task.split, n or n_fresh(task), drawn, "fresh", read_secret())
    return Task(task.family, task.target_name, task.split, made.instances.public(), made.truth)


def fresh_gap(
    host: Host, candidate: Candidate, frozen: Frozen, old: Answered, task: Task, target: Target
) -> FreshRow | None:
    """Score on old against new instances of one task; None where the method did not answer.

    Meant to be ``evaluate``'s ``extra``: the answer to the old instances is there already.
    """
    if old.status != "ok" or old.rows is None:
        return None
    chosen = settings()
    fresh = fresh_task(task, target)
    new = host.ask(candidate, frozen, fresh, target)
    if new.status != "ok" or new.rows is None:
        return FreshRow(task=task.name, outcome=new.status, reason=new.reason)
    return _gap(task, _draws(task, fresh, old.rows, new.rows, chosen), fresh, chosen)


def _draws(task: Task, fresh: Task, old: FloatArray, new: FloatArray, chosen: Settings) -> FloatArray:
    """(2, 1 + DRAWS) score on the old and the new instances, first as they are, then resampled."""
    config, truth = chosen.execution, task.truth.values.numpy()
    old_x, new_x = assemble(old), assemble(new)
    calibration, evaluation = split(task, 0, config)

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    kind = cross_validate(old_x[calibration], truth[calibration], score, config.folds, config.max_features).kind
    model = Calibrator(config.max_features).fit(old_x[calibration], truth[calibration])
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


def _gap(task: Task, draws: FloatArray, fresh: Task, chosen: Settings) -> FreshRow:
    n_old = len(split(task, 0, chosen.execution)[1])
    row = FreshRow(task=task.name, outcome="ok", n_old=n_old, n_fresh=fresh.instances.n)
    return row.model_copy(update=_numbers(draws))


def _numbers(draws: FloatArray) -> dict[str, float]:
    gap = draws[0] - draws[1]
    low, high = percentile_interval(gap[1:])
    named = {"old": draws[0][0], "fresh": draws[1][0], "gap": gap[0], "gap_low": low, "gap_high": high}
    return {name: round(float(value), 6) for name, value in named.items()}


def _on_task(
    contenders: Sequence[Candidate], frozen: Mapping[str, Frozen], family: str, target: str, seed: int, chosen: Settings
) -> list[tuple[str, str, FreshRow, FloatArray | None]]:
    """All methods on one task: (method, split, its gap, the draws behind it)."""
    task, model = cached_task(family, target), cached_target(target)
    fresh, host = fresh_task(task, model, seed=seed), InProcess(chosen.interpretation)
    found: list[tuple[str, str, FreshRow, FloatArray | None]] = []
    for one in contenders:
        old, new = (host.ask(one, frozen[one.name], of, model) for of in (task, fresh))
        worse = old if old.status != "ok" else new
        if old.rows is None or new.rows is None:
            nothing = FreshRow(task=task.name, outcome=worse.status, reason=worse.reason)
            found.append((one.name, task.split, nothing, None))
            continue
        draws = _draws(task, fresh, old.rows, new.rows, chosen)
        found.append((one.name, task.split, _gap(task, draws, fresh, chosen), draws))
    return found


def run() -> tuple[FreshRow, ...]:
    """Stage ``fresh``: rows of metrics/fresh.json, one per method and task, and one per method over all (task "all").

    The row of all tasks is the mean over the tasks the method answered; instances are resampled within each task.
    """
    chosen, methods = settings(), names("reward", "methods")
    tasks = [task for split_name in ("train", "validation") for task in list_tasks(split_name)]
    targets = sorted({target for _, target in tasks})
    every = contenders()
    frozen = {
        one.name: stage_frozen(one.name, targets)
        if one.name in methods
        else InProcess(chosen.interpretation).freeze(one, targets)
        for one in every
    }
    sha = hashlib.sha256()
    for target in targets:
        for _, of_method in sorted(frozen.items()):
            sha.update(of_method[target].arrays + of_method[target].text)
    seed = int.from_bytes(sha.digest()[:6], "big")
    done = process_pool(jobs())(
        delayed(_on_task)(every, {name: one[target] for name, one in frozen.items()}, family, target, seed, chosen)
        for family, target in dearest_first(tasks)
    )
    flat = [row for of_task in done for row in of_task]
    rows = [gap.model_copy(update={"method": method, "split": split_name}) for method, split_name, gap, _ in flat]
    for one in every:
        draws = [draws for method, _, _, draws in flat if method == one.name and draws is not None]
        outcome: Outcome = "ok" if draws else "declined"
        over_all = FreshRow(method=one.name, task="all", split="all", n_tasks=len(draws), outcome=outcome)
        rows.append(over_all.model_copy(update=_numbers(np.mean(draws, axis=0)) if draws else {}))
    ordered = tuple(sorted(rows, key=lambda row: (row.task != "all", row.task, row.method or "")))
    FRESH.save(ordered)
    return ordered


def main() -> None:
    for row in run():
        if row.task == "all":
            gap = "-" if row.gap is None else row.gap
            print(f"{row.method}: {row.outcome}, gap {gap} over {row.n_tasks} tasks", flush=True)
