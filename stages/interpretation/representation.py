"""What the representation methods (raw activations, PCA, dictionaries) share: how vectors become answers.

A representation maps the activation vectors of some hook points to features. From it every query has a natural answer:

- Represent: the features where the answer is read off (or their mean or maximum over positions);
- Attribute: features at the segment's positions against those at the read-out position (product, cosine, sizes);
- Localise: the component's activation on the behaviour as the features rebuild it, and against the other behaviours;
  where the features know nothing of a component's hook point, its numbers are 0;
- Compare: change of the features between the target and a variant, on the same inputs.

Shape legend: n = inputs, T = token positions, D = width, F = features, S = segments, P = components.
"""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from stages.contracts.method import (
    Answer,
    Attribute,
    Compare,
    Interpretation,
    Localise,
    Query,
    Represent,
    by_group,
)
from stages.contracts.reading import readout
from stages.contracts.target import (
    Component,
    HookSpec,
    TargetAccess,
    TargetSpec,
    telling_places,
)

__all__ = [
    "Pooling",
    "answer_with",
    "bounded",
    "by_component",
    "component_values",
    "corpus_vectors",
    "hook_names",
    "present_only",
    "vectors",
    "within",
]

Pooling = Literal["readout", "mean", "max"]

CORPUS_INPUTS = 1000
"""Inputs of the corpus a representation is fitted on."""
PASS_BYTES = 1 << 28
"""What is captured in one forward pass, at most."""
WIDEST = 4096
"""Features an answer may have."""


def hook_names(spec: TargetSpec, roles: Sequence[str]) -> list[str]:
    return [hook.name for hook in spec.hooks if hook.role in roles]


def bounded(spec: TargetSpec, names: Sequence[str]) -> list[str]:
    """Those of the hook points whose vectors together are no wider than an answer may be: all of them, or as many as
    fit, evenly spaced from the last one back."""
    for step in range(1, len(names) + 1):
        kept = list(names)[::-1][::step][::-1]
        if sum(spec.hook(name).width for name in kept) <= WIDEST:
            return kept
    return []


def within(sizes: Mapping[str, int], spec: TargetSpec, max_bytes: int) -> list[str]:
    """The last of the hook points that I(M) has room for, with a tenth left for everything else.

    Args:
        sizes: bytes of what is kept of each.
    """
    order, kept, total = [hook.name for hook in spec.hooks], list[str](), 0
    for name in sorted(sizes, key=order.index, reverse=True):
        total += sizes[name]
        if total > 0.9 * max_bytes:
            break
        kept.append(name)
    return kept[::-1]


