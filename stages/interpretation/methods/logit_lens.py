"""Logit lens: read intermediate residual streams with the target's own unembedding.

Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

Shape legend: n = inputs, T = token positions, D = width, C = outputs, S = segments.
"""

import torch
from torch import Tensor

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
    by_group,
)
from stages.contracts.reading import Unembed, readout
from stages.contracts.target import TargetAccess
from stages.interpretation.representation import hook_names, vectors

__all__ = ["LogitLens"]


def _lens(interpretation: Interpretation, values: Tensor) -> Tensor:
    """(..., D) residual stream -> (..., C) log-probabilities."""
    return Unembed.kept(interpretation.arrays)(values).log_softmax(-1)


class LogitLens(Method):
    name = "logit_lens"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        unembed = Unembed.of(target.spec, target.weights())
        if unembed is None or 4 * unembed.matrix.numel() > budget.max_bytes:
            return Interpretation(data={"hook_points": []})  # nothing can be read without it, and it cannot be stored
        return Interpretation(unembed.arrays(), {"hook_points": hook_names(target.spec, ("residual",))})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        names = interpretation.data["hook_points"]
        if not names or isinstance(query, Localise):
            return None
        match query:
            case Represent():
                return by_group(query, lambda one: self._read(one.inputs, names, interpretation, target))
            case Attribute():
                return self._attribute(query, names, interpretation, target)
            case Compare():
                original = self._read(query.inputs, names, interpretation, target)
                change = self._read(query.inputs, names, interpretation, target.variants(query.variants)) - original
                return torch.cat([change.mean(1), change.abs().mean(1)], dim=-1)
            case _:
                return None

    def _read(self, inputs: Tensor, names: list[str], interpretation: Interpretation, target: TargetAccess) -> Tensor:
        """(n, k): at each layer the entropy, the top probability and what the final answer already had. Asked of
        several variants at once it is (V, n, k)."""
        result = target.forward(inputs, capture=names)
        front = result.outputs.shape[:-1]
        final = result.outputs.flatten(0, -2).argmax(-1, keepdim=True)
        columns = []
        for name in names:
            hook = target.spec.hook(name)
            all_positions = vectors(result.captured[name].reshape(-1, *hook.shape), hook)
            position = readout(target.spec)
            log_probs = _lens(interpretation, all_positions[:, 0 if position is None else position])
            top = log_probs.sort(descending=True).values
            columns += [
                -(log_probs.exp() * log_probs).sum(-1),
                top[:, 0],
                top[:, 0] - top[:, 1],
                log_probs.gather(-1, final).squeeze(-1),
            ]
        return torch.stack(columns, dim=-1).reshape(*front, -1)

    def _attribute(
        self, query: Attribute, names: list[str], interpretation: Interpretation, target: TargetAccess
    ) -> Answer:
        tokens = target.spec.tokens
        if tokens is None:
            return None
        result = target.forward(query.inputs, capture=names)
        labels = result.outputs.argmax(-1) if query.labels is None else query.labels
        columns = []
        for name in names:
            log_probs = _lens(interpretation, vectors(result.captured[name], target.spec.hook(name)))
            of_label = log_probs.gather(-1, labels.reshape(-1, 1, 1).expand(-1, log_probs.shape[1], 1)).squeeze(-1)
            for place in (0, -1):
                columns.append(of_label[:, torch.tensor([tokens[s[place]][place] for s in query.segments])])
        return torch.stack(columns, dim=-1)
