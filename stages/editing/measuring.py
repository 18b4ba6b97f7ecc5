"""What an edit did: to the behaviour, to its neighbours, how fast it comes back, and whether another circuit can do it.

Shape legend: B = held-out inputs, E = edges, D = bootstrap draws.
"""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.base.intervals import percentile_interval
from stages.editing.behaviours import Behaviour
from stages.editing.cutting import Site, cut, cut_scores, keep_only, margins, top
from stages.editing.removing import accuracy, minibatch, train_until

__all__ = [
    "DRAWS",
    "Effect",
    "Metric",
    "Redundancy",
    "clustered_interval",
    "effect",
    "interval",
    "redundancy",
    "relearn_steps",
]

DRAWS = 500
RELEARNED = 0.9
"""A behaviour is back at this share of its accuracy before the edit."""
RELEARN_LIMIT = 300
N_WATCHED = 200
"""Held-out inputs of each side that are looked at after every step."""
FAITHFUL = 0.8
"""Share of the margin that a circuit kept alone must restore to count as one that can do it."""
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)


class Metric(TypedDict):
    """A mean and its 95% interval."""

    value: float
    low: float
    high: float


class Effect(TypedDict):
    """What an edit did, on held-out inputs."""

    accuracy_target: Metric
    accuracy_neighbours: Metric
    selectivity: Metric
    """Share of right answers lost on the behaviour less the share lost on its neighbours."""


class Redundancy(TypedDict):
    """Whether a second circuit can do what the first does; see ``redundancy``."""

    n_edges: int
    first_is_faithful: bool
    share: float
    faithfulness_first: float
    faithfulness_second: float
    faithfulness_random: float
    accuracy_of_the_rest: float


def _metric(value: float, draws: npt.ArrayLike) -> Metric:
    low, high = percentile_interval(draws)
    return Metric(value=round(value, 4), low=round(low, 4), high=round(high, 4))


def interval(values: Sequence[float] | Tensor, seed: int = 0) -> Metric:
    """Mean of independent values with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13)."""
    array = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(array), size=(DRAWS, len(array)))
    return _metric(float(array.mean()), array[draws].mean(1))


def clustered_interval(groups: Sequence[Sequence[float]], seed: int = 0) -> Metric:
    """The same for values in groups that are alike within (seeds of one behaviour): groups are resampled, then values
    within each; the mean is that of the groups' means."""
    rng = np.random.default_rng(seed)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    draws = []
    for _ in range(DRAWS):
        chosen = [arrays[i] for i in rng.integers(len(arrays), size=len(arrays))]
        draws.append(np.mean([group[rng.integers(len(group), size=len(group))].mean() for group in chosen]))
    return _metric(float(np.mean([group.mean() for group in arrays])), draws)


