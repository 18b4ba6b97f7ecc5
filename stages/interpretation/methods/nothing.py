"""Declines every query: the control that must score exactly 0."""

from stages.contracts.method import (
    Answer,
    Budget,
    Interpretation,
    Method,
    Query,
)
from stages.contracts.target import TargetAccess

__all__ = ["Nothing"]


class Nothing(Method):
    name = "nothing"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        return Interpretation()

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        return None
