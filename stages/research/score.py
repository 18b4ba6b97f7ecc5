"""``lensmith score``: a method of the user's own, on train and validation tasks, next to the built-in ones.

The method runs in a process of its own, with a time limit; target, labels, meter and scoring stay here.
"""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from stages import paths
from stages.dictionaries import load_dictionaries
from stages.errors import MethodError, UserError
from stages.execution import Answered, MethodArms, arms_of, checked, load_baseline
from stages.interpretation import Interpretation
from stages.interpretation.artifact import pack, unpack
from stages.interpretation.methods import BUILT_IN
from stages.metering import Ledger, MeteredAccess
from stages.research.stage import jobs, settings
from stages.research.trial import Settings, cached_target, cached_task, judge_arms
from stages.reward import Judged, leaderboard_row, task_row
from stages.sandbox import MethodProcess
from stages.tasks import list_tasks

__all__ = ["score_method", "verdict_text"]

Progress = Callable[[str], None]


def interpret_apart(
    path: Path, name: str, targets: Sequence[str], chosen: Settings, timeout_s: float, progress: Progress
) -> dict[str, tuple[bytes, bytes]]:
    """I(M) on every target as validated bytes, computed in the method's own process.

    Raises:
        MethodError: the method failed; says where and how.
    """
    made = {}
    with MethodProcess(path, name, min(timeout_s, chosen.interpretation.max_seconds)) as process:
        for target in targets:
            progress(f"interpret on {target}")
            access = MeteredAccess(
                cached_target(target), Ledger(), free=True, dictionaries=partial(load_dictionaries, target)
            )
            max_bytes = chosen.interpretation.max_bytes
            value = process.interpret(access, max_bytes, chosen.interpretation.seed)
            made[target] = pack(value, name, f"interpret on {target}", max_bytes)
    return made


def answer_apart(
    path: Path,
    name: str,
    made: dict[str, tuple[bytes, bytes]],
    tasks: Sequence[tuple[str, str]],
    timeout_s: float,
    progress: Progress,
) -> dict[str, Answered]:
    """Answers to every task's query, from a second process that has only the frozen I(M). A failure is a result."""
    answers: dict[str, Answered] = {}
    process: MethodProcess | None = None
    try:
        for family, target in tasks:
            task, ledger = cached_task(family, target), Ledger()
            access = MeteredAccess(cached_target(target), ledger, variants=task.instances.variants)
            n = task.instances.n
            progress(f"answers on {task.name}")
            interpretation: Interpretation = unpack(*made[target])
            try:
                process = process or MethodProcess(path, name, timeout_s)
                reply = process.answer(task.family.query(task.instances), interpretation, access)
                rows = checked(reply.value, name, task)
                status = "declined" if rows is None else "ok"
                answers[task.name] = Answered(status, rows, ledger.flops / n, reply.own_flops / n)  # type: ignore[arg-type]
            except MethodError as error:
                answers[task.name] = Answered("failed", None, ledger.flops / n, 0.0, error.cause)
                if process is not None:
                    process.close()
                process = None  # what is left of a process that failed may be in any state
    finally:
        if process is not None:
            process.close()
    return answers


def _arms(family: str, target: str, answered: Answered, chosen: Settings) -> tuple[str, MethodArms]:
    task = cached_task(family, target)
    baseline = load_baseline(paths.execution_dir("baseline"), task.name)
    return task.name, arms_of(task, baseline, answered, chosen.execution)


def score_method(path: Path, *, timeout_s: float = 120.0, progress: Progress = print) -> dict[str, Any]:
    """Score the method in a file.

    Returns:
        {"method", "rows": leaderboard rows of it and the built-in methods, "per_task": its rows, "verdict",
        "verdict_text"}.

    Raises:
        UserError: the graph has not been run.
        MethodError: the file does not import, or interpret fails. (Failing to answer is a result, not an error.)
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a Python file with one subclass of Method")
    chosen, _ = settings()
    tasks = [task for split in ("train", "validation") for task in list_tasks(split)]
    paths.require(paths.execution_dir("baseline"), "baseline")
    targets = sorted({target for _, target in tasks})
    made = interpret_apart(path, path.stem, targets, chosen, timeout_s, progress)
    answers = answer_apart(path, path.stem, made, tasks, timeout_s, progress)
    progress("assisted and placebo arms")
    with Parallel(n_jobs=jobs()) as pool:
        arms = dict(pool(delayed(_arms)(f, t, answers[cached_task(f, t).name], chosen) for f, t in tasks))
    name = path.stem if path.stem not in BUILT_IN else f"{path.stem}_of_yours"
    judged = {split: judge_arms(arms, list_tasks(split), chosen.reward) for split in ("train", "validation")}
    seed = chosen.reward.seed
    mine = [leaderboard_row(name, split, judged[split], seed) for split in ("train", "validation")]
    rows = mine + [row for file in ("train", "leaderboard") for row in _rows(file)]
    rows.sort(key=lambda row: (row["split"], -row["reward_mean"], row["method"]))
    return {
        "method": name,
        "interpret_bytes": sum(len(a) + len(b) for a, b in made.values()),
        "rows": rows,
        "per_task": [task_row(name, j) for split in ("train", "validation") for j in judged[split]],
        "verdict": mine[1]["verdict"],
        "verdict_text": verdict_text(mine[1], judged["validation"]),
    }


def _rows(name: str) -> list[dict[str, Any]]:
    file = paths.metrics_file(name)
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return rows


def verdict_text(row: dict[str, Any], judged: Sequence[Judged]) -> str:
    """One plain sentence or three about the validation row."""
    words = {
        "better": "better than the baseline, beyond the noise floor",
        "worse": "worse than the baseline, beyond the noise floor",
        "not distinguishable": "not distinguishable from the baseline",
    }
    text = (
        f"{row['method']} is {words[row['verdict']]} on held-out families: reward {row['reward_mean']:+.3f}"
        f" [{row['reward_low']:+.3f}, {row['reward_high']:+.3f}], noise floor {row['noise_floor']:.3f},"
        f" n = {row['n_tasks']} tasks x {row['n_seeds']} seeds."
    )
    as_well = row["placebo_reward"] >= row["reward_mean"] - row["noise_floor"]
    text += (
        f" Its placebo, the same answers dealt to other instances, {'did as well' if as_well else 'did not do as well'}"
        f" ({row['placebo_reward']:+.3f} [{row['placebo_low']:+.3f}, {row['placebo_high']:+.3f}])."
    )
    if as_well and row["verdict"] == "better":
        text += " So what helped is not what the answers say."
    failed = [f"{j.task.name} ({j.arms.reason})" for j in judged if j.arms.status == "failed"]
    if failed:
        text += f" It failed on {'; '.join(failed)}, and pays for that in full."
    declined = [j.task.name for j in judged if j.arms.status == "declined"]
    if declined:
        text += f" It declined {', '.join(declined)}."
    return text
