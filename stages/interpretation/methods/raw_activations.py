"""Activations as they are, at every residual-stream and hidden-layer hook point."""

from stages.contracts.method import (
    Answer,
    Budget,
    Interpretation,
    Method,
    Query,
)
from stages.contracts.target import TargetAccess
from stages.interpretation.representation import Encode, Pooling, answer_with, bounded, hook_names

__all__ = ["RawActivations"]


class RawActivations(Method):
    """
    Args:
        roles: hook points used, by role.
        pooling: which positions Represent and Compare read.
    """

    name = "raw_activations"

    def __init__(self, roles: tuple[str, ...] = ("residual", "mlp"), pooling: Pooling = "readout") -> None:
        self.roles, self.pooling = roles, pooling

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        return Interpretation(data={"hook_points": bounded(target.spec, hook_names(target.spec, self.roles))})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        names = interpretation.data["hook_points"]
        return answer_with(Encode(interpretation), names, query, interpretation, target, self.pooling)
