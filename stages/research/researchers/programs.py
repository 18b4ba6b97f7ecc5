"""Evolution over programs of a grammar, fragment by fragment.

A task sees the fragment of its kind alone, so a proposal is several experiments at once: every kind has a ranking of
its own, and the product space becomes a sum. Operators: ``draw``; ``compose`` the best fragment of each kind;
``mutate`` fragments, each chosen by a small tournament within its kind; ``cross`` two parents of the Pareto front over
train tasks; ``graft`` what a kind does onto another, so that kinds which no train task asks are reached. With several
islands each breeds from its own (``stages.research.islands``).
"""

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from stages.research.islands import EVERY, on_island
from stages.research.programs.emitting import source_of
from stages.research.programs.grammar import (
    KINDS,
    NONE,
    Fragment,
    Genome,
    Uniform,
    choices_of,
    cross,
    draw,
    genome_of,
    graft,
    mutate,
)
from stages.research.researcher import Move, Researcher
from stages.research.view import View

__all__ = ["ProgramsResearcher"]

N_DRAWS = 8
"""Slots that are drawn before anything is bred."""
WEIGHTS = {"mutate": 6, "cross": 1, "graft": 1, "compose": 1, "draw": 1}
TOURNAMENT = 3
SHARE_FRESH = 0.2
"""Of a mutation's fragments, drawn anew instead: the tournament alone would look at what is there."""
SHARE_BLIND = 0.5
"""How often a fragment is changed whose kind no train task asks."""
MAX_ATTEMPTS = 20
ItemT = TypeVar("ItemT")


class Ranked(NamedTuple):
    """A fragment that was judged."""

    reward: float
    """Mean over train tasks of its kind."""
    slot: int
    """Where it was first tried."""
    fragment: Fragment


class ProgramsResearcher(Researcher):
    """
    Args:
        islands: populations that breed apart.
        every: slots from one migration of their best to the next.
    """

    batch = 8

    def __init__(self, seed: int, space: str = "programs", islands: int = 1, every: int = EVERY) -> None:
        super().__init__(seed, "programs")
        self.islands, self.every = islands, every
        if islands > 1:
            self.told = f"{islands} islands, every {every}"

    def propose(self, view: View, slot: int) -> Move:
        rng = random.Random(f"programs {self.seed} {slot}")
        own = on_island(view, slot, self.islands, self.batch, self.every)
        ranks = ranking(own)
        tried = [one.choices for one in view.tried]  # on any island: the same twice would teach nothing
        for _ in range(MAX_ATTEMPTS):
            operator = "draw"
            if len(view.scored()) >= N_DRAWS and own.scored():
                operator = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
            genome, parents = self._bred(operator, own, ranks, rng)
            if choices_of(genome) not in tried and any(one.source != NONE for one in genome.values()):
                break
        return Move(source_of(genome), choices_of(genome), operator, parents)

    def _bred(
        self, operator: str, view: View, ranks: Mapping[str, list[Ranked]], rng: random.Random
    ) -> tuple[dict[str, Fragment], tuple[int, ...]]:
        """A genome, and the slots it comes from."""
        if operator == "draw":
            return draw(Uniform(rng)), ()
        if operator == "cross":
            one, other = (_pick(view, rng) for _ in range(2))
            crossed = cross(_genome(view, one), _genome(view, other), rng)
            return crossed, tuple(dict.fromkeys((one, other)))
        best, parents = _composed(view, ranks)
        if operator == "compose":
            return best, parents
        if operator == "graft":
            giver = rng.choice([kind for kind in KINDS if best[kind].source != NONE] or list(KINDS))
            onto = rng.choice([kind for kind in KINDS if kind != giver])
            return graft(best, giver, onto, rng), parents
        made, slots = {}, []
        for kind in KINDS:
            if kind in ranks:
                winner = max(_some(ranks[kind], rng), key=lambda one: (one.reward, -one.slot))
                chosen, slot, changed = winner.fragment, winner.slot, True
            else:  # only the value of whole programs says anything of it: changed in every other proposal
                leader = max(_some(view.scored(), rng), key=lambda one: (one.value or 0.0, -one.slot))
                chosen, slot, changed = genome_of(leader.choices)[kind], leader.slot, rng.random() < SHARE_BLIND
            slots.append(slot)
            fresh = rng.random() < SHARE_FRESH
            made[kind] = chosen if not changed else draw(Uniform(rng))[kind] if fresh else mutate(chosen, rng)
        return made, tuple(dict.fromkeys(slots))


def ranking(view: View) -> dict[str, list[Ranked]]:
    """Fragments of each kind that a train task asks, the best first; each counted once, where it was first tried."""
    found: dict[str, dict[Fragment, Ranked]] = {}
    for one in view.seen:
        if one.value is None:
            continue
        genome = genome_of(one.choices)
        for kind in KINDS:
            rewards = [task.reward for task in one.tasks if task.kind == kind]
            if rewards and genome[kind] not in found.setdefault(kind, {}):
                found[kind][genome[kind]] = Ranked(sum(rewards) / len(rewards), one.slot, genome[kind])
    return {kind: sorted(of.values(), key=lambda one: (-one.reward, one.slot)) for kind, of in found.items()}


def _some(of: Sequence[ItemT], rng: random.Random) -> list[ItemT]:
    """Who takes part in a tournament."""
    return [rng.choice(of) for _ in range(TOURNAMENT)]


def _composed(view: View, ranks: Mapping[str, list[Ranked]]) -> tuple[dict[str, Fragment], tuple[int, ...]]:
    """The best fragment of each kind; of kinds that no train task asks, that of the best program."""
    leader = view.scored()[0]
    genome = genome_of(leader.choices)
    slots = [leader.slot]
    for kind, ranked in ranks.items():
        genome[kind] = ranked[0].fragment
        slots.append(ranked[0].slot)
    return genome, tuple(dict.fromkeys(slots))


def _pick(view: View, rng: random.Random) -> int:
    front = view.front()
    return rng.choice(front or view.scored()).slot


def _genome(view: View, slot: int) -> Genome:
    return genome_of(next(one.choices for one in view.seen if one.slot == slot))
