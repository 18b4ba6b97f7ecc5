"""Random search: the control that every other researcher must beat."""

from stages.research.researcher import Move, Researcher
from stages.research.search_space import new_proposal
from stages.research.view import View

__all__ = ["RandomResearcher"]


class RandomResearcher(Researcher):
    def propose(self, view: View, slot: int) -> Move:
        return Move(*new_proposal(view, self.space, "random", self.seed, slot))
