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

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from torch import Tensor

from stages.activations.order import generator_for
from stages.base.code_lengths import N_OUTPUTS, WHOLE, unexplained_bits
from stages.base.intervals import percentile_interval, resamples
from stages.base.progress import report
from stages.contracts.record import Record
from stages.dictionaries.evaluation.subjects import distinct_examples
from stages.errors import UserError
from stages.targets.storage import load_target
from stages.tools.explanations import AS_THEY_ARE, MOST_INPUTS, Candidate, Kind, candidates, outputs_of

__all__ = ["Line", "SurpriseRow", "main", "surprise", "window"]

GRID = (3, 4, 5, 6, 8, 10, 12, 16, WHOLE)
"""Bits of a number."""
DRAWS = 200


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
        return one.candidate.kind == "nothing" or one.candidate.name == AS_THEY_ARE

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


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one target is needed, such as `python -m stages tools.surprise digits_mlp`")
    for row in surprise(sys.argv[1]):
        print(row.facts())
