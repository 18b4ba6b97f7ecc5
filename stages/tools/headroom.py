"""Is there room for a method? A task as the executor sees it: what each budget explains, and what is left.

Everything here is measured with the arms and the reward that methods are scored with, on fresh instances. A task fails
where a tight budget explains most of the truth already, where knowing the truth would gain little there, where a wider
budget buys nothing, or where the truth does not repeat itself.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
import torch

from stages.base import paths
from stages.contracts.arms import Answered, Baseline
from stages.contracts.method import Interpretation
from stages.contracts.reward_rows import CONTROL_METHODS
from stages.contracts.target import Target
from stages.contracts.task import Instances
from stages.errors import MethodError
from stages.execution.answering import ask_in_process
from stages.execution.arms import BUDGETS, budgets_of
from stages.execution.runs import arms_of, baseline_of
from stages.execution.stage import oracle
from stages.interpretation.free_phase import interpret
from stages.interpretation.loading import built_in
from stages.interpretation.settings import Config
from stages.reward.inference import measured
from stages.reward.judging import Judged, judge
from stages.reward.resampling import resampled, scores
from stages.scoring.settings import Settings, settings
from stages.tasks.generation import pool_of, stream
from stages.tasks.storage import Split, Task

__all__ = [
    "LEAST_GAIN",
    "LEAST_RETEST",
    "MOST_EXPLAINED",
    "Headroom",
    "Known",
    "headroom",
    "known",
    "retest",
    "shortfalls",
    "slim",
]

MOST_EXPLAINED = 0.7
"""Of the truth's variance, by what a tight budget pays for."""
LEAST_GAIN = 0.3
"""In score, of the truth itself as an answer for nothing, at a tight budget."""
LEAST_CLIMB = 0.02
"""In score, from a tight budget to an ample one."""
LEAST_RETEST = 0.9
"""Correlation of a truth that draws something with the truth drawn again."""
N_RETEST, N_LOOK = 40, 4
DRAWS = 200
PLACES = 4


class LadderScore(TypedDict):
    """One step of the black-box ladder."""

    effort: int
    flops_per_instance: float
    score: float
    """Cross-validated on the calibration instances, mean over the seeds."""


class Headroom(TypedDict):
    """One task, judged: scores are mean over the executor's seeds, on evaluation instances."""

    tight: float
    medium: float
    ample: float
    """What the black box explains at each budget."""
    tight_se: float
    ladder: list[LadderScore]
    budgets: list[float]
    """FLOPs per instance of the three budgets."""
    oracle_gain: float
    """Score of the truth as an answer less that of the black box, at a tight budget."""
    oracle_reward: float
    best_method: str
    """The built-in method that earns most; empty: none that answers earns anything."""
    best_reward: float
    best_reward_se: float
    visible: float | None
    """The smallest reward that would have been seen in 80% of repetitions; None: nothing varied."""
    answered: list[str]
    """Built-in methods that answered."""
    cheap_rule: str
    """The best of what a tight budget pays for, by cross-validation."""
    cheap_score: float
    retest: float | None
    """See ``LEAST_RETEST``; None: the truth draws nothing."""


class Known(TypedDict):
    """What results/headroom.json keeps of an audited family on one target."""

    family: str
    target: str
    split: Split
    version: int
    n: int
    truth_flops_per_instance: float
    headroom: Headroom
    fails: list[str]


def known() -> list[Known]:
    """Rows of the last audit that was kept; none where there is none."""
    file = paths.result_file("headroom")
    rows: list[Known] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return rows


def slim(row: Mapping[str, Any]) -> Known:
    """What is kept of an audit's row."""
    kept: Known = {name: row[name] for name in Known.__annotations__}  # type: ignore[assignment]  # checked by its keys
    return kept


def headroom(task: Task, target: Target, methods: Sequence[str], retested: float | None) -> Headroom:
    """Judge a task.

    Args:
        task: fresh instances with their truth.
        methods: built-in methods to try; those that decline or fail count as earning nothing.
        retested: see ``retest``.
    """
    chosen = settings()
    reward = chosen.reward.model_copy(update={"draws": DRAWS})
    baseline = baseline_of(task, target, chosen.execution)

    def judged(answered: Answered) -> Judged:
        return judge(task, baseline, arms_of(task, baseline, answered, chosen.execution, placebo=False), reward)

    ceiling = judged(oracle(task))
    at = {row.budget: row for row in ceiling.by_budget}
    earned = {}
    for name in methods:
        answered = _answer(name, task, target, chosen)
        if answered is not None:
            done = judged(answered)
            earned[name] = done.estimate(done.reward)
    known_methods = [name for name in earned if name not in CONTROL_METHODS]
    best = max(known_methods, key=lambda name: earned[name].value, default="")
    of_oracle = ceiling.estimate(ceiling.reward)
    seen = earned.get(best, of_oracle)
    rule, rule_score = _cheap_rule(baseline)
    return {
        "tight": round(at["tight"].baseline_score, PLACES),
        "medium": round(at["medium"].baseline_score, PLACES),
        "ample": round(at["ample"].baseline_score, PLACES),
        "tight_se": round(_tight_error(task, baseline, reward.seed), PLACES),
        "ladder": _ladder(baseline),
        "budgets": [float(f"{at[budget].flops_budget:.4g}") for budget in BUDGETS],
        "oracle_gain": round(at["tight"].assisted_score - at["tight"].baseline_score, PLACES),
        "oracle_reward": round(of_oracle.value, PLACES),
        "best_method": best if best and seen.value > 0 else "",
        "best_reward": round(seen.value, PLACES) if best else 0.0,
        "best_reward_se": round(seen.se, PLACES) if best else 0.0,
        "visible": None if seen.visible is None else round(seen.visible, PLACES),
        "answered": sorted(earned),
        "cheap_rule": rule,
        "cheap_score": round(rule_score, PLACES),
        "retest": None if retested is None else round(retested, PLACES),
    }


