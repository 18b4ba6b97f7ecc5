"""What the families about components share: behaviours to ask about, components as arrays, components cut.

A *behaviour* is a few inputs that show one thing the target does: images of one or two classes, episodes whose query
has its label at one or two given places among the examples, and nowhere else, or prompts of one or two kinds.

Shape legend: N = instances, M = inputs of a behaviour, B = inputs, E = examples of an episode, P = components.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from stages.contracts.target import Component, Corpus, Target
from stages.contracts.task import Instances
from stages.tasks.black_box import CHUNK
from stages.tasks.inputs import draw_inputs, is_few_shot, kinds_of

__all__ = ["decode", "draw_behaviours", "encode", "masked", "mean_activations", "word_looks", "zeroed"]


def draw_behaviours(
    target: Target,
    n: int,
    rng: torch.Generator,
    *,
    n_inputs: int,
    pool: int,
    max_blend: float,
    grain: float,
    most_kinds: int = 2,
) -> dict[str, Tensor]:
    """n behaviours of ``n_inputs`` inputs each.

    Args:
        target: its ``tasks`` split is drawn from.
        n: how many.
        rng: generator.
        n_inputs: inputs of each.
        pool: inputs they are drawn from; a class or place must occur among them at least n_inputs times.
        max_blend: see ``draw_inputs``.
        grain: see ``draw_inputs``.
        most_kinds: kinds that a behaviour may have inputs of; as many as that or fewer, equally likely.

    Returns:
        inputs (N, M, *input_shape), labels (N, M).
    """
    drawn = draw_inputs(target, pool, rng, max_blend, grain)
    if target.spec.n_vocabulary is not None:
        drawn = _distinct(drawn)
        kind_B = kinds_of(target, drawn)
        # Of some kinds there may be few prompts: they are not asked about.
        rare = kind_B.bincount() < n_inputs
        kind_B, n_kinds = (~rare).cumsum(0)[kind_B] - 1 - rare[kind_B].long() * len(rare), int((~rare).sum())
    elif is_few_shot(target.spec):
        # One match per episode; its place plays the part that the class plays for an image.
        match_BE = drawn.inputs[:, :-1, -2].round().long() == drawn.labels.unsqueeze(1)
        kind_B = torch.where(match_BE.sum(1) == 1, match_BE.float().argmax(1), -1)
        n_kinds = match_BE.shape[1]
    else:
        kind_B, n_kinds = drawn.labels, target.spec.n_outputs
    by_kind = [torch.nonzero(kind_B == kind).flatten() for kind in range(n_kinds)]
    rows = []
    for _ in range(n):
        kinds = torch.randperm(n_kinds, generator=rng)[: 1 + int(torch.randint(most_kinds, (1,), generator=rng))]
        members = torch.cat([by_kind[kind] for kind in kinds.tolist()])
        rows.append(members[torch.randperm(len(members), generator=rng)[:n_inputs]])
    index_NM = torch.stack(rows)
    return {"inputs": drawn.inputs[index_NM], "labels": drawn.labels[index_NM]}


def word_looks(inputs_NM: Tensor, labels_NM: Tensor) -> Tensor:
    """(N, M, T, 2) prompts, (N, M) answers -> (N, 10): what can be read off them at no cost. Number of words, the
    answer's id and those of the last three words: mean over the prompts and the first prompt's."""
    ids, present = inputs_NM[..., 0] * inputs_NM[..., 1], inputs_NM[..., 1]
    each = torch.cat([present.sum(-1, keepdim=True), labels_NM.unsqueeze(-1).float(), ids[..., -3:]], dim=-1)
    return torch.cat([each.mean(1), each[:, 0]], dim=-1)


def mean_activations(target: Target, inputs: Tensor) -> dict[str, Tensor]:
    """{hook point of components: (*part,) its mean over the inputs; where they are words, over the words}."""
    names = sorted({component.hook_point for component in target.spec.components})
    held: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str) -> Callable[..., None]:
        return lambda value, hook: held[name].append(value.detach())

    with torch.no_grad(), target.model.hooks(fwd_hooks=[(name, keep(name)) for name in names]):
        for part in torch.split(inputs, CHUNK):
            target.model(part)
    is_word = inputs[..., 1] > 0.5 if target.spec.n_vocabulary is not None else slice(None)
    return {name: torch.cat(parts)[is_word].mean(0) for name, parts in held.items()}


def _distinct(drawn: Corpus) -> Corpus:
    """Each input once, in the order in which they were drawn: there are fewer prompts than may be asked for."""
    seen, first = set(), []
    for place, row in enumerate(drawn.inputs.flatten(1).to(torch.int64).tolist()):
        if tuple(row) not in seen:
            seen.add(tuple(row))
            first.append(place)
    return Corpus(drawn.inputs[first], drawn.labels[first])


def encode(components: Sequence[Component]) -> dict[str, Tensor]:
    """Components as arrays, since instances hold nothing else: rows (hook point, axis, index), and names as bytes."""
    names = sorted({component.hook_point for component in components})
    width = max(map(len, names))
    rows = [[names.index(c.hook_point), c.axis, c.index] for c in components]
    text = [list(name.ljust(width).encode()) for name in names]
    return {"shared_components": torch.tensor(rows), "shared_hook_points": torch.tensor(text, dtype=torch.uint8)}


def decode(instances: Instances) -> tuple[Component, ...]:
    names = [bytes(row).decode().rstrip() for row in instances.arrays["shared_hook_points"].tolist()]
    rows = instances.arrays["shared_components"].tolist()
    return tuple(Component(names[hook], axis, index) for hook, axis, index in rows)


def zeroed(component: Component) -> Callable[[Tensor, Any], Tensor]:
    """A hook that sets one component to zero."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        out = activation.clone()
        out.select(component.axis, component.index).zero_()
        return out

    return hook


def masked(components: Sequence[Component], keep_BP: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """{hook point: factor} that leaves each input the components it keeps and sets the others to zero.

    Args:
        components: P of them; those of one hook point lie along one axis.
        keep_BP: (B, P) 1 = kept, 0 = cut; a row for each input.
        shapes: shape of one example's activation at each hook point.
    """
    factors: dict[str, Tensor] = {}
    for name in dict.fromkeys(component.hook_point for component in components):
        mine = [place for place, component in enumerate(components) if component.hook_point == name]
        axis, shape = components[mine[0]].axis, shapes[name]
        flat = torch.ones(len(keep_BP), shape[axis - 1])
        flat[:, [components[place].index for place in mine]] = keep_BP[:, mine]
        factors[name] = flat.view(-1, *(size if a == axis - 1 else 1 for a, size in enumerate(shape)))
    return factors
