"""Red-team rows for what is not method code: the record, the settings, the gate and the seal of a campaign.

Each row tries the thing on a throwaway journal or on made-up results and says what came of it.
"""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from stages.base import paths
from stages.contracts.arms import Answered
from stages.contracts.journal import Infra, Started
from stages.contracts.method import Interpretation
from stages.errors import MethodError, UserError
from stages.execution.results import load_baseline
from stages.execution.runs import arms_of
from stages.interpretation.artifact import pack
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable, count_flops
from stages.research.gate import Gate
from stages.research.journal import Journal
from stages.research.researchers import make_researcher
from stages.research.stage import fingerprint
from stages.reward.judging import Judged, judge
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.isolated import TargetGuard
from stages.scoring.settings import Settings

__all__ = ["pipeline_attacks"]


def pipeline_attacks(case: tuple[str, str], chosen: Settings) -> list[dict[str, Any]]:
    """One row per attempt, on one (family, target)."""
    task = cached_task(*case)
    baseline = load_baseline(paths.execution_dir("baseline"), task.name)
    nothing = judge(
        task, baseline, arms_of(task, baseline, Answered("declined", None, 0, 0), chosen.execution), chosen.reward
    )
    target = cached_target(case[1])

    def past_result_edited() -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "events.jsonl"
            journal = Journal(path)
            for iteration in range(3):
                journal.append(Infra(iteration=iteration, reason="a full disk"))
            path.write_text(path.read_text().replace('"reason": "a full disk"', '"reason": "no reason"', 1))
            return _refusal(lambda: Journal(path))

    def event_inserted() -> str:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "events.jsonl"
            Journal(path).append(Started(researcher="search", seed=0))
            with path.open("a") as file:
                file.write(json.dumps({"event": "result", "accepted": True, "chain": "0" * 16}) + "\n")
            return _refusal(lambda: Journal(path))

    def weights_of_the_reward_edited() -> str:
        author = make_researcher("search", 0)
        edited = Settings(
            chosen.interpretation, chosen.execution, chosen.reward.model_copy(update={"flop_weight": 9.0})
        )
        same = fingerprint(author, 2, chosen) == fingerprint(author, 2, edited)
        return "" if same else "another fingerprint: the campaign does not continue"

    def labels_from_score_differences() -> str:
        nudged = _with_reward(nothing, nothing.reward + 1e-4)
        first, second = (Gate(2).decide([judged], None).feedback for judged in (nothing, nudged))
        return "feedback is rounded to the noise floor" if first == second else ""

    def more_queries_than_allowed() -> str:
        gate = Gate(1)
        gate.decide([nothing], None)
        return _refusal(lambda: gate.decide([nothing], None))

    def good_mean_with_one_disaster() -> str:
        good, bad = (_with_reward(nothing, np.full_like(nothing.reward, value)) for value in (0.9, -0.3))
        decision = Gate(1).decide([good, good, bad], None)
        return "" if decision.accepted else f"not accepted: worse on {decision.harmed}"

    def lucky_within_noise() -> str:
        rng = np.random.default_rng(0)
        lucky = _with_reward(nothing, 0.01 + rng.normal(0, 0.05, nothing.reward.shape))
        return "" if Gate(1).decide([lucky], None).accepted else "not accepted: its interval holds zero"

    def target_changes_under_the_meter() -> str:
        name, weight = next(iter(target.model.named_parameters()))
        kept = weight.detach().clone()
        try:
            with TargetGuard(target) as check:
                weight.data.add_(1.0)
        finally:
            weight.data.copy_(kept)
        return check.fault() and f"{check.fault()} ({name})"

    def prices_given_away() -> str:
        cheap, honest = OpTable().extended({"mm": lambda args, out: 0, "addmm": lambda args, out: 0}), OpTable()
        counted = []
        for table in (cheap, honest):
            with count_flops(table) as count:
                target.model(target.corpus("train").inputs[:2])
            counted.append(count.flops)
        return (
            "the hand count disagrees"
            if counted[0] != counted[1] and cheap.fingerprint() != honest.fingerprint()
            else ""
        )

    def failing_to_drop_items() -> str:
        arms = arms_of(task, baseline, Answered("failed", None, 1e9, 0.0), chosen.execution)
        judged = judge(task, baseline, arms, chosen.reward)
        same = len(judged.arms.assisted[0].index) == len(nothing.arms.assisted[0].index)
        return "all items kept, at full cost" if same and judged.reward[0].mean() <= 0 else ""

    def zero_flop_baseline() -> str:
        ledger = Ledger()
        MeteredAccess(target, ledger)
        return _refusal(lambda: ledger.charge(-1))

    def free_and_useless() -> str:
        return "reward 0" if not nothing.reward.any() else ""

    def artifact_of_code() -> str:
        return _refusal(lambda: pack(Interpretation({}, {"run": print}), "x", "interpret", 10**6))

    attempts: list[tuple[Callable[[], str], tuple[int, ...], str, str]] = [
        (weights_of_the_reward_edited, (28,), "fingerprint", "void"),
        (past_result_edited, (1, 28), "journal", "void"),
        (event_inserted, (1, 28), "journal", "void"),
        (labels_from_score_differences, (11,), "gate", "blocked"),
        (more_queries_than_allowed, (11,), "gate", "blocked"),
        (lucky_within_noise, (21,), "gate", "blocked"),
        (good_mean_with_one_disaster, (22,), "gate", "blocked"),
        (target_changes_under_the_meter, (17, 19), "read-only target", "void"),
        (prices_given_away, (25,), "op prices", "void"),
        (failing_to_drop_items, (7,), "fixed denominators", "blocked"),
        (zero_flop_baseline, (5,), "ledger", "blocked"),
        (free_and_useless, (20,), "margin of the reward", "blocked"),
        (artifact_of_code, (9,), "message format", "blocked"),
    ]
    rows = []
    for attempt, tests, layer, good in attempts:
        said = attempt()
        rows.append(
            {
                "name": attempt.__name__,
                "kind": "exploit",
                "tests": list(tests),
                "outcome": good if said else "unflagged",
                "charged_flops": 0.0,
                "reward": None if good == "void" else 0.0,
                "layer": layer,
                "reason": said[:200],
            }
        )
    return rows


def _with_reward(judged: Judged, reward: Any) -> Judged:
    from dataclasses import replace

    return replace(judged, reward=reward)


def _refusal(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except (MethodError, UserError, ValueError) as error:
        return str(error).partition("events.jsonl ")[2] or str(error)
    return ""
