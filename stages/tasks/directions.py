"""What the families about directions share: where one is added, outputs with it added, and the rungs of their ladder.

Shape legend: N = directions, M = inputs it is added on, C = outputs, F = numbers read off the outputs, K = features.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from stages.contracts.target import Intervention, Target, TargetAccess, TargetSpec
from stages.contracts.task import Instances
from stages.tasks.black_box import CHUNK

__all__ = ["activations", "ask_moved", "climbed", "moved_outputs", "place_array", "place_of", "place_on", "unit"]


def place_on(spec: TargetSpec) -> str:
    """Hook point at which directions are added: the first hidden layer, or the residual stream half way up."""
    if spec.tokens is None:
        return spec.with_role("mlp")[0].name
    stream = spec.with_role("residual")
    return stream[len(stream) // 2].name


def place_array(name: str) -> Tensor:
    """A place as an array, since instances hold nothing else."""
    return torch.tensor(list(name.encode()), dtype=torch.uint8)


def place_of(instances: Instances) -> str:
    return bytes(instances.arrays["shared_place"].tolist()).decode()


def activations(target: Target, place: str, inputs: Tensor) -> Tensor:
    """(B, W) what stands at a hook point; where it has positions, at the last one."""
    held: list[Tensor] = []
    with torch.no_grad(), target.model.hooks(fwd_hooks=[(place, lambda value, hook: held.append(value.detach()))]):
        for part in torch.split(inputs, CHUNK):
            target.model(part)
    found = torch.cat(held)
    last: Tensor = found.flatten(1, -2)[:, -1] if found.dim() > 2 else found
    return last


def unit(vectors: Tensor) -> Tensor:
    """(N, W) vectors of Euclidean length 1."""
    lengths: Tensor = vectors.norm(dim=-1, keepdim=True)
    return vectors / lengths.clamp_min(1e-6)


def moved_outputs(target: Target, place: str, inputs: Tensor, directions: Tensor) -> Iterator[Tensor]:
    """(M, C) logits on the inputs with each direction added, one direction after the other: the trusted side."""
    for direction in directions:
        if place == "input":
            with torch.no_grad():
                yield target.model(inputs + direction)
            continue
        add = lambda value, hook, direction=direction: value + direction  # noqa: E731
        with torch.no_grad(), target.model.hooks(fwd_hooks=[(place, add)]):
            yield target.model(inputs)


def ask_moved(access: TargetAccess, place: str, inputs: Tensor, directions: Tensor) -> Tensor:
    """(N, M, C) logits on the inputs with each direction added, by metered forward passes."""
    (n, m), found = (len(directions), len(inputs)), []
    for part in torch.split(torch.arange(n), max(1, CHUNK // m)):
        rows = inputs.unsqueeze(0).expand(len(part), *inputs.shape).flatten(0, 1)
        added = directions[part].repeat_interleave(m, dim=0)
        if place == "input":
            found.append(access.forward(rows + added).outputs)
            continue
        inside = len(access.spec.hook(place).shape)
        value = added.view(len(added), *[1] * (inside - 1), added.shape[1])
        found.append(access.forward(rows, interventions=[Intervention(place, "add", value)]).outputs)
    return torch.cat(found).view(n, m, -1)


def climbed(
    access: TargetAccess,
    instances: Instances,
    rungs: Sequence[int],
    rng: torch.Generator,
    looks: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """(N, 1, K) black-box features: numbers read off the outputs on the first inputs of a random order, with and
    without the direction, and their mean and extremes over as many inputs as each rung has.

    Args:
        rungs: inputs of this rung and of those below it.
        looks: (outputs without (M, C), outputs with (N, M, C), places of the inputs (M,)) -> (N, M, F).
    """
    inputs, directions = instances.arrays["shared_inputs"], instances.arrays["directions"]
    order_M = torch.randperm(len(inputs), generator=rng)[: rungs[-1]]
    clean_MC = torch.cat([access.forward(part).outputs for part in torch.split(inputs[order_M], CHUNK)])
    seen_NMF = looks(clean_MC, ask_moved(access, place_of(instances), inputs[order_M], directions), order_M)
    features = []
    for k in rungs:
        part = seen_NMF[:, :k]
        features.append(part.mean(1))
        if k > 1:
            features += [part.amax(1), part.amin(1)]
    return torch.cat(features, dim=-1).unsqueeze(1)
