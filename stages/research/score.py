"""``lensmith score``: a method of the user's own, on train and validation tasks, next to the built-in ones.

The method runs in a process of its own, with a time limit; target, labels, meter and scoring stay here.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from joblib import Parallel, delayed

from stages import paths
from stages.errors import UserError
from stages.execution import MethodArms, arms_of, load_baseline
from stages.interpretation.methods import BUILT_IN
from stages.metering import Calibration, calibrate
from stages.research.apart import Apart, Frozen, answer_apart, interpret_apart
from stages.research.fresh import fresh_gap
from stages.research.orphans import die_with_parent
from stages.research.stage import jobs, settings
from stages.research.trial import Settings, cached_target, cached_task, judge_arms
from stages.reward import Judged, leaderboard_row, task_row
from stages.tasks import list_tasks

__all__ = ["score_method", "verdict_text"]

Progress = Callable[[str], None]


def _one(
    source: Path,
    name: str,
    frozen: Frozen,
    family: str,
    target: str,
    chosen: Settings,
    timeout_s: float,
    trust: bool,
    rates: Calibration,
    orchestrator: int,
    fresh: bool,
) -> tuple[str, Apart, MethodArms, dict[str, Any] | None]:
    """One task: the answer from a process of its own, then the arms."""
    die_with_parent(orchestrator)
    task, model = cached_task(family, target), cached_target(target)
    apart = answer_apart(source, name, frozen, task, model, timeout_s, trust, rates)
    baseline = load_baseline(paths.execution_dir("baseline"), task.name)
    gap = fresh_gap(source, name, frozen, apart, task, model, chosen, timeout_s, trust, rates) if fresh else None
    return task.name, apart, arms_of(task, baseline, apart.answered, chosen.execution), gap


def score_method(
    path: Path,
    *,
    timeout_s: float = 120.0,
    trust: bool = False,
    only: Sequence[tuple[str, str]] | None = None,
    fresh: bool = True,
    progress: Progress = print,
) -> dict[str, Any]:
    """Score the method in a file.

    Args:
        path: the file.
        timeout_s: wall limit of one call of the method.
        trust: run it without the sandbox.
        only: (family, target) of the tasks; None: all of train and validation.
        fresh: compare with instances that are drawn now, from a secret seed.
        progress: told what is being done.

    Returns:
        {"method", "rows": leaderboard rows of it and the built-in methods, "per_task": its rows, "verdict",
        "verdict_text", "outcome": ok, failed or void, "reason", "meters": FLOPs of each task by layer, "calibration",
        "fresh_gap": rows per task}.
        A void result has no rows of its own.

    Raises:
        UserError: the graph has not been run, or there is no sandbox and no ``trust``.
        MethodError: the file does not import, or interpret fails. (Failing to answer is a result, not an error.)
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a Python file with one subclass of Method")
    chosen, _ = settings()
    splits = {
        split: [task for task in list_tasks(split) if only is None or task in only] for split in ("train", "validation")
    }
    tasks = [*splits["train"], *splits["validation"]]
    paths.require(paths.execution_dir("baseline"), "baseline")
    rates = calibrate()
    progress("interpret")
    made = interpret_apart(path, path.stem, sorted({target for _, target in tasks}), chosen, timeout_s, trust)
    progress("answers, assisted and placebo arms")
    with Parallel(n_jobs=jobs(), initializer=die_with_parent, initargs=(os.getpid(),)) as pool:
        done = pool(
            delayed(_one)(path, path.stem, made[t], f, t, chosen, timeout_s, trust, rates, os.getpid(), fresh)
            for f, t in tasks
        )
    arms = {task_name: of_task for task_name, _, of_task, _ in done}
    name = path.stem if path.stem not in BUILT_IN else f"{path.stem}_of_yours"
    judged = {split: judge_arms(arms, members, chosen.reward) for split, members in splits.items() if members}
    void = [apart for _, apart, _, _ in done if apart.outcome == "void"]
    mine = [] if void else [leaderboard_row(name, split, judged[split], chosen.reward.seed) for split in judged]
    rows = mine + [row for file in ("train", "leaderboard") for row in _rows(file)]
    rows.sort(key=lambda row: (row["split"], -row["reward_mean"], row["method"]))
    failed = [apart for _, apart, _, _ in done if apart.outcome == "failed"]
    worst = next(iter([*void, *failed]), None)
    return {
        "method": name,
        "interpret_bytes": sum(frozen.n_bytes for frozen in made.values()),
        "interpret_cpu_s": round(sum(frozen.seconds for frozen in made.values()), 3),
        "rows": rows,
        "per_task": [task_row(name, j) for split in judged for j in judged[split]],
        "outcome": "void" if void else "failed" if failed else "ok",
        "reason": worst.reason if worst else "",
        "layer": worst.layer if worst else "",
        "meters": [apart.facts | {"outcome": apart.outcome} for _, apart, _, _ in done],
        "fresh_gap": [gap for _, _, _, gap in done if gap is not None],
        "calibration": rates.facts(),
        "verdict": mine[-1]["verdict"] if mine else "void",
        "verdict_text": verdict_text(mine[-1], judged[mine[-1]["split"]])
        if mine
        else f"{name} is void, which is no score: {void[0].reason}.",
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
