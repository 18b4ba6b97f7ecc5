"""A tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS 24) through Optuna."""

from stages.contracts.journal import Choices
from stages.research.researcher import Researcher
from stages.research.search_space import new_spec
from stages.scoring.composed import Spec

__all__ = ["SearchResearcher"]


class SearchResearcher(Researcher):
    n_startup = 4
    """Random proposals before the estimator is used."""

    def propose(self, iteration: int) -> tuple[Spec, Choices]:
        kind = "random" if len(self.trials) < self.n_startup else "tpe"
        return new_spec(self.trials, self.trials, kind, self.seed, iteration)
