"""Benchmark cards: a module, an ablation, an input length, and the circuit that is known to be right for them."""

from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from stages.circuits.engine.ablation import Ablation
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import mse
from stages.circuits.known.planted import PLANTED, planted_edges, train_planted
from stages.circuits.known.programs import PROGRAMS, Compiled, compile_program
from stages.circuits.known.truths import AblationTruth, by_ablation, by_program
from stages.errors import UserError

__all__ = ["CARDS", "Card", "Truth", "card_named", "cards", "truth_of"]

TOLERANCE = 1e-3
"""A circuit is faithful on a card if its loss is at most this share of the loss with every edge cut."""
PROMPTS = 60
"""Inputs per seed, drawn without replacement; all of them where there are fewer."""


@dataclass(frozen=True)
class Card:
    subject: str
    ablation: Ablation
    length: int | None
    """Tokens per input, BOS not counted; None where inputs have no length."""

    @property
    def name(self) -> str:
        return f"{self.subject}-{self.length}-{self.ablation}" if self.length else f"{self.subject}-{self.ablation}"

    @property
    def needs_tracr(self) -> bool:
        return self.subject in PROGRAMS

    def inputs(self, generator: torch.Generator) -> Tensor:
        """(B, ...) inputs of one seed."""
        if self.length is not None:
            return _compiled(self.subject).inputs(self.length, generator, PROMPTS)
        return torch.randn(PROMPTS, *_planted(self.subject)[0].input_shape, generator=generator)

    def everything(self) -> Tensor:
        """All inputs of this length, or 200 draws: what the truth is derived on."""
        if self.length is not None:
            return _compiled(self.subject).inputs(self.length)
        return torch.randn(200, *_planted(self.subject)[0].input_shape, generator=torch.Generator().manual_seed(0))

    def engine(self, inputs: Tensor, generator: torch.Generator, groups: int = 1, check: bool = False) -> MaskedForward:
        module: Any = _compiled(self.subject).module if self.length is not None else _planted(self.subject)[0]
        return MaskedForward(
            module, module.circuit(), inputs, ablation=self.ablation, generator=generator, groups=groups, check=check
        )


@dataclass(frozen=True)
class Truth:
    mask: Tensor
    """(E,)."""
    edges: tuple[str, ...]
    ablated: AblationTruth
    agree: bool
    """The program (or plant) and the cuts give the same circuit, whatever the order of cutting."""


LENGTHS = {"reverse": (3, 4, 5), "dyck": (4,)}
ONLY: dict[str, tuple[Ablation, ...]] = {"dyck": ("zero", "resample")}
BLANK: tuple[Ablation, ...] = ("zero", "mean", "resample")
CARDS: tuple[Card, ...] = tuple(
    Card(name, ablation, length)
    for name in PROGRAMS
    for length, ablation in product(LENGTHS.get(name, (4,)), ONLY.get(name, BLANK))
) + tuple(Card(name, ablation, None) for name in sorted(PLANTED) for ablation in BLANK)


def cards(names: tuple[str, ...] = ()) -> tuple[Card, ...]:
    """Cards by name or by subject; all of them by default."""
    return tuple(dict.fromkeys(card for name in names for card in card_named(name))) if names else CARDS


def card_named(name: str) -> tuple[Card, ...]:
    """Raises:
    UserError: no card and no subject has this name.
    """
    found = tuple(card for card in CARDS if name in (card.name, card.subject))
    if not found:
        raise UserError(
            f"card {name!r} is unknown: use {', '.join(sorted({card.subject for card in CARDS}))} or one of"
            " `lensmith circuits cards`"
        )
    return found


@cache
def truth_of(card: Card, orders: int = 10) -> Truth:
    """The card's circuit, derived twice."""
    generator = torch.Generator().manual_seed(0)
    engine = card.engine(card.everything(), generator, check=True)
    ablated = by_ablation(engine, mse, generator, tolerance=TOLERANCE, orders=orders)
    if card.length is not None:
        compiled = _compiled(card.subject)
        other = by_program(compiled, engine.layout, compiled.words(card.length), card.ablation)
    else:
        other = engine.layout.connected(planted_edges(_planted(card.subject)[1]))
    agree = ablated.unique and ablated.irreducible and bool((other == ablated.mask).all())
    return Truth(ablated.mask, tuple(map(str, engine.layout.kept(ablated.mask))), ablated, agree)


@cache
def _compiled(subject: str) -> Compiled:
    return compile_program(subject)


@cache
def _planted(subject: str) -> Any:
    return train_planted(subject)
