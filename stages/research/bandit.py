"""Which operator and which model to use next: a bandit that counts what asking costs.

Thompson sampling over arms. What an arm earned with a proposal is the share of earlier proposals that it was better
than, working without a method among them: rewards differ by task and campaign, ranks do not. An arm's cost is the mean
of what its slots were charged. The arm is chosen whose draw, divided by its relative cost to the power of
``COST_WEIGHT``, is the largest: a bandit over models with a term for cost is ShinkaEvolve's idea (arXiv 2509.19349).

Everything is a fold over the journal, and the draw is a function of seed and slot.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from stages.contracts.journal import Asked, Replied
from stages.research.journal import Journal
from stages.research.view import View

__all__ = ["Arm", "Record", "about", "choose", "records"]

COST_WEIGHT = 0.5
"""0: cost does not matter; 1: earnings per dollar. Judging costs as well, whatever was asked, so less than 1."""


@dataclass(frozen=True)
class Arm:
    """What can be chosen."""

    operator: str
    model: str


@dataclass
class Record:
    """What is known of an arm."""

    earned: list[float] = field(default_factory=list)
    """Of its judged proposals, in 0..1."""
    cost: list[float] = field(default_factory=list)
    """Of its slots: USD, or tokens where no price is known or all are 0."""


def about(slot: int) -> str:
    """What the calls for a slot are called in the journal."""
    return f"slot {slot}"


def records(journal: Journal, view: View, start: int) -> dict[Arm, Record]:
    """What the slots before ``start`` say of each arm."""
    arms: dict[int, Arm] = {}
    usd: dict[int, float] = {}
    tokens: dict[int, float] = {}
    reserved: dict[tuple[str, int], float] = {}
    for event in journal.events:
        if isinstance(event, Asked) and event.about.startswith("slot "):
            slot = int(event.about.removeprefix("slot "))
            if slot < start:
                arms.setdefault(slot, Arm(str(event.context["operator"]), event.model))
                reserved[event.about, event.attempt] = float(event.reserved_usd)
        elif isinstance(event, Replied) and (event.about, event.attempt) in reserved:
            slot = int(event.about.removeprefix("slot "))
            usd[slot] = usd.get(slot, 0.0) + float(event.usd)
            said = event.tokens
            took = said.input + said.cache_read + said.cache_write + said.output if said is not None else 0
            tokens[slot] = tokens.get(slot, 0.0) + took
    costs = usd if any(usd.values()) else tokens
    found: dict[Arm, Record] = {}
    for slot, arm in arms.items():
        found.setdefault(arm, Record()).cost.append(costs.get(slot, 0.0))
    values = [0.0]  # working without a method
    for one in view.seen:
        if one.value is None:
            continue
        below = sum((one.value > other) + 0.5 * (one.value == other) for other in values) / len(values)
        if one.slot in arms:
            # What is no method at all earned nothing, also where others were worse than none.
            found[arms[one.slot]].earned.append(below if one.tasks else 0.0)
        values.append(one.value)
    return found


def choose(arms: Sequence[Arm], known: dict[Arm, Record], rng: random.Random) -> Arm:
    """The arm for the next slot."""
    paid = [cost for record in known.values() for cost in record.cost]
    usual = sum(paid) / len(paid) if paid else 0.0

    def index(arm: Arm) -> float:
        record = known.get(arm, Record())
        good = sum(record.earned)
        drawn = rng.betavariate(1.0 + good, 1.0 + len(record.earned) - good)
        # One slot of the usual cost is what is known of an arm before it is tried.
        relative = (sum(record.cost) + usual) / (len(record.cost) + 1) / usual if usual > 0 else 1.0
        return float(drawn / max(relative, 1e-9) ** COST_WEIGHT)

    return max(_in_order(arms), key=index)


def _in_order(arms: Iterable[Arm]) -> list[Arm]:
    return sorted(set(arms), key=lambda arm: (arm.operator, arm.model))