def shortfalls(found: Headroom) -> list[str]:
    """What fails, each with the number and what is wanted; empty: nothing."""
    told = []
    if found["tight"] >= MOST_EXPLAINED:
        told.append(f"a tight budget explains {found['tight']:.2f} (wanted: below {MOST_EXPLAINED})")
    if found["oracle_gain"] < LEAST_GAIN:
        told.append(f"the truth itself gains {found['oracle_gain']:.2f} at a tight budget (wanted: {LEAST_GAIN})")
    if found["ample"] < found["tight"] + LEAST_CLIMB or not found["budgets"][0] < found["budgets"][-1]:
        told.append(f"an ample budget explains {found['ample']:.2f}, no more than a tight one ({found['tight']:.2f})")
    if found["retest"] is not None and found["retest"] < LEAST_RETEST:
        told.append(f"the truth drawn again agrees at {found['retest']:.2f} (wanted: {LEAST_RETEST})")
    return told


def retest(task: Task, target: Target, planted: Instances, key: bytes) -> float | None:
    """Correlation of the truth with the truth drawn again from another stream, on some instances; None where it draws
    nothing.

    Args:
        planted: the task's instances with what was planted.
    """
    pool = pool_of(target, task.split, key)

    def drawn(instances: Instances, which: int) -> torch.Tensor:
        rng = stream(key, "truth", "retest", task.name, which)
        return task.family.ground_truth(pool, instances, rng).values

    def first(k: int) -> Instances:
        # What was planted together, such as variants that share a secret or are compared at once, is not taken apart.
        apart = not planted.variants and all(len(value) == planted.n for value in planted.planted.values())
        return planted.select(torch.arange(min(k, planted.n))) if apart else planted

    few = first(N_LOOK)
    if torch.equal(drawn(few, 0), drawn(few, 1)):
        return None
    some = first(N_RETEST)
    both = torch.stack([drawn(some, which).flatten() for which in (0, 1)])
    return float(torch.corrcoef(both)[0, 1])


def _tight_error(task: Task, baseline: Baseline, seed: int) -> float:
    """Standard error of the black box's score at a tight budget: what instances and seeds leave."""
    of_tight = [result for result in baseline.first if result.budget == "tight"]
    resamples = resampled(task.instances.n, DRAWS, np.random.default_rng([seed, *task.name.encode()]))
    draws = scores(task, of_tight, resamples)
    return measured(draws, task.instances.n, len(of_tight[0].index)).se


def _answer(name: str, task: Task, target: Target, chosen: Settings) -> Answered | None:
    """None: it has nothing to say, or fails."""
    method = built_in(name)
    try:
        answered = ask_in_process(method, name, _interpreted(name, target, chosen.interpretation), task, target)
    except MethodError:
        return None
    return answered if answered.status == "ok" and answered.rows is not None else None


_KNOWN: dict[tuple[str, str], Interpretation] = {}


def _interpreted(name: str, target: Target, config: Config) -> Interpretation:
    """I(M) of a built-in method, computed once a process."""
    key = (name, target.digest)
    if key not in _KNOWN:
        _KNOWN[key] = interpret(built_in(name), name, target, config)
    return _KNOWN[key]


def _ladder(baseline: Baseline) -> list[LadderScore]:
    return [
        {
            "effort": rung.effort,
            "flops_per_instance": rung.flops,
            "score": round(float(np.mean([fits[i].score for fits in baseline.fits])), PLACES),
        }
        for i, rung in enumerate(baseline.rungs[0])
    ]


def _cheap_rule(baseline: Baseline) -> tuple[str, float]:
    """The best of what a tight budget pays for, and its cross-validated score, mean over seeds."""
    limit = budgets_of(baseline.rungs[0])["tight"][0]
    n_rungs = len(baseline.rungs[0])
    found = {"labels alone": 0.0}
    for i in range(len(baseline.fits[0])):
        if i >= n_rungs or baseline.rungs[0][i].flops <= limit:
            name = f"step {i}" if i < n_rungs else "question alone"
            found[name] = float(np.mean([fits[i].score for fits in baseline.fits]))
    best = max(found, key=lambda name: found[name])
    return best, found[best]
