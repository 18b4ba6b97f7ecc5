"""Dictionaries, circuits and weight decompositions of one target as explanations, in bits: `lensmith surprise TARGET`.

Every explanation makes a model that explains the target, and pays for all that it takes to run that model:

    own          numbers of the explanation itself (latents, constants of what is ablated, factors of weights), and
                 which parts it keeps
    borrowed     numbers of the target's weights that the explained model still uses, found as those with a gradient
    unexplained  N times KL(target || explained), see ``stages/base/code_lengths.py``

    nothing      every output alike, or as often as it occurs
    weights      the target itself; or each matrix as a sum of its largest rank-one parts (singular value decomposition,
                 Eckart and Young 1936), its vectors as they are
    dictionary   the reconstruction in place of the activation at its hook point; the weights on both sides are borrowed
    circuit      some components (heads, units) as they are, the others at their mean over the training corpus; which,
                 attribution patching on that corpus says

All numbers of an explanation are rounded alike, to as many bits as make its total least. N changes what is best: an
explanation pays from the N at which it is shorter than nothing at all to the N at which the weights are shorter.

Shape legend: N = outputs, C = classes or words, n = components.
"""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from stages.activations.cache import ActivationCache
from stages.activations.order import generator_for
from stages.base.code_lengths import N_OUTPUTS, WHOLE, choice_bits, number_bits, quantised, unexplained_bits
from stages.base.intervals import percentile_interval, resamples
from stages.base.progress import report
from stages.contracts.dictionary import Dictionary
from stages.contracts.record import Record
from stages.contracts.target import Component, Target, telling_places
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.sinks import largest_size
from stages.dictionaries.evaluation.splicing import passes, replaced_logits
from stages.dictionaries.evaluation.subjects import distinct_examples
from stages.dictionaries.evaluation.surprise import only_live, rounded
from stages.dictionaries.storage import load_dictionaries
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["Candidate", "Line", "SurpriseRow", "candidates", "low_rank", "main", "surprise", "used_weights", "window"]

GRID = (3, 4, 5, 6, 8, 10, 12, 16, WHOLE)
"""Bits of a number."""
RANKS = (1 / 16, 1 / 8, 1 / 4, 3 / 8)
"""Shares of the full rank; above half of it the factors of a square matrix are longer than the matrix."""
KEPT = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Shares of the components that circuits keep."""
MOST_INPUTS = 500
WHOLE_NAME = "as they are"
DRAWS = 200

Kind = Literal["nothing", "weights", "dictionary", "circuit"]


class SurpriseRow(Record):
    """One explanation of a target's outputs, at the number of bits at which its total is least."""

    kind: Kind
    """nothing, weights, dictionary or circuit."""
    explanation: str
    """Which one."""
    bits: int
    """Bits of each number; 32: not rounded."""
    own: float
    """Bits of the explanation's own numbers and choices."""
    borrowed: float
    """Bits of the target's weights that the explained model still uses."""
    unexplained: float
    """Bits that an output costs beyond its entropy, given the explained model."""
    low: float
    """Lower end of its 95% interval over held-out inputs."""
    high: float
    """Upper end of its 95% interval over held-out inputs."""
    total: float
    """own + borrowed + N unexplained, in bits."""
    explains: bool
    """Whether the total is below both ends: the best of nothing, and the target's weights."""
    pays_from: float | None
    """The N from which it explains, each N with its own best number of bits; null: it never does."""
    pays_to: float | None
    """The N up to which it does; null: no bound, or never."""


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


class Line(NamedTuple):
    """Total bits as a function of N."""

    length: float
    unexplained: float


class Priced(NamedTuple):
    """A candidate at its best number of bits."""

    candidate: Candidate
    bits: int
    own: float
    borrowed: float
    left: Tensor
    """(N,) bits of each output."""
    lines: tuple["Line", ...] = ()
    """The candidate at every number of bits that was tried."""

    @property
    def length(self) -> float:
        return self.own + self.borrowed

    @property
    def unexplained(self) -> float:
        return float(self.left.mean())

    def total(self, n_outputs: float) -> float:
        return self.length + n_outputs * self.unexplained


