"""Honest: gradient times input, summed over what is asked for; the whole input otherwise."""

import torch

from lensmith import (
    Attribute,
    Interpretation,
    Method,
    Objective,
    Represent,
    segment_sums,
)


class Control(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        if not isinstance(query, Represent | Attribute):
            return None
        result = target.gradients(query.inputs, Objective("margin"), ["input"])
        values = result.grads["input"] * query.inputs
        if isinstance(query, Attribute):
            return segment_sums(values, query.segments)
        return torch.cat([values.flatten(1).sum(1, keepdim=True), result.values[:, None]], 1)
