"""Attention rollout: attention of all layers multiplied up, with the residual stream as half of each.

Source: Abnar and Zuidema 2020, "Quantifying attention flow in transformers", arXiv 2005.00928, section 3, eq. 1: mean
over heads, half of it identity, matrices of the layers multiplied.

Setting: none to be chosen.

Here: only the row of the place where the answer is read off is needed, so it is carried down the layers. What a segment
has is the sum over its places. Targets without attention are declined.

Shape legend: n = inputs, T = places, S = segments.
"""

import torch

from lensmith import Attribute, Interpretation, Method


class AttentionRollout(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        spec = target.spec
        names = [hook.name for hook in spec.with_role("pattern")]
        if not isinstance(query, Attribute) or not names or spec.tokens is None:
            return None
        captured = target.forward(query.inputs, capture=names).captured
        row = rollout([captured[name].mean(1) for name in names], spec.tokens[-1][-1])
        places = [[t for index in segment for t in spec.tokens[index]] for segment in query.segments]
        return torch.stack([row[:, of].sum(-1) for of in places], dim=1)


def rollout(layers, place):
    """(n, T): the row of one place in the product of the layers' (n, T, T), first layer first."""
    row = 0.0
    for number, attention in enumerate(reversed(layers)):
        if number == 0:
            row = torch.zeros(attention.shape[0], attention.shape[-1])
            row[:, place] = 1.0
        row = 0.5 * row + 0.5 * (row.unsqueeze(1) @ attention).squeeze(1)
    return row
