"""`lensmith bench horizon`: what a method is worth where the agent is calibrated on short inputs and asked about long
ones.

Long inputs are four times as long: prompts of ``context_lm`` of 36 to 48 words beside 9 to 12; if asked for, episodes
of ``digits_few_shot`` of all eight examples beside two. Every method is scored by the executor as it is, three times:
calibrated and asked on short inputs, on short and then long ones, and on long ones alone. The second less the third is
what the step from short to long costs, of the black box's score and of the method's gain.

Source: whether what was seen holds over longer horizons than it was seen on; length generalisation as in Anil et al.
2022 (Exploring length generalization in large language models), arXiv 2207.04901, here of an agent that
explains and not of the target.

Shape legend: N = instances, M = prompts of an instance, T = places of a prompt, S = examples of an episode.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stages.base.params import names
from stages.benchmarks.shifted import Estimate, Half, answer, check_draws, interpreted, joined, over_draws, scores
from stages.contracts.arms import ArmResult
from stages.contracts.method import Interpretation, Method
from stages.contracts.target import Corpus, Target, keep_segments
from stages.contracts.task import Instances, TaskFamily
from stages.errors import UserError
from stages.execution.runs import arms_of, baseline_of
from stages.execution.settings import ExecutorConfig
from stages.scoring.settings import settings
from stages.targets.storage import definition_of, load_target
from stages.tasks.families import family
from stages.tasks.generation import pool_of, stream
from stages.tasks.inputs import draw_inputs, is_few_shot
from stages.tasks.secret import read_secret
from stages.tasks.storage import Task

__all__ = ["LONG", "QUESTIONS", "SHORT", "HorizonRow", "bench_horizon", "episodes", "prompts"]

SKILL = "induction"
"""Of the skills of ``context_lm`` the one whose prompts have every length."""
SHORT, LONG = (9, 12), (36, 48)
"""Fewest and most words of a prompt."""
QUESTIONS = (("early_exit", "context_lm"), ("head_role", "context_lm"))
N_EVALUATED = 120
N_DRAWS = 5
AT_A_TIME = 4096
"""Prompts drawn at once; of those of the wanted length as many are kept as are needed."""
BASELINE = "(black box)"


@dataclass(frozen=True)
class HorizonRow:
    """One method on one task. Scores and gains are means over the budgets."""

    task: str
    method: str
    short: Estimate
    """Gain calibrated and asked on short prompts; of the black box its score."""
    transfer: Estimate
    """The same, calibrated on short prompts and asked about long ones."""
    long: Estimate
    """The same, calibrated and asked on long ones."""
    lost: Estimate
    """``transfer`` less ``long``, on the same instances."""


class _Way(NamedTuple):
    calibration: str
    evaluation: str


WAYS: Mapping[str, _Way] = {
    "short": _Way("short", "short"),
    "transfer": _Way("short", "long"),
    "long": _Way("long", "long"),
}


def prompts(n: int, words: tuple[int, int], generator: torch.Generator) -> Corpus:
    """n different prompts of ``SKILL`` with as many words; inputs (n, T, 2)."""
    definition, inputs, labels, found = definition_of("context_lm"), [], [], 0
    while found < n:
        drawn = definition.prompts(SKILL, AT_A_TIME, generator)  # type: ignore[attr-defined]  # it is prompted
        length = drawn.inputs[..., 1].sum(1)
        kept = (length >= words[0]) & (length <= words[1])
        inputs.append(drawn.inputs[kept])
        labels.append(drawn.labels[kept])
        found += int(kept.sum())
    return Corpus(torch.cat(inputs)[:n], torch.cat(labels)[:n])


def episodes(pool: Target, n: int, short: bool, generator: torch.Generator) -> Tensor:
    """(n, S + 1, channels); a short one keeps two: one with the query's label and one other."""
    inputs, labels = draw_inputs(pool, n, generator)
    if not short:
        return inputs
    right_NS = inputs[:, :-1, -2].round().long() == labels.unsqueeze(1)
    first_N = right_NS.float().argmax(1)  # of every episode there is one at least
    n_shots = right_NS.shape[1]
    other_N = (first_N + torch.randint(1, n_shots, (n,), generator=generator)) % n_shots
    keep_NS = torch.zeros(n, n_shots + 1, dtype=torch.bool)
    keep_NS[:, -1] = True
    keep_NS[torch.arange(n), first_N] = keep_NS[torch.arange(n), other_N] = True
    return keep_segments(pool.spec, inputs, keep_NS)


