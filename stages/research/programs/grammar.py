"""Genomes: one fragment for each kind of question, drawn gene by gene.

A fragment is a source (where the information comes from) and the genes that this source reads: hook roles, pooling,
reduction, read-out. Genes that a source does not read are not there, so two fragments differ where their answers may.
``none`` declines the kind. A task asks one kind of question, so its reward depends on one fragment alone.

A draw is autoregressive: first the source, then its genes in a fixed order. Every draw goes through a ``Chooser``, so
uniform sampling, a tree-structured estimator and a policy with logits walk the same tree.
"""

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from stages.contracts.journal import Choices

__all__ = [
    "KINDS",
    "NONE",
    "SHARED",
    "Chooser",
    "Fragment",
    "Gene",
    "Genome",
    "Rules",
    "Uniform",
    "choices_of",
    "cross",
    "draw",
    "every_fragment",
    "genome_of",
    "graft",
    "mutate",
    "text_of",
]

NONE = "none"
SOURCE = "source"


class Gene(NamedTuple):
    """One choice."""

    name: str
    options: tuple[str, ...]


class Fragment(NamedTuple):
    """How questions of one kind are answered."""

    kind: str
    source: str
    genes: tuple[tuple[str, str], ...] = ()
    """(gene, option) in the order in which they are drawn."""

    @property
    def values(self) -> dict[str, str]:
        return dict(self.genes)


Genome = Mapping[str, Fragment]
"""A fragment for each kind."""


class Rules(NamedTuple):
    """What a fragment of one kind may be."""

    kind: str
    sources: Mapping[str, tuple[Gene, ...]]


class Chooser(Protocol):
    """Chooses one of several options; asked by the place in the tree."""

    def choose(self, name: str, options: Sequence[str]) -> str: ...


class Uniform:
    """Chooses evenly."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def choose(self, name: str, options: Sequence[str]) -> str:
        return self.rng.choice(list(options))


ROLES = Gene("roles", ("residual", "last", "mlp", "both"))
POOL = Gene("pool", ("readout", "mean", "max"))
SIZE = Gene("size", ("4", "16", "48"))
READ = Gene("read", ("plain", "norms", "sorted", "square"))
BESIDE = Gene("beside", ("alone", "outputs"))
OBJECTIVE = Gene("objective", ("log_prob", "logit", "margin"))
RELATIVE = Gene("relative", ("plain", "relative"))
ACROSS = Gene("across", ("mean", "absolute", "largest", "spread", "all"))
INPUTS = Gene("inputs", ("query", "corpus", "noise"))
STATISTIC = Gene("statistic", ("shift", "spread", "extremes", "all"))
SOME = Gene("some", ("1", "4", "16"))
WHERE = Gene("where", ("query", "corpus"))
SAYS = Gene("says", ("loss", "log_prob", "all"))
COUNT = Gene("count", ("1", "2", "8"))

KINDS: Mapping[str, Rules] = {
    rules.kind: rules
    for rules in (
        Rules(
            "Represent",
            {
                "outputs": (Gene("read", ("plain", "sorted", "square")),),
                "activations": (ROLES, POOL, READ, BESIDE),
                "components": (ROLES, POOL, SIZE, READ, BESIDE),
                "distances": (ROLES, POOL, READ, BESIDE),
                "whitened": (ROLES, POOL, SIZE, BESIDE),
                "gradients": (ROLES, OBJECTIVE, BESIDE),
                "boundary": (ROLES, BESIDE),
                "lens": (POOL, BESIDE),
                "noise": (Gene("strength", ("0.1", "0.3", "1.0")), BESIDE),
                NONE: (),
            },
        ),
        Rules(
            "Attribute",
            {
                "products": (ROLES, RELATIVE),
                "cosines": (ROLES, RELATIVE),
                "sizes": (ROLES, RELATIVE),
                "slope_at_input": (OBJECTIVE, RELATIVE),
                "slope_inside": (ROLES, OBJECTIVE, RELATIVE),
                "attention": (RELATIVE,),
                "hiding": (Gene("says", ("log_prob", "outputs")), RELATIVE),
                NONE: (),
            },
        ),
        Rules(
            "Localise",
            {
                "activations": (ACROSS, RELATIVE),
                "power": (ACROSS, RELATIVE),
                "slopes": (OBJECTIVE, ACROSS, RELATIVE),
                "steepness": (OBJECTIVE, ACROSS, RELATIVE),
                "ablation": (SOME, ACROSS, RELATIVE),
                "corpus": (RELATIVE,),
                NONE: (),
            },
        ),
        Rules(
            "Compare",
            {
                "outputs": (INPUTS, STATISTIC),
                "probabilities": (INPUTS, STATISTIC),
                "activations": (ROLES, POOL, INPUTS, STATISTIC),
                "components": (ROLES, POOL, INPUTS, STATISTIC),
                "gradients": (INPUTS, STATISTIC),
                "weights": (Gene("read", ("norms", "sorted")),),
                NONE: (),
            },
        ),
        Rules(
            "Steer",
            {
                "slope": (OBJECTIVE, Gene("read", ("plain", "square"))),
                "curvature": (OBJECTIVE,),
                "trying": (SOME, WHERE, SAYS),
                "shape": (Gene("read", ("plain", "square")),),
                NONE: (),
            },
        ),
        Rules(
            "Propose",
            {
                "slope": (COUNT,),
                "slope_of_corpus": (COUNT,),
                "largest": (COUNT,),
                "first": (COUNT,),
                "against_slope": (COUNT,),
                NONE: (),
            },
        ),
    )
}
SHARED = ("roles", "pool", "size", "objective", "read", "relative")
"""Genes that mean the same in several kinds: what was learned of one kind may hold for another."""


def draw_fragment(kind: str, chooser: Chooser) -> Fragment:
    """One fragment: the source, then the genes that it reads."""
    rules = KINDS[kind]
    source = chooser.choose(f"{kind}.{SOURCE}", tuple(rules.sources))
    genes = tuple(
        (gene.name, chooser.choose(f"{kind}.{source}.{gene.name}", gene.options)) for gene in rules.sources[source]
    )
    return Fragment(kind, source, genes)


def draw(chooser: Chooser) -> dict[str, Fragment]:
    """A genome, kind by kind in a fixed order."""
    return {kind: draw_fragment(kind, chooser) for kind in KINDS}


def every_fragment(kind: str) -> tuple[Fragment, ...]:
    """All fragments of a kind, in the order of the tables above."""
    return tuple(
        Fragment(kind, source, tuple(zip([gene.name for gene in genes], options, strict=True)))
        for source, genes in KINDS[kind].sources.items()
        for options in itertools.product(*(gene.options for gene in genes))
    )


def text_of(fragment: Fragment) -> str:
    """A fragment in one line: ``Represent activations roles=mlp pool=mean``; what its cells in a table are keyed by."""
    return " ".join([fragment.kind, fragment.source, *(f"{gene}={option}" for gene, option in fragment.genes)])


def choices_of(genome: Genome) -> Choices:
    """The genome as a journal keeps it: ``<kind>.source`` and ``<kind>.<source>.<gene>``, as they are drawn."""
    found: Choices = {}
    for kind, fragment in genome.items():
        found[f"{kind}.{SOURCE}"] = fragment.source
        found |= {f"{kind}.{fragment.source}.{gene}": option for gene, option in fragment.genes}
    return found


class _Recalled:
    """Chooses what was chosen before."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices

    def choose(self, name: str, options: Sequence[str]) -> str:
        chosen = self.choices.get(name)
        if chosen not in options:
            raise ValueError(f"{name} = {chosen!r} is no choice of this grammar: use {', '.join(options)}")
        return str(chosen)


