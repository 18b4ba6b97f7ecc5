"""`lensmith bench published`: evaluations that others publish, asked as tasks of ours.

Each is a ``TaskFamily`` that no stage knows. It is judged by the executor as it is: what the black box explains at each
budget, what the truth itself would gain, and what the methods do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stages.base.params import names
from stages.benchmarks.latent_f1 import LatentF1
from stages.benchmarks.set_faithfulness import SetFaithfulness
from stages.benchmarks.shifted import Estimate, answer, check_draws, interpreted, over_draws, scores
from stages.contracts.task import TaskFamily
from stages.execution.arms import BUDGETS
from stages.execution.runs import arms_of, baseline_of
from stages.execution.stage import oracle
from stages.scoring.settings import settings
from stages.targets.storage import load_target
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.storage import Task

__all__ = ["BLACK_BOX", "QUESTIONS", "TRUTH", "PublishedRow", "bench_published"]

QUESTIONS: Sequence[tuple[TaskFamily, str]] = (
    (LatentF1(), "digits_mlp"),
    (LatentF1(), "small_cnn"),
    (SetFaithfulness(), "digits_mlp"),
)
"""On models of words a set of heads is a handful of bits, and has no room: see docs/validity.md."""
N_INSTANCES, N_DRAWS = 200, 5
BLACK_BOX, TRUTH = "(black box)", "(the truth)"


@dataclass(frozen=True)
class PublishedRow:
    """Who answers one question about one target: of the black box the score at each budget, of others what they add."""

    question: str
    target: str
    who: str
    tight: Estimate
    medium: Estimate
    ample: Estimate


def bench_published(
    tell: Callable[[str], None] = print,
    questions: Sequence[tuple[TaskFamily, str]] = QUESTIONS,
    methods: Sequence[str] | None = None,
    n_draws: int = N_DRAWS,
    n_instances: int = N_INSTANCES,
) -> list[PublishedRow]:
    """The black box, the truth as an answer for nothing, and built-in methods, by default all of params/reward.yaml.
    Who declines has no row.

    Raises:
        UserError: fewer than two draws, which have no interval; a target that does not offer what a question needs.
    """
    check_draws(n_draws)
    torch.set_num_threads(1)
    chosen, key = settings(), read_secret()
    config = chosen.execution.model_copy(update={"n_seeds": 1})
    rows = []
    for made, target_name in questions:
        told, target = f"{made.name} on {target_name}", load_target(target_name)
        tell(f"{told}: interpreting")
        frozen = interpreted(methods or names("reward", "methods"), target, chosen.interpretation)
        seen: dict[str, list[dict[str, float]]] = {}
        for i in range(n_draws):
            tell(f"{told}, draw {i + 1} of {n_draws}")
            drawn = make(made, target, "train", n_instances, i, "bench", key)
            task = Task(made, target_name, "train", drawn.instances.public(), drawn.truth)
            baseline = baseline_of(task, target, config)
            plain = scores(task, baseline.first, config)
            seen.setdefault(BLACK_BOX, []).append(plain)
            said = {TRUTH: oracle(task)}
            for name, one in frozen.items():
                answered = answer(name, one, task, target)
                if answered is not None:
                    said[name] = answered
            for who, answered in said.items():
                arms = arms_of(task, baseline, answered, config, placebo=False).assisted
                with_it = scores(task, arms, config)
                seen.setdefault(who, []).append({budget: with_it[budget] - plain[budget] for budget in BUDGETS})
        for who, found in seen.items():
            by_budget = {budget: over_draws([one[budget] for one in found]) for budget in BUDGETS}
            rows.append(PublishedRow(made.name, target_name, who, **by_budget))
    return rows
