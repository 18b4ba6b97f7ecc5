"""Answers every query with noise: the control that must not be better than declining.

Noise that depends on no input. (A random *projection* of activations would be informative, so it is no control.)
"""

import math

import torch

from stages.contracts.method import (
    Answer,
    Attribute,
    Budget,
    Compare,
    Interpretation,
    Localise,
    Method,
    Query,
    Represent,
    Steer,
)
from stages.contracts.target import TargetAccess

__all__ = ["RandomFeatures"]

N_FEATURES = 16


class RandomFeatures(Method):
    name = "random_features"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        return Interpretation(arrays={"noise": torch.randn(4096, N_FEATURES, generator=budget.generator())})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        match query:
            case Represent():
                shape: tuple[int, ...] = (query.inputs.shape[0],)
            case Attribute():
                shape = (query.inputs.shape[0], len(query.segments))
            case Localise():
                shape = (query.inputs.shape[0], len(query.components))
            case Compare():
                shape = (len(query.variants),)
            case Steer():
                shape = (len(query.directions),)
            case _:
                return None
        rows = math.prod(shape)
        noise = interpretation.arrays["noise"]
        return noise[torch.arange(rows) % len(noise)].reshape(*shape, N_FEATURES)
