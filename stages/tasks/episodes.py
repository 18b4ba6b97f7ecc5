"""Episodes: inputs of examples and a query, whose examples can be hidden, whatever an input of the target is.

Where inputs are rows of an episode each example is one row. Where they are words it is some places, the same in every
episode of a task, kept as the array ``shared_segments``.

Shape legend: N = instances, S = rows or places of an input, E = examples (8), k = rows or places of an example, Q =
ways to hide examples.
"""

import torch
from torch import Tensor

from stages.contracts.target import Target, TargetSpec, keep_segments
from stages.contracts.task import Instances
from stages.targets.storage import definition_of
from stages.tasks.inputs import draw_inputs, is_few_shot

__all__ = ["draw_episodes", "example_looks", "hidden", "nearest_looks", "segments_of"]

N_EXAMPLES = 8
FAR = 8.0
"""Ids of two words that are further apart than this are not nearer to each other than any others."""


def draw_episodes(target: Target, n: int, rng: torch.Generator, grain: float = 0.0) -> Instances:
    """n episodes with their right answers.

    Args:
        target: offers ``segments``.
        grain: see ``draw_inputs``; of episodes in words some examples contradict each other instead.
    """
    if is_few_shot(target.spec):
        inputs, labels = draw_inputs(target, n, rng, grain=grain)
        return Instances({"inputs": inputs, "labels": labels}, n)
    episodes = getattr(definition_of(target.name), "episodes", None)
    if episodes is None:
        inputs, labels = draw_inputs(target, n, rng)
        return Instances({"inputs": inputs, "labels": labels, "shared_segments": stretches(inputs.shape[1])}, n)
    drawn = episodes(n, rng)
    return Instances({"inputs": drawn.inputs, "labels": drawn.labels, "shared_segments": drawn.segments}, n)


def stretches(n_places: int) -> Tensor:
    """(8, k) places of a text's eight examples: stretches of equal length before its last quarter, the query.

    Args:
        n_places: at least 9.
    """
    size = max(1, (n_places - n_places // 4) // N_EXAMPLES)
    return torch.arange(size * N_EXAMPLES).view(N_EXAMPLES, size)


def segments_of(instances: Instances) -> tuple[tuple[int, ...], ...]:
    """Rows or places of each example."""
    if "shared_segments" in instances.arrays:
        return tuple(map(tuple, instances.arrays["shared_segments"].tolist()))
    return tuple((row,) for row in range(instances.arrays["inputs"].shape[1] - 1))


def hidden(spec: TargetSpec, instances: Instances, keep_NQE: Tensor) -> Tensor:
    """(N, Q, E) bool, which examples to keep -> (N * Q, S, ...) inputs; what belongs to no example is always there."""
    inputs, n_ways = instances.arrays["inputs"], keep_NQE.shape[1]
    keep_NQS = torch.ones(*keep_NQE.shape[:2], inputs.shape[1], dtype=torch.bool)
    for example, places in enumerate(segments_of(instances)):
        keep_NQS[..., list(places)] = keep_NQE[..., example : example + 1]
    return keep_segments(spec, inputs.repeat_interleave(n_ways, dim=0), keep_NQS.flatten(0, 1))


def example_looks(instances: Instances, wanted_N: Tensor) -> tuple[Tensor, Tensor]:
    """What can be read off the examples at no cost.

    Args:
        wanted_N: an answer for each instance.

    Returns:
        (N, E) 1 where an example shows that answer; (N, E) how unlike the query it is: the Euclidean distance of the
        pixels, or for words 0 where it is the same word, otherwise how far the ids are apart, ``FAR`` at most.
    """
    inputs = instances.arrays["inputs"]
    if "shared_segments" not in instances.arrays:
        match_NE = (inputs[:, :-1, -2].round().long() == wanted_N.unsqueeze(-1)).float()
        return match_NE, (inputs[:, :-1, :-2] - inputs[:, -1:, :-2]).norm(dim=-1)
    places_Ek = instances.arrays["shared_segments"]
    ids = inputs[..., 0]
    match_NE = (ids[:, places_Ek[:, -1]] == wanted_N.unsqueeze(-1)).float()
    return match_NE, (ids[:, places_Ek[:, 0]] - ids[:, -1:]).abs().clamp(max=FAR)


def nearest_looks(match_NE: Tensor, distance_NE: Tensor) -> Tensor:
    """(N, 3) of what ``example_looks`` found: how many examples show the answer, how unlike the query the nearest of
    them is, and the nearest of the others."""
    far = distance_NE.amax() + 1
    nearest = torch.where(match_NE > 0, distance_NE, far).amin(1)
    other = torch.where(match_NE > 0, far, distance_NE).amin(1)
    return torch.stack([match_NE.sum(1), nearest, other], dim=-1)