def genome_of(choices: Choices) -> dict[str, Fragment]:
    """The genome that a journal keeps.

    Raises:
        ValueError: a choice is missing, or is none of this grammar's.
    """
    return draw(_Recalled(choices))


def _with(fragment: Fragment, values: Mapping[str, str], chooser: Chooser) -> Fragment:
    """The fragment's source with the genes given where the source reads them; the others are drawn."""
    genes = []
    for gene in KINDS[fragment.kind].sources[fragment.source]:
        known = values.get(gene.name)
        place = f"{fragment.kind}.{fragment.source}.{gene.name}"
        genes.append((gene.name, known if known in gene.options else chooser.choose(place, gene.options)))
    return Fragment(fragment.kind, fragment.source, tuple(genes))


def mutate(fragment: Fragment, rng: random.Random) -> Fragment:
    """Another fragment of the same kind: one gene changed, or the source with the genes kept that both sources read."""
    chooser = Uniform(rng)
    sources = tuple(KINDS[fragment.kind].sources)
    able = [gene for gene in KINDS[fragment.kind].sources[fragment.source] if len(gene.options) > 1]
    at = rng.randrange(len(able) + 1)
    if at == len(able):
        source = rng.choice([one for one in sources if one != fragment.source])
        return _with(Fragment(fragment.kind, source), fragment.values, chooser)
    gene = able[at]
    option = rng.choice([one for one in gene.options if one != fragment.values[gene.name]])
    return _with(fragment, fragment.values | {gene.name: option}, chooser)


def cross(one: Genome, other: Genome, rng: random.Random) -> dict[str, Fragment]:
    """Fragments of two genomes, each from either."""
    return {kind: rng.choice((one, other))[kind] for kind in KINDS}


def graft(genome: Genome, source: str, onto: str, rng: random.Random) -> dict[str, Fragment]:
    """What one kind does, done for another as far as both can: the source of the same name, and the genes they share.

    The only way by which what earns something on one kind reaches a kind that no train task asks.

    Args:
        source: kind that is copied from.
        onto: kind that is changed.
    """
    giver, taker = genome[source], genome[onto]
    name = giver.source if giver.source in KINDS[onto].sources else taker.source
    shared = {gene: option for gene, option in giver.genes if gene in SHARED}
    made = _with(Fragment(onto, name), taker.values | shared, Uniform(rng))
    return {kind: made if kind == onto else fragment for kind, fragment in genome.items()}
