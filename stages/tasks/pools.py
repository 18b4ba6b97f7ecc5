"""Closed pools of changes for the families that ask for the best of them: patches on an image, and their reach.

Shape legend: N = instances, P = changes of a pool, S = side of an image, B = batch.
"""

import torch
from torch import Tensor

from stages.contracts.target import Objective, Target, TargetAccess, TargetSpec, objective_values
from stages.tasks.black_box import CHUNK, ask, outputs_of
from stages.tasks.inputs import is_few_shot

__all__ = ["best_of_pool", "image_patches", "reach"]


def image_patches(spec: TargetSpec, n: int, size: int, height: float, rng: torch.Generator) -> Tensor:
    """(P, *input_shape) changes: each adds uniform numbers in [-height, height] to one size x size block of an image;
    of an episode, to its query's."""
    n_pixels = spec.input_shape[-1] - 2 if is_few_shot(spec) else int(torch.tensor(spec.input_shape).prod())
    side = round(n_pixels**0.5)
    images = torch.zeros(n, side, side)
    corner = torch.randint(side - size + 1, (n, 2), generator=rng)
    values = height * (2 * torch.rand(n, size, size, generator=rng) - 1)
    for i, (row, column) in enumerate(corner.tolist()):
        images[i, row : row + size, column : column + size] = values[i]
    if is_few_shot(spec):
        changes = torch.zeros(n, *spec.input_shape)
        changes[:, -1, :n_pixels] = images.flatten(1)
        return changes
    return images.view(n, *spec.input_shape)


def best_of_pool(target: Target, inputs: Tensor, changes: Tensor, objective: Objective) -> Tensor:
    """(N,) float64: the most of the objective that any change of the pool reaches on each input, by trying them all."""
    best = []
    for i, x in enumerate(inputs):
        labels = None if objective.labels is None else objective.labels[i].expand(len(changes))
        tried = objective_values(outputs_of(target, x + changes).double(), Objective(objective.kind, labels))
        best.append(tried.max())
    return torch.stack(best)


def reach(access: TargetAccess, inputs: Tensor, changes: Tensor, objective: Objective) -> Tensor:
    """(N, k) the objective on each input with each of k changes, by metered forward passes.

    Args:
        changes: (k, *input_shape), or (N, k, *input_shape).
    """
    n = len(inputs)
    some = changes if changes.dim() > inputs.dim() else changes.unsqueeze(0).expand(n, *changes.shape)
    k = some.shape[1]
    found = []
    for part in torch.split(torch.arange(n), max(1, CHUNK // k)):
        labels = None if objective.labels is None else objective.labels[part].repeat_interleave(k)
        outputs = ask(access, (inputs[part].unsqueeze(1) + some[part]).flatten(0, 1))
        found.append(objective_values(outputs, Objective(objective.kind, labels)).view(len(part), k))
    return torch.cat(found)
