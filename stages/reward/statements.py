"""What may be said of a method: on these tasks, on questions of one kind, on families like these. One function decides.

``decide`` is the only place where a number becomes a verdict: for a task, for each of the three sentences, for the
difference of two methods, and for the gate of a campaign.

The noise floor is the reward of a method that adds nothing: an answer of random numbers, for nothing, on the same
splits with the same black-box draws. Both arms of a reward have the same split, labels and draws, which cancel; what
does not cancel is what an empty answer does to the choices of the executor, and that is what the floor measures.
Redrawing split, labels and draws is in the standard error, since every seed redraws them. A floor between two runs on
different splits would hold what a reward does not: it hid rewards of 5 and 8 standard errors.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.contracts.record import Verdict
from stages.contracts.reward_rows import CONTROL_METHODS, Scope, StatementRow, TaskRow
from stages.reward.inference import ALPHA, Estimated, combined, holm, over_units, units_needed

__all__ = [
    "BOTH",
    "MAX_UNSEEN",
    "Effect",
    "above_zero",
    "adjusted",
    "decide",
    "difference",
    "effect_of",
    "joint_floor",
    "noise_floor",
    "on_these_tasks",
    "stated",
    "statements",
    "unit_weights",
]

FloatArray = npt.NDArray[np.float64]
BOTH = "train+validation"
"""What the splits that are open are called together."""
MAX_UNSEEN = 0.01
"""Share of the tight budget that a meter may miss where a method is called better."""
FEWEST = 3
"""Families that anything is said of others from. A t test of two is true to its level and sees nothing but coincidence:
two rewards that happen to be alike."""
Z = 1.959963984540054
"""97.5% of a standard normal."""
SCOPES: tuple[Scope, ...] = ("tasks", "kind", "families")


def decide(value: float, p: float | None, floor: float, unseen_share: float = 0.0) -> Verdict:
    """Better or worse only if it differs from 0 at the 5% level and by more than the noise floor; better only where
    the meter could not miss more than 1% of the tight budget.

    Args:
        value: a mean reward, or a difference of two.
        p: two-sided, corrected where several were tested; None: it could not be tested.
        floor: see ``noise_floor``.
        unseen_share: what the meter could miss, as a share of the tight budget.
    """
    if p is None or p >= ALPHA or abs(value) <= floor:
        return "not distinguishable"
    if value < 0:
        return "worse"
    return "better" if unseen_share <= MAX_UNSEEN else "not distinguishable"


def noise_floor(aa_reward: FloatArray) -> float:
    """The size that the mean reward of an answer that says nothing stays below in 95% of repetitions.

    Its expectation is 0 at most, so the root mean square over seeds is taken for its standard deviation. The quantile
    is the normal one: over tasks there are many seeds; of a single task with three, 86% stay below. It is a yardstick
    beside the test, not the test. It is 0 where the executor left the empty answer unread on every split.

    Args:
        aa_reward: (S,) of each seed.
    """
    return Z * float(np.linalg.norm(aa_reward)) / len(aa_reward)


def joint_floor(floors: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The noise floor of a weighted sum over independent tasks, by default of their mean."""
    shares = np.full(len(floors), 1 / len(floors)) if weights is None else np.asarray(weights)
    return float(np.linalg.norm(shares * np.asarray(floors)))


def above_zero(values: FloatArray) -> float:
    """Share of values above 0, ties counted half: the probability of improvement of Agarwal et al. 2021
    (2108.13264, section 4.3), of pairs that share a split."""
    return float((values > 0).mean() + (values == 0).mean() / 2)


class Effect(NamedTuple):
    """What a method did on one task: its reward, or the difference of its reward from another method's."""

    method: str
    family: str
    cluster: str
    kind: str
    answered: bool
    """Whether the method did not decline."""
    reward: Estimated
    floor: float
    improvement: float
    unseen: float
    against: str = ""


def effect_of(row: TaskRow) -> Effect:
    return Effect(
        method=row.method,
        family=row.family,
        cluster=row.cluster or row.family,
        kind=row.kind,
        answered=row.status != "declined",
        reward=Estimated(row.reward_mean, row.reward_se, row.reward_df),
        floor=row.noise_floor,
        improvement=row.improvement,
        unseen=row.unseen_share,
    )


def difference(row: TaskRow, rival: TaskRow, paired: Estimated | None = None, improvement: float = 0.5) -> Effect:
    """The reward of a method over another's, on the same task.

    Args:
        paired: that difference from draws that both share; None: from the two rows alone, with the sum of their errors,
            which no correlation between them exceeds.
        improvement: share of seeds in which it is above 0.
    """
    if (row.family, row.target) != (rival.family, rival.target):
        raise ValueError(f"{row.task} and {rival.task} are two tasks: a difference is of two methods on one task")
    if paired is None:
        df = min(row.reward_df, rival.reward_df)
        paired = Estimated(row.reward_mean - rival.reward_mean, row.reward_se + rival.reward_se, df)
        improvement = above_zero(np.array([paired.value]))
    return effect_of(row)._replace(reward=paired, improvement=improvement, against=rival.method)


