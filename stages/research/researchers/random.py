"""Random search: the control that every other researcher must beat."""

from stages.contracts.journal import Choices
from stages.research.researcher import Researcher
from stages.research.search_space import new_spec
from stages.scoring.composed import Spec

__all__ = ["RandomResearcher"]


class RandomResearcher(Researcher):
    def propose(self, iteration: int) -> tuple[Spec, Choices]:
        return new_spec([], self.trials, "random", self.seed, iteration)
