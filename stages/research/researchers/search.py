"""A tree-structured Parzen estimator (Bergstra et al. 2011, NeurIPS 24) through Optuna."""

from stages.research.researcher import Move, Researcher
from stages.research.search_space import new_proposal
from stages.research.view import View

__all__ = ["SearchResearcher"]


class SearchResearcher(Researcher):
    n_startup = 4
    """Random proposals before the estimator is used."""

    def propose(self, view: View, slot: int) -> Move:
        kind = "random" if len(view.seen) < self.n_startup else "tpe"
        return Move(*new_proposal(view, self.space, kind, self.seed, slot), operator=kind)
