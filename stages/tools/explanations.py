"""What could explain a target, as models that can be run with numbers of so many bits: nothing, weights, dictionaries,
circuits. ``tools/surprise.py`` says what they are and compares them.

Shape legend: N = inputs, C = classes or words, n = components.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stages.activations.cache import ActivationCache
from stages.activations.order import generator_for
from stages.base.code_lengths import choice_bits, number_bits, quantised
from stages.contracts.dictionary import Dictionary
from stages.contracts.target import Component, Target, telling_places
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.sinks import largest_size
from stages.dictionaries.evaluation.splicing import passes, replaced_logits
from stages.dictionaries.evaluation.surprise import only_live, rounded
from stages.dictionaries.storage import load_dictionaries

__all__ = [
    "AS_THEY_ARE",
    "MOST_INPUTS",
    "Candidate",
    "Coded",
    "Kind",
    "candidates",
    "low_rank",
    "outputs_of",
    "used_weights",
]

RANKS = (1 / 16, 1 / 8, 1 / 4, 3 / 8)
"""Shares of the full rank; above half of it the factors of a square matrix are longer than the matrix."""
KEPT = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Shares of the components that circuits keep."""
MOST_INPUTS = 500
AS_THEY_ARE = "as they are"

Kind = Literal["nothing", "weights", "dictionary", "circuit"]


class Coded(NamedTuple):
    """An explained model whose numbers have some number of bits."""

    own: float
    borrowed: float
    outputs: Tensor
    """(N, C) logits."""


class Candidate(NamedTuple):
    kind: Kind
    name: str
    at: Callable[[int], Coded]


def outputs_of(target: Target, inputs: Tensor) -> Tensor:
    """(N, C) logits."""
    with torch.no_grad():
        return torch.cat([target.model(some) for some in passes(target, inputs)])


def candidates(target: Target, inputs: Tensor) -> list[Candidate]:
    """All explanations of a target; they run a copy of it, and leave the target as it is."""
    mine = Target(target.spec, copy.deepcopy(target.model), {name: target.corpus(name) for name in ("train",)})
    weights = {name: value.detach().clone() for name, value in mine.model.named_parameters()}
    used = used_weights(mine, inputs, {})
    clean = outputs_of(mine, inputs)
    out = [_uniform(clean), _marginal(clean), Candidate("weights", AS_THEY_ARE, _whole(mine, inputs, weights, used))]
    out += [
        Candidate("weights", f"rank {share:g} of full", _decomposed(mine, inputs, weights, used, share))
        for share in RANKS
    ]
    out += [
        Candidate("dictionary", name, _spliced(mine, inputs, weights, used, name.rpartition("/")[0], dictionary))
        for name, dictionary in load_dictionaries(target.name).items()
    ]
    if target.spec.components:
        means = _means(mine)
        ranking = _ranking(mine, target.corpus("train").inputs[:MOST_INPUTS], means)
        for share in KEPT:
            cut = ranking[max(1, round(share * len(ranking))) :]
            name = f"{len(ranking) - len(cut)} of {len(ranking)} components"
            out.append(Candidate("circuit", name, _circuit(mine, inputs, weights, means, cut, len(ranking))))
    return out


# ---- the ends ----


def _uniform(clean: Tensor) -> Candidate:
    return Candidate("nothing", "uniform", lambda bits: Coded(0.0, 0.0, torch.zeros_like(clean)))


def _marginal(clean: Tensor) -> Candidate:
    prior = clean.double().softmax(-1).mean(0).log()

    def at(bits: int) -> Coded:
        return Coded(number_bits(len(prior), 1, bits), 0.0, quantised(prior, bits).expand(len(clean), -1))

    return Candidate("nothing", "marginal", at)


def _whole(
    target: Target, inputs: Tensor, weights: Mapping[str, Tensor], used: Mapping[str, Tensor]
) -> Callable[[int], Coded]:
    def at(bits: int) -> Coded:
        with _weights(target, {name: quantised(value, bits) for name, value in weights.items()}):
            return Coded(0.0, _length(used, bits), outputs_of(target, inputs))

    return at


def _length(used: Mapping[str, Tensor], bits: int) -> float:
    some = [int(of.sum()) for of in used.values()]
    return number_bits(sum(some), sum(n > 0 for n in some), bits)