def surprise(target_name: str, n_outputs: int = N_OUTPUTS) -> list[SurpriseRow]:
    """Every explanation of a target that there is: ends, decompositions, kept dictionaries, circuits of components.

    Args:
        n_outputs: N, outputs that share one explanation.

    Raises:
        UserError: N is below 1, or the target or its dictionaries are missing.
    """
    if n_outputs < 1:
        raise UserError(f"N = {n_outputs} outputs: give at least 1")
    target = load_target(target_name)
    inputs = target.corpus("validation").inputs
    inputs = inputs[distinct_examples(inputs)][:MOST_INPUTS]
    found, every = [], candidates(target, inputs)
    clean = outputs_of(target, inputs)
    for number, one in enumerate(every):
        report("explanations", number, len(every))
        found.append(_cheapest(one, clean, n_outputs))
    return _rows(found, n_outputs)


def _cheapest(one: Candidate, clean: Tensor, n_outputs: int) -> Priced:
    tried = []
    for bits in GRID:
        coded = one.at(bits)
        tried.append(Priced(one, bits, coded.own, coded.borrowed, unexplained_bits(clean, coded.outputs)))
    lines = tuple(Line(priced.length, priced.unexplained) for priced in tried)
    return min(tried, key=lambda priced: priced.total(n_outputs))._replace(lines=lines)


def lowest(lines: Sequence[Line], n_outputs: float) -> float:
    """Total bits at the best of several."""
    return min(length + n_outputs * unexplained for length, unexplained in lines)


def window(lines: Sequence[Line], ends: Sequence[Line]) -> tuple[float, float | None] | None:
    """The N from which and to which the best of the lines is below the best of the ends; None for both: never, for the
    second: no bound. Were it above them in between, that would not be said."""
    crossings = {0.0}
    for one in lines:
        for other in ends:
            if one.unexplained != other.unexplained:
                crossings.add((other.length - one.length) / (one.unexplained - other.unexplained))
    at = sorted(n for n in crossings if n >= 0)
    middles = [(low + high) / 2 for low, high in pairwise(at)] + [2 * at[-1] + 1]
    below = [i for i, n in enumerate(middles) if lowest(lines, n) < lowest(ends, n)]
    if not below:
        return None
    return at[below[0]], at[below[-1] + 1] if below[-1] + 1 < len(at) else None


def _rows(found: list[Priced], n_outputs: int) -> list[SurpriseRow]:
    def is_end(one: Priced) -> bool:
        return one.candidate.kind == "nothing" or one.candidate.name == WHOLE_NAME

    ends = [line for one in found if is_end(one) for line in one.lines]
    draws = resamples(len(found[0].left), DRAWS, generator_for("surprise"))
    rows = []
    for one in found:
        interval = percentile_interval(draws @ one.left / draws.sum(-1)).holding(one.unexplained)
        pays = None if is_end(one) else window(one.lines, ends)
        rows.append(
            SurpriseRow(
                kind=one.candidate.kind, explanation=one.candidate.name, bits=one.bits, own=one.own,
                borrowed=one.borrowed, unexplained=one.unexplained, low=interval.low, high=interval.high,
                total=one.total(n_outputs), explains=not is_end(one) and one.total(n_outputs) < lowest(ends, n_outputs),
                pays_from=pays and pays[0], pays_to=pays and pays[1],
            ).rounded()
        )  # fmt: skip
    return rows


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
    out = [_uniform(clean), _marginal(clean), Candidate("weights", WHOLE_NAME, _whole(mine, inputs, weights, used))]
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


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one target is needed, such as `python -m stages tools.surprise digits_mlp`")
    for row in surprise(sys.argv[1]):
        print(row.facts())
