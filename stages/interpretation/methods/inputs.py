"""Answers with the inputs themselves: a control. What they say the executor knows already, so it must not be better
than the baseline."""

import torch
from torch import Tensor

from stages.contracts.method import (
    Answer,
    Attribute,
    Budget,
    Interpretation,
    Localise,
    Method,
    Query,
    Represent,
    Steer,
)
from stages.contracts.target import TargetAccess

__all__ = ["Inputs"]

WIDEST = 4096
"""Features an answer may have."""


class Inputs(Method):
    name = "inputs"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        return Interpretation()

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        match query:
            case Represent():
                return query.inputs.flatten(1)[:, :WIDEST]
            case Attribute():
                return torch.stack([_part(query.inputs, segment) for segment in query.segments], dim=1)
            case Localise():
                mean = query.inputs.flatten(2).mean(1)[:, :WIDEST]
                return mean.unsqueeze(1).expand(-1, len(query.components), -1)
            case Steer():
                return query.directions.flatten(1)[:, :WIDEST]
            case _:
                return None


def _part(inputs: Tensor, segment: tuple[int, ...]) -> Tensor:
    """What stands in a segment, as long as the segments are, or its mean."""
    part = inputs[:, list(segment)]
    return (part if part.dim() == 2 else part.mean(1))[:, :WIDEST]
