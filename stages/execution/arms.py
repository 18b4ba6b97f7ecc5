"""The three arms. The same executor in each; only what it may query differs.

Baseline: the black-box ladder alone. Assisted: the ladder and the method's answers. Placebo: the same call at the
same price, its answers dealt to other rows, so that all they can tell is destroyed while interface, shape and cost
remain. (Shuffling only the arrays of I(M) would not do: a random projection of live activations is still
informative.)

Every task is posed at three compute budgets: tight (four times the cheapest rung of the ladder, and at least one look
at what the question shows and two gradients of it), medium (half way to the top, geometrically) and ample (no limit).
So a method can be better at the same cost as well as cheaper at the same score; with an ample budget alone, a black
box that can buy the truth would hide the first.

M2 may always fall back, for nothing, on the mean of its calibration labels and on what the question itself holds: so an
answer that costs nothing and says nothing, or only hands on the inputs, saves nothing. A rung knows the raw outputs it
has paid for as well, wherever that helps it. M2's rule is the same in every arm: among the options its budget allows
take the cheapest whose cross-validated score is within a margin of the best. So an answer that adds nothing is not paid
for, and a cheap answer replaces dear black-box work. An answer that is chosen so but is expected to earn nothing (its
price, at the reward's lambda, is more than the score it promises) is left: M2 does what it is paid for.

Shape legend: N = instances, E = evaluation instances, I = items, K = features.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.contracts.arms import ArmResult, Fit, LadderStep
from stages.contracts.pay import flop_reduction, reward
from stages.contracts.target import Target
from stages.execution.calibrator import Calibrator, assemble, cross_validate
from stages.execution.looking import look_price
from stages.execution.policies import Menu, Offer, Policy, checked_choice
from stages.execution.settings import ExecutorConfig
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.storage import Task

__all__ = [
    "BUDGETS",
    "as_rows",
    "budgets_of",
    "rows_shape",
    "run_ladder",
    "shuffle_rows",
    "solve",
    "split",
    "stream",
]

BUDGETS = ("tight", "medium", "ample")
TIGHT = 4.0
"""Cheapest rungs that a tight budget pays for; see ``look_price`` for the least it pays for."""

FloatArray = npt.NDArray[np.float64]


def stream(*parts: object) -> torch.Generator:
    """A generator for one purpose: the same parts, the same draws, on every machine."""
    return torch.Generator().manual_seed(zlib.crc32(repr(parts).encode()))


def split(task: Task, seed: int, config: ExecutorConfig) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Calibration and evaluation instances of one seed: disjoint, together all."""
    n = task.instances.n
    order = torch.randperm(n, generator=stream("split", task.name, seed)).numpy()
    n_calibration = min(config.n_calibration, int(0.4 * n))
    return order[:n_calibration], order[n_calibration:]


def run_ladder(task: Task, target: Target, seed: int, fixed: dict[int, LadderStep] | None = None) -> list[LadderStep]:
    """Black-box features at every rung, metered.

    Args:
        fixed: rungs of this task that drew nothing at random, so that they are the same for every seed: taken from
            here, and added.
    """
    rungs, known, look = [], {} if fixed is None else fixed, look_price(task, target)
    for effort in range(task.family.n_efforts):
        if effort in known:
            rungs.append(known[effort])
            continue
        ledger = Ledger()
        access = MeteredAccess(target, ledger, variants=task.instances.variants)
        generator = stream("ladder", task.name, seed, 0)  # 0: part of the name, so that draws stay what they are
        before = generator.get_state()
        features = task.family.behavioural(access, task.instances, effort, generator)
        if ledger.flops <= 0:
            raise ValueError(
                f"{task.name}: rung {effort} of the ladder never called the target; it must cost something"
            )
        rungs.append(LadderStep(effort, features.double().numpy(), ledger.flops / task.instances.n, look))
        if torch.equal(before, generator.get_state()):
            known[effort] = rungs[-1]
    return rungs


