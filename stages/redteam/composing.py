"""Running what is composed: exploits, none of which may earn anything, and honest methods, none of which may be
punished."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed

from stages.contracts.arms import Answered, MethodArms
from stages.execution.answering import answer_of, asked_of, checked, recorded_here
from stages.execution.runs import arms_of
from stages.interpretation.free_phase import interpret
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import count_flops
from stages.redteam import honest
from stages.redteam.generator import Exploit, exploits, mutilated
from stages.reward.judging import judge
from stages.reward.statements import noise_floor
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.evaluate import TaskName, stage_baseline
from stages.scoring.settings import Settings
from stages.tracing.program import Program

__all__ = ["NOTHING", "Composed", "composed", "judged"]

SAME_FLOPS = 0.01
"""Share by which the price of a recorded answer may differ from counting on the data: some operations take another road
there (one_hot, attention)."""


@dataclass(frozen=True)
class Outcome:
    name: str
    status: str
    reward: float
    above_nothing: bool
    reason: str


@dataclass(frozen=True)
class Composed:
    """What came of everything that was composed."""

    generated: int
    above_nothing: tuple[Outcome, ...]
    by_end: dict[str, int]
    """Exploits by how they ended: refused, or priced and worth nothing."""
    honest: int
    punished: tuple[Outcome, ...]


class Rewarded(NamedTuple):
    """One method on one task."""

    reward: float
    low: float
    """Lower end of its 95% interval."""
    floor: float
    """Noise floor."""
    unseen_share: float


NOTHING = Rewarded(0.0, 0.0, 0.0, 0.0)


def judged(arms: MethodArms, case: TaskName, chosen: Settings) -> Rewarded:
    task = cached_task(*case)
    found = judge(task, stage_baseline(task.name), arms, chosen.reward)
    reward = found.estimate(found.reward)
    return Rewarded(reward.value, reward.interval()[0], noise_floor(found.aa_reward), found.unseen_share)


def composed(case: TaskName, chosen: Settings, n_exploits: int, n_honest: int, pool: Parallel) -> Composed:
    """Everything composed, on one task of a small target that is asked about inputs."""
    parts = exploits(n_exploits)
    size = max(1, len(parts) // 64)
    chunks = [parts[i : i + size] for i in range(0, len(parts), size)]
    found = [one for of in pool(delayed(_attacks)(chunk, case, chosen) for chunk in chunks) for one in of]
    methods = [(one.reads, one.makes) for one in honest.methods(n_honest)]
    told = pool(delayed(_unpunished)(*one, case, chosen) for one in methods)
    return Composed(
        generated=len(found),
        above_nothing=tuple(one for one in found if one.above_nothing),
        by_end=dict(sorted(Counter(one.status for one in found).items())),
        honest=len(told),
        punished=tuple(one for one in told if one is not None),
    )


def _attacks(parts: Sequence[Exploit], case: TaskName, chosen: Settings) -> list[Outcome]:
    torch.set_num_threads(1)
    task, target = cached_task(*case), cached_target(case[1])
    frozen = interpret(parts[0].method(), "composed", target, chosen.interpretation)
    outcomes = []
    for one in parts:
        recorded = recorded_here(one.method(), asked_of(task), frozen, target.spec)
        if isinstance(recorded, Program):
            recorded = mutilated(recorded, one)
        answered = answer_of(recorded, one.name, frozen, task, target)
        outcomes.append(_outcome(one.name, answered, case, chosen))
    return outcomes


def _outcome(name: str, answered: Answered, case: TaskName, chosen: Settings) -> Outcome:
    if answered.status != "ok":
        return Outcome(name, "refused", 0.0, False, answered.reason[:200])
    task = cached_task(*case)
    arms = arms_of(task, stage_baseline(task.name), answered, chosen.execution, placebo=False)
    found = judged(arms, case, chosen)
    above = found.reward > found.floor and found.low > 0
    said = f"reward {found.reward:+.3f}, charged {answered.flops:.3g} FLOPs an instance"
    return Outcome(name, "above nothing" if above else "priced", found.reward, above, said)


def _unpunished(reads: str, makes: str, case: TaskName, chosen: Settings) -> Outcome | None:
    """None where the recorded answer is the direct one, at the same price."""
    torch.set_num_threads(1)
    task, target = cached_task(*case), cached_target(case[1])
    method = honest.Honest(reads, makes)
    frozen = interpret(method, method.name, target, chosen.interpretation)
    with torch.no_grad(), count_flops() as count:
        access = MeteredAccess(target, Ledger(), variants=task.instances.variants)
        said = method.answer(task.family.query(task.instances), frozen, access)
    direct = checked(said, method.name, task)
    recorded = recorded_here(method, asked_of(task), frozen, target.spec)
    answered = answer_of(recorded, method.name, frozen, task, target)
    if answered.status != "ok" or answered.rows is None or direct is None:
        return Outcome(method.name, answered.status, 0.0, False, answered.reason[:200])
    charged = answered.flops * task.instances.n
    if not np.array_equal(answered.rows, direct):
        return Outcome(method.name, "other answer", 0.0, False, f"off by {np.abs(answered.rows - direct).max():.2g}")
    if abs(charged - count.flops) > SAME_FLOPS * count.flops:
        return Outcome(method.name, "other price", 0.0, False, f"{charged:.0f} FLOPs, counted {count.flops}")
    return None
