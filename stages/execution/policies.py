"""What M2 buys, as a decision that can be made by somebody else than the rule: a script, a language model.

For each task, seed and arm the executor has a menu: nothing, what the question holds, each rung of the black-box
ladder, the method's answer, and the answer beside a rung; each with its price and with what it promised on held-out
calibration instances. A policy says what is bought at each budget. The executor's calibrator then predicts from it, so
a policy can neither see a truth nor predict by itself, and it cannot tell an answer from its placebo but by what it
promises. The agent alone chooses by the same policy: a gain is what the answer is worth *to that agent*.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

__all__ = ["AlwaysUse", "Menu", "Offer", "Policy", "checked_choice"]


class Offer(NamedTuple):
    """One thing M2 may do."""

    rung: int
    """Of the black-box ladder; -1: none."""
    answer: bool
    """With the method's answer."""
    question: bool
    """What the question itself holds, alone."""
    flops: float
    """Per instance."""
    score: float
    """Cross-validated on the calibration instances."""


class Menu(NamedTuple):
    """What there is to buy for one task, seed and arm."""

    kind: str
    """Of question."""
    offers: tuple[Offer, ...]
    """The first is nothing: the mean of the calibration labels."""
    budgets: Mapping[str, tuple[float, float]]
    """{budget: (limit, amount that savings are measured against)}, FLOPs per instance."""
    flop_weight: float
    """lambda: what saving the whole amount is worth, in units of score."""
    margin: float
    """How much less score still counts as no loss."""
    by_rule: Mapping[str, int]
    """What the executor's own rule takes; for a policy that has nothing better to say."""


class Policy(Protocol):
    """Chooses from menus."""

    name: str

    def choose(self, menu: Menu) -> Mapping[str, int]:
        """{budget: number of an offer}, for every budget."""
        ...


class AlwaysUse:
    """Takes the method's answer alone wherever it can be paid for, whatever it promises; else the rule's choice.

    The control of an agent that believes whatever its tool says: it must score what *answer alone* scores.
    """

    name = "always"

    def choose(self, menu: Menu) -> Mapping[str, int]:
        alone = next((i for i, one in enumerate(menu.offers) if one.answer and one.rung < 0), None)
        return {
            budget: alone if alone is not None and menu.offers[alone].flops <= limit else menu.by_rule[budget]
            for budget, (limit, _) in menu.budgets.items()
        }


def checked_choice(menu: Menu, choice: Mapping[str, int]) -> dict[str, int]:
    """The same choice, which fits the menu.

    Raises:
        ValueError: a budget is missing or unknown, an offer is not on the menu or cannot be paid for; says what may
            be chosen.
    """
    if set(choice) != set(menu.budgets):
        raise ValueError(f"budgets {sorted(choice)}: choose one offer for each of {', '.join(menu.budgets)}")
    for budget, number in choice.items():
        limit = menu.budgets[budget][0]
        within = [i for i, one in enumerate(menu.offers) if one.flops <= limit]
        if isinstance(number, bool) or not isinstance(number, int) or number not in within:
            raise ValueError(f"{budget}: offer {number!r} is not on the menu or too dear; take one of {within}")
    return dict(choice)