def _hits(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    with torch.no_grad():
        hits: Tensor = model(inputs).argmax(-1) == labels
    return hits.double()


def effect(before: nn.Module, after: nn.Module, behaviour: Behaviour) -> Effect:
    """accuracy_target, accuracy_neighbours after the edit, and selectivity: the share of right answers lost on the
    behaviour less the share lost on its neighbours; 1 = all of it and nothing else. Intervals over held-out inputs."""
    inputs, labels = behaviour.held_out
    mine = labels == behaviour.answer
    was, now = _hits(before, inputs, labels), _hits(after, inputs, labels)
    rng = np.random.default_rng(0)
    selectivity = []
    shown, others = (was - now)[mine].numpy(), (was - now)[~mine].numpy()
    for _ in range(DRAWS):
        selectivity.append(
            shown[rng.integers(len(shown), size=len(shown))].mean()
            - others[rng.integers(len(others), size=len(others))].mean()
        )
    return {
        "accuracy_target": interval(now[mine]),
        "accuracy_neighbours": interval(now[~mine]),
        "selectivity": _metric(float(shown.mean() - others.mean()), selectivity),
    }


def relearn_steps(
    edited: nn.Module, before: nn.Module, behaviour: Behaviour, batch: int, generator: torch.Generator
) -> tuple[nn.Module, int | None]:
    """Steps of fine-tuning until the behaviour and its neighbours are both at ``RELEARNED`` of their held-out accuracy
    before the edit (the behaviour alone is back at once if the model gives that answer to everything); None: not within
    ``RELEARN_LIMIT``. All weights, cut ones too, are free; half of each batch shows the behaviour."""
    inputs, labels = behaviour.held_out
    mine = labels == behaviour.answer
    sides = [(inputs[side][:N_WATCHED], labels[side][:N_WATCHED]) for side in (mine, ~mine)]
    bounds = [RELEARNED * accuracy(before, *side) for side in sides]

    def loss(trained: nn.Module) -> Tensor:
        parts = [minibatch(*corpus, batch // 2, generator) for corpus in (behaviour.shown, behaviour.others)]
        return F.cross_entropy(trained(torch.cat([p[0] for p in parts])), torch.cat([p[1] for p in parts]))

    def back(model: nn.Module) -> bool:
        return all(accuracy(model, *side) >= bound for side, bound in zip(sides, bounds, strict=True))

    return train_until(edited, loss, back, RELEARN_LIMIT)


def redundancy(
    model: nn.Module,
    sites: Sequence[Site],
    behaviour: Behaviour,
    means: Mapping[str, Tensor],
    shown: Tensor,
    generator: torch.Generator,
) -> Redundancy:
    """Can a second circuit, without an edge in common with the first, do what the first does?

    The first is the shortest prefix of the ranking that, kept alone, restores ``FAITHFUL`` of the margin between all
    edges cut and none, on the inputs it is found with. It is then cut, edges are ranked anew in what is left, and as
    many of them are taken. Each is judged alone (all else cut) on held-out inputs of the behaviour.

    Args:
        shown: (B, ...) inputs of the behaviour to find circuits with.

    Returns:
        n_edges, share; first_is_faithful: False where no prefix up to half of the edges restores that much, so that the
        question has no answer here; faithfulness of the first, the second and a random circuit of that size, and
        accuracy_of_the_rest: the behaviour's accuracy when only the first is cut. Faithfulness is (margin of the
        circuit - margin of none) / (margin of all - margin of none); 1 = like the whole target.
    """
    labels = torch.full((len(shown),), behaviour.answer)
    mine = behaviour.held_out.labels == behaviour.answer
    held = behaviour.held_out.inputs[mine]

    def margin(edited: nn.Module, inputs: Tensor) -> float:
        with torch.no_grad():
            return float(margins(edited(inputs), torch.full((len(inputs),), behaviour.answer)).mean())

    scores = cut_scores(model, sites, shown, labels, means)
    nothing = keep_only(model, sites, torch.zeros(len(scores), dtype=torch.bool), means)

    def faithfulness(kept: Tensor, inputs: Tensor) -> float:
        none, whole = margin(nothing, inputs), margin(model, inputs)
        return (margin(keep_only(model, sites, kept, means), inputs) - none) / (whole - none)

    sizes = [max(1, round(share * len(scores))) for share in SHARES]
    enough = [n for n in sizes if faithfulness(top(scores, n), shown) >= FAITHFUL]
    size = enough[0] if enough else sizes[-1]
    first = top(scores, size)
    without = cut(model, sites, first, means)
    second = top(cut_scores(without, sites, shown, labels, means), size, ~first)
    random = top(torch.rand(len(scores), generator=generator), size, ~first)
    return {
        "n_edges": size,
        "first_is_faithful": bool(enough),
        "share": round(size / len(scores), 4),
        "faithfulness_first": round(faithfulness(first, held), 4),
        "faithfulness_second": round(faithfulness(second, held), 4),
        "faithfulness_random": round(faithfulness(random, held), 4),
        "accuracy_of_the_rest": round(float(accuracy(without, held, torch.full((len(held),), behaviour.answer))), 4),
    }
