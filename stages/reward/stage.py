"""Stage ``reward``: R_t of every built-in method on train and validation tasks, with intervals.

Writes metrics/leaderboard.json (validation), train.json, per_task.json, sensitivity.json and controls.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from stages import tracking
from stages.base import paths
from stages.base.files import save_json
from stages.base.params import load
from stages.execution.results import load_arms, load_baseline
from stages.reward.controls import control_rows
from stages.reward.formula import FORMS, Form
from stages.reward.judging import Judged, judge, leaderboard_row, rounded, task_row
from stages.reward.settings import Config, RewardConfig
from stages.tasks.storage import list_tasks, load_task

__all__ = ["Config", "main", "run", "sensitivity"]


def ranked(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (-row["reward_mean"], row["method"]))


def sensitivity(
    judge_all: Mapping[tuple[Form, float], Mapping[str, Sequence[Judged]]], default: tuple[Form, float]
) -> dict[str, Any]:
    """Mean reward and rank of each method under every form and weight, and how far the ranking moves."""
    rows, taus = [], []
    reference: dict[str, float] = {}
    for key in [default, *sorted(key for key in judge_all if key != default)]:
        form, weight = key
        means = {method: float(np.mean([j.reward[0] for j in judged])) for method, judged in judge_all[key].items()}
        order = sorted(means, key=lambda method: (-means[method], method))
        reference = reference or means
        names = sorted(means)
        tau = kendalltau([means[n] for n in names], [reference[n] for n in names]).statistic if len(names) > 1 else 1.0
        taus.append(rounded({"form": form, "flop_weight": weight, "kendall_tau": float(np.nan_to_num(tau, nan=1.0))}))
        rows += [
            rounded({"form": form, "flop_weight": weight, "method": m, "reward_mean": means[m], "rank": i + 1})
            for i, m in enumerate(order)
        ]
    return {"default": {"form": default[0], "flop_weight": default[1]}, "rows": rows, "kendall_tau": taus}


def run(config: Config) -> None:
    tasks = [load_task(family, target) for split in ("train", "validation") for family, target in list_tasks(split)]
    baselines = {task.name: load_baseline(paths.execution_dir("baseline"), task.name) for task in tasks}
    arms = {m: {t.name: load_arms(paths.execution_dir(m), t.name) for t in tasks} for m in config.methods}
    oracle = {t.name: load_arms(paths.execution_dir("baseline") / "oracle", t.name) for t in tasks}

    def judged(method_arms: Mapping[str, Any], settings: RewardConfig, split: str | None = None) -> list[Judged]:
        chosen = [task for task in tasks if split in (None, task.split)]
        return [judge(task, baselines[task.name], method_arms[task.name], settings) for task in chosen]

    everything = {method: judged(arms[method], config) for method in config.methods}
    numbers: dict[str, dict[str, float]] = {method: {} for method in config.methods}
    for split, name in (("validation", "leaderboard"), ("train", "train")):
        rows = [
            leaderboard_row(method, split, [j for j in of if j.task.split == split], config.seed)
            for method, of in everything.items()
        ]
        save_json(paths.metrics_file(name), ranked(rows))
        for row in rows:
            numbers[row["method"]] |= {f"{split}/{k}": float(v) for k, v in row.items() if isinstance(v, int | float)}
        for row in ranked(rows) if split == "validation" else []:
            print(
                f"{row['method']:<16} reward {row['reward_mean']:+.3f} [{row['reward_low']:+.3f},"
                f" {row['reward_high']:+.3f}] {row['verdict']}",
                flush=True,
            )
    per_task = [task_row(method, j) for method, of in everything.items() for j in of]
    save_json(paths.metrics_file("per_task"), per_task)
    for row in per_task:
        task = f"{row['family']}.{row['target']}"
        numbers[row["method"]] |= {f"{task}/{k}": row[k] for k in ("reward_mean", "gain_mean", "flop_ratio")}
    for method, metrics in numbers.items():
        with tracking.stage_run(f"method {method}", config.model_dump(exclude={"methods", "flop_weights"})) as log:
            log.tag({"lensmith.kind": "method", "method": method})
            log(metrics, 0)
    default = (config.form, config.flop_weight)
    grid = {default, *((form, weight) for form in FORMS for weight in config.flop_weights)}
    quick = {"draws": 100}
    table = {
        key: {
            method: judged(
                arms[method], config.model_copy(update={"form": key[0], "flop_weight": key[1]} | quick), "validation"
            )
            for method in config.methods
        }
        for key in grid
    }
    save_json(paths.metrics_file("sensitivity"), sensitivity(table, default))
    save_json(paths.metrics_file("controls"), control_rows(everything, judged(oracle, config), config))


def main() -> None:
    run(load("reward", Config))