def budgets_of(rungs: Sequence[LadderStep]) -> dict[str, tuple[float, float]]:
    """{budget: (limit, amount)} in FLOPs per instance. The amount is what savings are measured against."""
    tight, top = max(TIGHT * rungs[0].flops, rungs[0].look), max(rung.flops for rung in rungs)
    medium = (tight * max(top, tight)) ** 0.5
    return {"tight": (tight, tight), "medium": (medium, medium), "ample": (float("inf"), top)}


def solve(
    task: Task,
    rungs: Sequence[LadderStep],
    answer: FloatArray | None,
    answer_flops: float,
    seed: int,
    config: ExecutorConfig,
    black_box: Sequence[Fit] | None = None,
    public: FloatArray | None = None,
    policy: Policy | None = None,
) -> tuple[list[ArmResult], list[Fit]]:
    """One arm on one task and seed, at every budget.

    Args:
        answer: (N, I, K) what the method said; None: nothing.
        answer_flops: per instance.
        black_box: the fits without an answer, where they are known from the baseline arm.
        public: (N, I, K) what the question holds, for nothing.
        policy: chooses in the place of M2's rule.

    Raises:
        ValueError: ``policy`` chose what is not on the menu.

    Returns:
        One result per budget, and the fits without an answer: of the rungs, then of ``public`` where it is given.
    """
    calibration, evaluation = split(task, seed, config)
    truth = task.truth.values.numpy()

    def score(predictions: FloatArray, wanted: FloatArray) -> float:
        return float(task.family.score(predictions, wanted)[0])

    def fit(features: FloatArray) -> Fit:
        return cross_validate(features[calibration], truth[calibration], score, config.folds, config.max_features)

    free = [] if public is None else [assemble(public)]
    if black_box is None:
        fits = [fit(features) for features in [*(assemble(rung.features) for rung in rungs), *free]]
    else:
        fits = list(black_box)
    plain = [Option(rung.flops, found, rung, False) for rung, found in zip(rungs, fits[: len(rungs)], strict=True)]
    constant = Option(0.0, Fit("mean", 0.0), None, False)
    known = [Option(0.0, found, None, False, free=True) for found in fits[len(rungs) :]]
    black = [constant, *known, *plain]
    with_answer: list[Option] = []
    explored = sum(rung.flops for rung in rungs)
    if answer is not None:
        # The answer alone, and beside each rung that the black box would take at some budget.
        taken = {_choose(plain, limit, config.margin).effort for limit, _ in budgets_of(rungs).values()}
        for rung in [None, *(rung for rung in rungs if rung.effort in taken)]:
            features = assemble(public if rung is None else rung.features, answer)
            with_answer.append(Option(answer_flops + (rung.flops if rung else 0.0), fit(features), rung, True))
        explored += answer_flops
    results = []
    models: dict[tuple[int, bool, bool], FloatArray] = {}
    budgets = budgets_of(rungs)
    bought = {
        budget: _paid_for(black, with_answer, limit, amount, config) for budget, (limit, amount) in budgets.items()
    }
    if policy is not None:
        bought = _by_policy(policy, task, [*black, *with_answer], budgets, bought, config)
    for budget, (_, amount) in budgets.items():
        chosen = bought[budget]
        key = (chosen.effort, chosen.used_answer, chosen.free)
        if key not in models:
            if chosen is constant:
                models[key] = np.full((len(evaluation), truth.shape[1]), truth[calibration].mean())
            else:
                features = assemble(
                    chosen.rung.features if chosen.rung else public,
                    answer if chosen.used_answer else None,
                )
                model = Calibrator(config.max_features).fit(features[calibration], truth[calibration])
                models[key] = model.predict(features[evaluation])[chosen.fit.kind]
        results.append(
            ArmResult(
                seed=seed,
                budget=budget,
                predictions=models[key],
                index=evaluation,
                flops=chosen.flops,
                budget_flops=amount,
                effort=chosen.effort,
                used_answer=chosen.used_answer,
                calibrator=chosen.fit.kind,
                cv_score=chosen.fit.score,
                explored_flops=explored,
            )
        )
    return results, fits