def present_only(spec: TargetSpec, inputs: Tensor, captured: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Captured activations in which places without a word hold zeros: what stands there says nothing. Patterns, whose
    axes are heads and places twice, and targets without words stay as they are."""
    if spec.n_vocabulary is None:
        return dict(captured)
    present = inputs[..., 1]
    found = {}
    for name, values in captured.items():
        by_place = spec.hook(name).role != "pattern"
        found[name] = values * present.reshape(*present.shape, *[1] * (values.dim() - 2)) if by_place else values
    return found


def vectors(acts: Tensor, hook: HookSpec) -> Tensor:
    """(n, *shape) -> (n, T, D), heads joined, places of an image in one row; T = 1 where the hook point has no
    positions. The same rows as a dictionary is trained on."""
    if len(hook.shape) == 1:
        return acts.unsqueeze(1)
    return acts.flatten(2) if hook.role == "head" else acts.flatten(1, -2)


def corpus_vectors(target: TargetAccess, names: Sequence[str]) -> dict[str, Tensor]:
    """Free phase: {hook point: (n T, D)} activation vectors over the train corpus; where inputs are tokens, of the
    places that tell something."""
    spec, inputs = target.spec, target.corpus("train").inputs[:CORPUS_INPUTS]
    floats = sum(prod(spec.hook(name).shape) for name in names) + spec.n_outputs
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for part in torch.split(inputs, max(1, PASS_BYTES // (4 * floats))):
        captured = target.forward(part, capture=names).captured
        telling = telling_places(spec, part)
        for name in names:
            rows = vectors(captured[name], spec.hook(name))
            found[name].append(rows.flatten(0, 1) if telling is None else rows[telling])
    return {name: torch.cat(rows) for name, rows in found.items()}


def by_component(components: Sequence[Component], of: Callable[[str, int, Tensor], Tensor]) -> Tensor:
    """One row per component, computed for all that share a hook point and axis together: a loop over them would make
    the program of an answer as long as they are many.

    Args:
        of: (hook point, axis, indices) -> (indices, ...), one row per index.

    Returns:
        (P, ...), in the order of the components.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    for place, (hook_point, axis, _) in enumerate(components):
        groups.setdefault((hook_point, axis), []).append(place)
    rows = [of(*key, torch.tensor([components[place].index for place in places])) for key, places in groups.items()]
    order = [place for places in groups.values() for place in places]
    back = torch.tensor(sorted(range(len(order)), key=order.__getitem__))
    return torch.cat(rows).index_select(0, back)


def component_values(spec: TargetSpec, captured: Mapping[str, Tensor], components: Sequence[Component]) -> Tensor:
    """(n, P, 3): mean, mean absolute value and Euclidean norm of each component's activation."""

    def sizes(hook_point: str, axis: int, indices: Tensor) -> Tensor:
        part = captured[hook_point].index_select(axis, indices).movedim(axis, 0)
        flat = part.flatten(2) if part.dim() > 2 else part.unsqueeze(-1)
        return torch.stack([flat.mean(-1), flat.abs().mean(-1), (flat * flat).sum(-1).sqrt()], dim=-1)

    return by_component(components, sizes).transpose(0, 1)


def answer_with(
    encode: "Encode",
    names: Sequence[str],
    query: Query,
    interpretation: Interpretation,
    target: TargetAccess,
    pooling: Pooling = "readout",
) -> Answer:
    """The natural answer of a representation; see the module head. ``encode(name, vectors)`` maps (..., D) to (...,
    F)."""
    spec = target.spec
    match query:
        case Represent():

            def single(asked: Represent) -> Tensor:
                held = target.forward(asked.inputs, capture=names).captured
                return torch.cat([_pool(encode(n, vectors(held[n], spec.hook(n))), spec, pooling) for n in names], -1)

            return by_group(query, single)
        case Attribute():
            return _attribute(encode, names, query, target)
        case Localise():
            return _localise(encode, query, target)
        case Compare():
            return _compare(encode, names, query, target, pooling)
        case _:
            return None


class Encode:
    """Maps the vectors of a hook point to features. Subclassed by each representation."""

    def __init__(self, interpretation: Interpretation) -> None:
        self.interpretation = interpretation

    def __call__(self, name: str, values: Tensor) -> Tensor:
        return values

    def knows(self, name: str) -> bool:
        """Whether there are features of a hook point."""
        return True

    def rebuilt(self, name: str, features: Tensor) -> Tensor:
        """Vectors (..., D) as the features (..., F) have them."""
        return features


def _pool(features: Tensor, spec: TargetSpec, pooling: Pooling) -> Tensor:
    """(n, T, F) -> (n, F)."""
    if pooling == "mean":
        return features.mean(1)
    if pooling == "max":
        return features.amax(1)
    position = readout(spec)
    return features[:, 0 if position is None or features.shape[1] == 1 else position]


def _attribute(encode: Encode, names: Sequence[str], query: Attribute, target: TargetAccess) -> Answer:
    spec = target.spec
    if spec.tokens is None:
        return None
    captured = target.forward(query.inputs, capture=names).captured
    out = []
    for name in names:
        features = encode(name, vectors(captured[name], spec.hook(name)))
        last = features[:, readout(spec)]
        for place in (0, -1):  # a segment's first and last token: what it shows, and what was made of it
            at = features[:, torch.tensor([spec.tokens[segment[place]][place] for segment in query.segments])]
            product = (at * last.unsqueeze(1)).sum(-1)
            sizes = (at * at).sum(-1).sqrt()
            out += [product, product / (sizes * (last * last).sum(-1, keepdim=True).sqrt() + 1e-6), sizes]
    return torch.stack(out, dim=-1)


def _localise(encode: "Encode", query: Localise, target: TargetAccess) -> Answer:
    spec, names = target.spec, sorted({component.hook_point for component in query.components})
    known = [name for name in names if encode.knows(name)]
    if not known:
        return None
    n, m = query.inputs.shape[:2]
    flat = query.inputs.flatten(0, 1)
    held = target.forward(flat, capture=known).captured
    rebuilt = {name: torch.zeros(n * m, *spec.hook(name).shape) for name in names}
    for name, values in held.items():
        found = encode.rebuilt(name, encode(name, vectors(values, spec.hook(name))))
        rebuilt[name] = found.reshape(values.shape)
    values = component_values(spec, present_only(spec, flat, rebuilt), query.components)
    mean = values.reshape(n, m, *values.shape[1:]).mean(1)
    return torch.cat([mean, mean - mean.mean(0, keepdim=True)], dim=-1)


def _compare(encode: Encode, names: Sequence[str], query: Compare, target: TargetAccess, pooling: Pooling) -> Answer:
    spec = target.spec

    def features(access: TargetAccess) -> dict[str, Tensor]:
        captured = access.forward(query.inputs, capture=names).captured
        found = {}
        for n in names:
            front = captured[n].shape[: captured[n].dim() - len(spec.hook(n).shape)]  # variants and inputs, or inputs
            flat = captured[n].reshape(-1, *spec.hook(n).shape)
            pooled = _pool(encode(n, vectors(flat, spec.hook(n))), spec, pooling)
            found[n] = pooled.reshape(*front, pooled.shape[-1])
        return found

    original, changed = features(target), features(target.variants(query.variants))
    columns = []
    for name in names:
        change = changed[name] - original[name]  # (V, m, F)
        shift, spread = change.mean(1), change.abs().mean(1)
        top = spread.sort(descending=True).values[:, :3]
        columns += [
            (shift * shift).sum(-1, keepdim=True).sqrt(),
            spread.mean(-1, keepdim=True),
            shift.amax(-1, keepdim=True),
            shift.amin(-1, keepdim=True),
            top,
            top.new_zeros(len(top), 3 - top.shape[-1]),
        ]
    return torch.cat(columns, dim=-1)
