"""Stage ``reward``: R_t of every built-in method on train and validation tasks, with intervals.

Writes metrics/leaderboard.json (validation), train.json, statements.json, per_task.json, sensitivity.json and
controls.json.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import kendalltau

from stages import tracking
from stages.base import paths
from stages.base.params import load
from stages.contracts.arms import MethodArms
from stages.contracts.measurement_rows import CONTROLS, SENSITIVITY, RankRow, RewardSettings, SensitivityTable, TauRow
from stages.contracts.pay import FORMS, Form
from stages.contracts.reward_rows import LEADERBOARD, PER_TASK, STATEMENTS, TRAIN, LeaderboardRow, StatementRow, TaskRow
from stages.execution.results import load_arms, load_baseline
from stages.reward.controls import control_rows
from stages.reward.judging import Judged, judge, leaderboard_row, task_row
from stages.reward.settings import Config, RewardConfig
from stages.reward.statements import BOTH, statements
from stages.tasks.storage import list_tasks, load_task

__all__ = ["Config", "main", "run", "sensitivity"]


def ranked(rows: Sequence[LeaderboardRow]) -> tuple[LeaderboardRow, ...]:
    return tuple(sorted(rows, key=lambda row: (-row.reward_mean, row.method)))


def sensitivity(
    judge_all: Mapping[tuple[Form, float], Mapping[str, Sequence[Judged]]], default: tuple[Form, float]
) -> SensitivityTable:
    """Mean reward and rank of each method under every form and weight, and how far the ranking moves."""
    rows, taus = [], []
    reference: dict[str, float] = {}
    for key in [default, *sorted(key for key in judge_all if key != default)]:
        form, weight = key
        means = {
            method: float(np.mean([j.reward[0].mean() for j in judged])) for method, judged in judge_all[key].items()
        }
        order = sorted(means, key=lambda method: (-means[method], method))
        reference = reference or means
        names = sorted(means)
        tau = kendalltau([means[n] for n in names], [reference[n] for n in names]).statistic if len(names) > 1 else 1.0
        agreement = float(np.nan_to_num(tau, nan=1.0))
        taus.append(TauRow(form=form, flop_weight=weight, kendall_tau=agreement).rounded())
        rows += [
            RankRow(form=form, flop_weight=weight, method=m, reward_mean=means[m], rank=i + 1).rounded()
            for i, m in enumerate(order)
        ]
    chosen = RewardSettings(form=default[0], flop_weight=default[1])
    return SensitivityTable(default=chosen, rows=tuple(rows), kendall_tau=tuple(taus))


def project(
    config: Config,
    boards: Mapping[str, Sequence[LeaderboardRow]],
    said: Sequence[StatementRow],
    per_task: Sequence[TaskRow],
) -> None:
    """One MLflow run per method: few numbers, under shared names, so that a chart compares methods; its rows beside."""
    tracking.supersede(**{"lensmith.kind": "method"})
    train = {row.method: row for row in boards["train"]}
    families = {row.method: row for row in said if (row.split, row.scope) == ("validation", "families")}
    tasks = {row.method: row for row in said if (row.split, row.scope) == ("validation", "tasks")}
    for row in reversed(boards["validation"]):  # MLflow lists the latest first
        with tracking.stage_run(f"method {row.method}", config.model_dump(exclude={"methods", "flop_weights"})) as log:
            wide, here = families[row.method], tasks[row.method]
            log.tag({"lensmith.kind": "method", "method": row.method, tracking.CURRENT: "yes"})
            log.tag({"verdict": row.verdict, "verdict_on_families": wide.verdict})
            log(
                {
                    "reward": row.reward_mean,
                    "reward_low": row.reward_low,
                    "reward_high": row.reward_high,
                    "score_gained": row.performance_gain,
                    "flop_ratio": row.flop_ratio,
                    "placebo_reward": row.placebo_reward,
                    "worst_task_reward": row.worst_task_reward,
                    "train_reward": train[row.method].reward_mean,
                    "reward_on_families": wide.value,
                    **{
                        key: value
                        for key, value in (("visible", here.visible), ("visible_on_families", wide.visible))
                        if value is not None
                    },
                }
            )
            log.describe(
                f"Reward {row.reward_mean:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}] on these validation"
                f" tasks: {row.verdict}; on families like these: {wide.verdict}. All numbers: rows.json; the report is"
                " an artifact of the run called report."
            )
            mine = {
                "leaderboard": row.facts(),
                "statements": [one.facts() for one in said if one.method == row.method],
                "tasks": [one.facts() for one in per_task if one.method == row.method],
            }
            log.text("rows.json", json.dumps(mine, indent=1) + "\n")


def run(config: Config) -> None:
    tasks = [load_task(family, target) for split in ("train", "validation") for family, target in list_tasks(split)]
    baselines = {task.name: load_baseline(paths.execution_dir("baseline"), task.name) for task in tasks}
    arms = {m: {t.name: load_arms(paths.execution_dir(m), t.name) for t in tasks} for m in config.methods}
    oracle = {t.name: load_arms(paths.execution_dir("baseline") / "oracle", t.name) for t in tasks}

    def judged(method_arms: Mapping[str, MethodArms], settings: RewardConfig, split: str | None = None) -> list[Judged]:
        chosen = [task for task in tasks if split in (None, task.split)]
        return [judge(task, baselines[task.name], method_arms[task.name], settings) for task in chosen]

    everything = {method: judged(arms[method], config) for method in config.methods}
    per_task = tuple(task_row(method, j) for method, of in everything.items() for j in of)
    PER_TASK.save(per_task)
    said = tuple(
        row
        for name, splits in (("validation", {"validation"}), ("train", {"train"}), (BOTH, {"train", "validation"}))
        for row in statements([one for one in per_task if one.split in splits], name)
    )
    STATEMENTS.save(said)
    here = {(row.split, row.method): row for row in said if row.scope == "tasks"}
    boards: dict[str, tuple[LeaderboardRow, ...]] = {}
    for split, file in (("validation", LEADERBOARD), ("train", TRAIN)):
        rows = [
            leaderboard_row(method, split, [j for j in of if j.task.split == split], here[split, method])
            for method, of in everything.items()
        ]
        boards[split] = ranked(rows)
        file.save(boards[split])
        for row in boards[split] if split == "validation" else ():
            print(
                f"{row.method:<16} reward {row.reward_mean:+.3f} [{row.reward_low:+.3f}, {row.reward_high:+.3f}]"
                f" {row.verdict}",
                flush=True,
            )
    project(config, boards, said, per_task)
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
    SENSITIVITY.save(sensitivity(table, default))
    CONTROLS.save(control_rows(everything, judged(oracle, config)))


def main() -> None:
    run(load("reward", Config))