@contextmanager
def _weights(target: Target, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The target's copy with other weights, for a while."""
    before = {name: value.data for name, value in target.model.named_parameters()}
    try:
        for name, value in target.model.named_parameters():
            value.data = weights[name]
        yield
    finally:
        for name, value in target.model.named_parameters():
            value.data = before[name]


Hooks = Mapping[str, Callable[[Tensor], Tensor]]
"""Hook point -> what stands there instead."""


def used_weights(target: Target, inputs: Tensor, hooks: Hooks) -> dict[str, Tensor]:
    """{weight: bool of its shape} entries that the outputs depend on for some input: those with a gradient.

    Words that occur in no input, units that are never on and all that an ablation cuts off have none.
    """
    found = {name: torch.zeros(value.shape, dtype=torch.bool) for name, value in target.model.named_parameters()}
    target.model.requires_grad_(True)
    try:
        for some in passes(target, inputs):
            with torch.enable_grad():
                outputs = _hooked(target, some, hooks)
                # A random direction: no change of the outputs that matters is orthogonal to it.
                direction = torch.randn(outputs.shape, generator=generator_for("direction", len(some)))
                loss = (outputs * direction).sum()
            named = dict(target.model.named_parameters())
            if not loss.requires_grad:
                continue
            grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
            for name, grad in zip(named, grads, strict=True):
                if grad is not None:
                    found[name] |= grad != 0
    finally:
        target.model.requires_grad_(False)
    return found


def _hooked(target: Target, inputs: Tensor, hooks: Hooks) -> Tensor:
    """(n, C) logits with activations changed."""
    changes: list[tuple[str, Callable[..., Tensor]]] = [
        (name, lambda acts, hook, change=change: change(acts)) for name, change in hooks.items()
    ]
    outputs: Tensor = target.model.run_with_hooks(inputs, fwd_hooks=changes)
    return outputs


# ---- weight decompositions ----


def low_rank(matrix: Tensor, rank: int, bits: int) -> Tensor:
    """A matrix (..., a, b) as the sum of its ``rank`` largest rank-one parts, whose factors are rounded."""
    left, sizes, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = sizes[..., :rank].sqrt()
    one, two = left[..., :, :rank] * root.unsqueeze(-2), right[..., :rank, :] * root.unsqueeze(-1)
    found: Tensor = (quantised(one, bits) @ quantised(two, bits)).to(matrix.dtype)
    return found


def _decomposed(
    target: Target, inputs: Tensor, weights: Mapping[str, Tensor], used: Mapping[str, Tensor], share: float
) -> Callable[[int], Coded]:
    """Only the rows and columns that are used are told; a matrix whose factors are no shorter stays as it is."""

    def at(bits: int) -> Coded:
        made, numbers, tensors = {}, 0, 0
        for name, value in weights.items():
            entries = int(used[name].sum())
            made[name] = quantised(value, bits)
            if value.dim() >= 2:
                rank = max(1, round(share * min(value.shape[-2:])))
                sides = int(used[name].any(-1).sum()) + int(used[name].any(-2).sum())
                if rank * sides < entries:
                    made[name], entries, tensors = low_rank(value, rank, bits), rank * sides, tensors + 1
            numbers, tensors = numbers + entries, tensors + (entries > 0)
        with _weights(target, made):
            return Coded(number_bits(numbers, tensors, bits), 0.0, outputs_of(target, inputs))

    return at


# ---- dictionaries ----


def _spliced(
    target: Target, inputs: Tensor, weights: Mapping[str, Tensor], used: Mapping[str, Tensor], hook: str,
    dictionary: Dictionary,
) -> Callable[[int], Coded]:  # fmt: skip
    rows = ActivationCache.open(target.name, hook, "train", digest=target.digest).read().acts
    largest = largest_size(target, rows)
    fired = torch.zeros(len(dictionary["W_dec"]), dtype=torch.bool)

    def look(acts: Tensor) -> Tensor:
        nonlocal fired
        fired = fired | (encode(dictionary, acts) != 0).any(0)
        return acts

    replaced_logits(target, hook, inputs, look, largest)
    live = only_live(dictionary, fired)

    def at(bits: int) -> Coded:
        coded, length = rounded(live, bits)
        with _weights(target, {name: quantised(value, bits) for name, value in weights.items()}):
            outputs = replaced_logits(target, hook, inputs, lambda acts: decode(coded, encode(coded, acts)), largest)
        return Coded(length, _length(used, bits), outputs)

    return at


# ---- circuits of components ----


def _means(target: Target) -> dict[str, Tensor]:
    """{hook point: (1, ...) mean activation over the training corpus}, over its places where there are places: of words
    those that tell something."""
    inputs = target.corpus("train").inputs[:MOST_INPUTS]
    names = sorted({component.hook_point for component in target.spec.components})
    total: dict[str, Tensor] = {}
    count: dict[str, int] = {}
    for some in passes(target, inputs):
        with torch.no_grad():
            _, cache = target.model.run_with_cache(some, names_filter=names)
        telling = telling_places(target.spec, some)
        for name in names:
            acts = cache[name]
            if target.spec.tokens is not None:
                acts = acts.flatten(0, 1) if telling is None else acts[telling]
            total[name] = total.get(name, 0) + acts.double().sum(0)
            count[name] = count.get(name, 0) + len(acts)
    return {name: (total[name] / count[name]).float() for name in names}


def _ablation(target: Target, means: Mapping[str, Tensor], cut: list[Component]) -> dict[str, Callable[[Tensor], Any]]:
    """Hooks that put components at their mean."""
    by_hook: dict[tuple[str, int], list[int]] = {}
    for component in cut:
        by_hook.setdefault((component.hook_point, component.axis), []).append(component.index)

    def change(name: str, axis: int, places: list[int]) -> Callable[[Tensor], Tensor]:
        def cut_off(acts: Tensor) -> Tensor:
            mask = torch.zeros(acts.shape[axis], dtype=torch.bool)
            mask[places] = True
            shape = [1] * acts.dim()
            shape[axis] = -1
            return torch.where(mask.view(shape), means[name].expand_as(acts), acts)

        return cut_off

    return {name: change(name, axis, places) for (name, axis), places in by_hook.items()}


def _ranking(target: Target, inputs: Tensor, means: Mapping[str, Tensor]) -> list[Component]:
    """Components by attribution patching (Nanda 2023): |sum over inputs of the log probability's gradient, for the
    target's own answer, times (mean - activation)|, largest first."""
    held: dict[str, Tensor] = {}
    scores = dict.fromkeys(target.spec.components, 0.0)

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def look(acts: Tensor) -> Tensor:
            held[name] = acts.requires_grad_() if not acts.requires_grad else acts
            return held[name]

        return look

    for some in passes(target, inputs):
        with torch.enable_grad():
            outputs = _hooked(target, some, {name: keep(name) for name in means})
            loss = outputs.log_softmax(-1).amax(-1).sum()
            grads = torch.autograd.grad(loss, [held[name] for name in means], allow_unused=True)
        for name, grad in zip(means, grads, strict=True):
            change = (torch.zeros_like(held[name]) if grad is None else grad * (means[name] - held[name])).detach()
            for component in scores:
                if component.hook_point == name:
                    scores[component] += float(change.select(component.axis, component.index).sum())
    return sorted(scores, key=lambda one: (-abs(scores[one]), one))


def _circuit(
    target: Target, inputs: Tensor, weights: Mapping[str, Tensor], means: Mapping[str, Tensor], cut: list[Component],
    n: int,
) -> Callable[[int], Coded]:  # fmt: skip
    used = used_weights(target, inputs, _ablation(target, means, cut))
    in_front = 1 if target.spec.tokens is None else 2  # axes of an activation that its mean has not
    constants = sum(means[one.hook_point].numel() // means[one.hook_point].shape[one.axis - in_front] for one in cut)

    def at(bits: int) -> Coded:
        hooks = _ablation(target, {name: quantised(value, bits) for name, value in means.items()}, cut)
        with _weights(target, {name: quantised(value, bits) for name, value in weights.items()}), torch.no_grad():
            outputs = torch.cat([_hooked(target, some, hooks) for some in passes(target, inputs)])
        own = choice_bits(n, n - len(cut)) + number_bits(constants, len({one.hook_point for one in cut}), bits)
        return Coded(own, _length(used, bits), outputs)

    return at