@dataclass(frozen=True)
class Option:
    """One thing M2 could do."""

    flops: float
    fit: Fit
    rung: LadderStep | None
    used_answer: bool
    free: bool = False
    """What the question holds, alone."""

    @property
    def effort(self) -> int:
        return -1 if self.rung is None else self.rung.effort


def _choose(options: Sequence[Option], limit: float, margin: float) -> Option:
    """The cheapest affordable option within the margin of the best affordable one. The first rung is always
    affordable."""
    affordable = [option for option in options if option.flops <= limit]
    best = max(option.fit.score for option in affordable)
    good = [option for option in affordable if option.fit.score >= best - margin]
    return min(good, key=lambda option: (option.flops, -option.fit.score))


def _paid_for(
    black: Sequence[Option], with_answer: Sequence[Option], limit: float, amount: float, config: ExecutorConfig
) -> Option:
    """The choice among all options; but what the black box would do alone, where that choice takes the answer and is
    expected to earn nothing by it: cross-validated gain + lambda * the compute it saves or costs."""
    alone = _choose(black, limit, config.margin)
    chosen = _choose([*black, *with_answer], limit, config.margin)
    if not chosen.used_answer:
        return chosen
    saved = flop_reduction(chosen.flops, alone.flops, amount, config.pay.form)
    gain = np.array(chosen.fit.score - alone.fit.score)
    expected = reward(gain, np.array(saved), config.pay.flop_weight, config.pay.margin)
    return chosen if float(expected) > 0.0 else alone


def _by_policy(
    policy: Policy,
    task: Task,
    options: Sequence[Option],
    budgets: Mapping[str, tuple[float, float]],
    by_rule: Mapping[str, Option],
    config: ExecutorConfig,
) -> dict[str, Option]:
    menu = Menu(
        kind=task.family.query_kind,
        offers=tuple(Offer(one.effort, one.used_answer, one.free, one.flops, one.fit.score) for one in options),
        budgets=budgets,
        flop_weight=config.pay.flop_weight,
        margin=config.pay.margin,
        by_rule={
            budget: next(i for i, one in enumerate(options) if one is option) for budget, option in by_rule.items()
        },
    )
    return {budget: options[number] for budget, number in checked_choice(menu, policy.choose(menu)).items()}


def shuffle_rows(answer: FloatArray, name: str, seed: int) -> FloatArray:
    """The placebo: the same rows, dealt to other instances and items at random."""
    rows = answer.reshape(-1, answer.shape[-1])
    order = torch.randperm(len(rows), generator=stream("placebo", name, seed)).numpy()
    return np.asarray(rows[order].reshape(answer.shape))


def rows_shape(shape: Sequence[int], n: int, items: int) -> tuple[int, int, int]:
    """The shape (n, items, k) that an answer of shape (n, k), (n, items) or (n, items, k) stands for.

    Raises:
        ValueError: any other shape.
    """
    found = tuple(shape)
    if len(found) == 3 and found[:2] == (n, items):
        return n, items, found[2]
    if len(found) == 2 and items > 1 and found == (n, items):
        return n, items, 1
    if len(found) in (1, 2) and items == 1 and found[0] == n:
        return n, 1, found[1] if len(found) == 2 else 1
    wanted = f"({n}, k)" if items == 1 else f"({n}, {items}) or ({n}, {items}, k)"
    raise ValueError(f"it has shape {found}, the query wants {wanted}")


def as_rows(answer: Tensor, n: int, items: int) -> FloatArray:
    """An answer as (n, items, k); see ``rows_shape``."""
    return answer.double().numpy().reshape(rows_shape(answer.shape, n, items))