def statements(rows: Sequence[TaskRow], split: str) -> tuple[StatementRow, ...]:
    """The three sentences of every method in ``rows``, corrected for the number of methods.

    Args:
        rows: every method on every task of the split, or of the splits that are taken together.
        split: what they are called.
    """
    return stated([effect_of(row) for row in rows], split)


def stated(effects: Sequence[Effect], split: str) -> tuple[StatementRow, ...]:
    """The three sentences of every method; see ``statements``."""
    methods: dict[str, list[Effect]] = defaultdict(list)
    for one in effects:
        methods[one.method].append(one)
    rows = []
    for of in methods.values():
        rows += [_sentence(of, split, "tasks"), _sentence(of, split, "families")]
        kinds: dict[str, list[Effect]] = defaultdict(list)
        for one in of:
            if one.answered:
                kinds[one.kind].append(one)
        rows += [_sentence(answered, split, "kind", kind) for kind, answered in kinds.items()]
    rows.sort(key=lambda row: (SCOPES.index(row.scope), row.kind, -row.value, row.method))
    return adjusted(rows)


def on_these_tasks(rows: Sequence[TaskRow], split: str) -> StatementRow:
    """The first sentence of one method, which stands alone."""
    return _sentence([effect_of(row) for row in rows], split, "tasks")


def _sentence(effects: Sequence[Effect], split: str, scope: Scope, kind: str = "") -> StatementRow:
    if scope == "tasks":
        found: Estimated | None = combined([one.reward for one in effects])
        weights, n = [1 / len(effects)] * len(effects), len(effects)
    else:
        weights = unit_weights(effects)
        values: dict[str, float] = defaultdict(float)
        for one, weight in zip(effects, weights, strict=True):
            values[one.cluster] += weight * one.reward.value
        n = len(values)
        found = over_units([n * value for value in values.values()]) if n >= FEWEST else None
    value = float(np.dot(weights, [one.reward.value for one in effects]))
    # A method that declined everything was not tested; against another method it was, as one that does nothing.
    tested = found is not None and (bool(effects[0].against) or any(one.answered for one in effects))
    low, high = (None, None) if found is None else found.interval()
    p, floor = found.p if tested and found else None, joint_floor([one.floor for one in effects], weights)
    unseen = max(one.unseen for one in effects)
    return StatementRow(
        method=effects[0].method,
        against=effects[0].against,
        split=split,
        scope=scope,
        kind=kind,
        value=value,
        low=low,
        high=high,
        n=n,
        p=p,
        p_holm=p,
        verdict=decide(value, p, floor, unseen),
        visible=found.visible if tested and found else None,
        improvement=float(np.dot(weights, [one.improvement for one in effects])),
        noise_floor=floor,
        unseen_share=unseen,
    ).rounded()


def unit_weights(effects: "Sequence[Effect | TaskRow]") -> list[float]:
    """Of each task: targets averaged within a family, families within a cluster, clusters alike."""
    targets: dict[tuple[str, str], int] = defaultdict(int)
    for one in effects:
        targets[one.cluster, one.family] += 1
    families: dict[str, int] = defaultdict(int)
    for cluster, _ in targets:
        families[cluster] += 1
    return [1 / (len(families) * families[one.cluster] * targets[one.cluster, one.family]) for one in effects]


def adjusted(rows: Sequence[StatementRow]) -> tuple[StatementRow, ...]:
    """The same rows with p-values corrected by Holm, and the verdicts that follow.

    One correction for each sentence of a split: over the methods that it is said of, since a reader looks for the best
    of a table. Each kind of question is a sentence of its own. Controls are not in it: they claim nothing, and are to
    be caught, which the uncorrected test does sooner. Nor is what was not tested.
    """
    groups: Mapping[tuple[str, str, str], list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        if row.p is not None and row.method not in CONTROL_METHODS:
            groups[row.split, row.scope, row.kind].append(i)
    corrected = {i: row.p for i, row in enumerate(rows)}
    needed: dict[int, int | None] = {}
    for members in groups.values():
        needed.update((i, _needed(rows[i], len(members))) for i in members)
        corrected.update(zip(members, holm([rows[i].p or 0.0 for i in members]), strict=True))
    return tuple(
        row.model_copy(
            update={
                "p_holm": corrected[i],
                "needed": needed.get(i),
                "verdict": decide(row.value, corrected[i], row.noise_floor, row.unseen_share),
            }
        ).rounded()
        for i, row in enumerate(rows)
    )


def _needed(row: StatementRow, tests: int) -> int | None:
    """Families that would have told a reward of this size from 0, as many methods as here tested beside it."""
    if row.scope == "tasks" or row.low is None or row.high is None:
        return None
    found = Estimated(row.value, 1.0, row.n - 1)
    low, high = found.interval()
    spread = (row.high - row.low) / (high - low) * math.sqrt(row.n)
    return units_needed(row.value, spread, tests)