def posed(made: TaskFamily, pool: Target, n: int, short: bool, rng: torch.Generator, like: Instances) -> Half:
    """n instances about inputs of that length, with their truth.

    Args:
        like: instances of the family: what all share is theirs, and how many inputs one instance shows.
    """
    shape = like.arrays["inputs"].shape[1 : -len(pool.spec.input_shape)]  # none, or (M,)
    arrays: dict[str, Tensor] = {name: value for name, value in like.arrays.items() if name.startswith("shared_")}
    if is_few_shot(pool.spec):
        arrays["inputs"] = episodes(pool, n, short, rng)
    else:
        drawn = prompts(n * (shape[0] if shape else 1), SHORT if short else LONG, rng)
        arrays["inputs"] = drawn.inputs.view(n, *shape, *drawn.inputs.shape[1:])
        if "labels" in like.arrays:
            arrays["labels"] = drawn.labels.view(n, *shape)
    if (
        set(arrays) != set(like.arrays)
        or arrays["inputs"].shape[1:] != like.arrays["inputs"].shape[1:]
        or like.variants
    ):
        raise UserError(f"{made.name} shows more than inputs and their answers: its length cannot be chosen here")
    instances = Instances(arrays, n)
    return Half(instances, made.ground_truth(pool, instances, rng))


def bench_horizon(
    tell: Callable[[str], None] = print,
    questions: Sequence[tuple[str, str]] = QUESTIONS,
    methods: Sequence[str] | None = None,
    n_draws: int = N_DRAWS,
) -> list[HorizonRow]:
    """The black box, and built-in methods, by default all of params/reward.yaml.

    Args:
        questions: families and the target that each is asked about, one whose inputs have a length.

    Raises:
        UserError: fewer than two draws, which have no interval; a family whose instances are more than inputs.
    """
    check_draws(n_draws)
    torch.set_num_threads(1)
    chosen, key = settings(), read_secret()
    config = chosen.execution.model_copy(update={"n_seeds": 1})
    rows = []
    for name, target_name in questions:
        made, target = family(name), load_target(target_name)
        pool, seen = pool_of(target, "train", key), dict[str, dict[str, list[float]]]()
        tell(f"{name} on {target_name}: interpreting")
        frozen = interpreted(methods or names("reward", "methods"), target, chosen.interpretation)
        for i in range(n_draws):
            tell(f"{name} on {target_name}, draw {i + 1} of {n_draws}")
            rng = stream(key, "bench", "horizon", name, i)
            like = made.generate(pool, rng, 2)
            halves = {
                (length, which): posed(made, pool, n, length == "short", rng, like)
                for length in ("short", "long")
                for which, n in (("calibration", config.n_calibration), ("evaluation", N_EVALUATED))
            }
            for way, (calibration, evaluation) in WAYS.items():
                pair = halves[calibration, "calibration"], halves[evaluation, "evaluation"]
                task = joined(made, target_name, *pair, config)
                for method, value in _worth(task, target, frozen, config).items():
                    seen.setdefault(method, {}).setdefault(way, []).append(value)
        rows += [_row(f"{name}.{target_name}", method, of) for method, of in seen.items()]
    return rows


def _worth(
    task: Task, target: Target, frozen: Mapping[str, tuple[Method, Interpretation]], config: ExecutorConfig
) -> dict[str, float]:
    """Score of the black box, and gain of every method that answers."""
    baseline = baseline_of(task, target, config)
    plain = _score(task, baseline.first, config)
    found = {BASELINE: plain}
    for name, one in frozen.items():
        said = answer(name, one, task, target)
        if said is not None:
            found[name] = _score(task, arms_of(task, baseline, said, config, placebo=False).assisted, config) - plain
    return found


def _score(task: Task, results: Sequence[ArmResult], config: ExecutorConfig) -> float:
    """Mean over the budgets."""
    return sum(scores(task, results, config).values()) / len(results)


def _row(name: str, method: str, of: Mapping[str, Sequence[float]]) -> HorizonRow:
    lost = [a - b for a, b in zip(of["transfer"], of["long"], strict=True)]
    short, transfer, long = (over_draws(of[way]) for way in WAYS)
    return HorizonRow(name, method, short, transfer, long, over_draws(lost))
