"""A small model of what the target answers, fitted in the free phase on its outputs alone: a control. It looks at
nothing inside, so whatever it earns is no interpretation; it must not be better than the baseline.

Random features of the inputs (a fixed projection and a ReLU), and ridge regression from them to the target's logits
(Rahimi and Recht 2007, "Random features for large-scale kernel machines"). An id is no amount: a word is shown by waves
of its id at random frequencies, which are almost orthogonal for different words.
"""

from collections.abc import Mapping

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
    by_group,
)
from stages.contracts.target import TargetAccess

__all__ = ["Surrogate"]

CORPUS_INPUTS = 2000
N_HIDDEN = 128
N_WAVES = 16
"""Waves that show one word."""
PENALTY = 1e-2
"""Of the ridge regression, on features of unit variance, times the number of inputs."""


class Surrogate(Method):
    name = "surrogate"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        inputs = target.corpus("train").inputs[:CORPUS_INPUTS]
        waves = {}
        if target.spec.n_vocabulary is not None:
            waves["waves"] = torch.rand(N_WAVES, generator=budget.generator()) * 6.28
        flat, outputs = _flat(inputs.float(), waves), target.forward(inputs).outputs
        outputs = outputs[:, _told_apart(outputs, budget.max_bytes)]
        weight = torch.randn(flat.shape[1], N_HIDDEN, generator=budget.generator()) / flat.shape[1] ** 0.5
        arrays = {"mean": flat.mean(0), "project": weight}
        hidden = _hidden(flat, arrays)
        arrays["scale"] = 1.0 / (hidden.std(0) + 1e-3)
        scaled = hidden * arrays["scale"]
        centre, offset = scaled.mean(0), outputs.mean(0)
        gram = (scaled - centre).T @ (scaled - centre) + PENALTY * len(flat) * torch.eye(N_HIDDEN)
        read = torch.linalg.solve(gram, (scaled - centre).T @ (outputs - offset))
        return Interpretation(waves | arrays | {"read": read, "offset": offset - centre @ read})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        match query:
            case Represent():
                return by_group(query, lambda one: _features(_outputs(one.inputs, interpretation)))
            case Attribute() if query.inputs.dim() > 1:
                whole = _outputs(query.inputs, interpretation)
                cut = [_outputs(_without(query.inputs, segment), interpretation) for segment in query.segments]
                return torch.stack([whole - one for one in cut], dim=1)
            case Localise():
                outputs = _outputs(query.inputs.flatten(0, 1), interpretation)
                mean = outputs.view(*query.inputs.shape[:2], -1).mean(1)
                return mean.unsqueeze(1).expand(-1, len(query.components), -1)
            case _:
                return None


def _told_apart(outputs: Tensor, max_bytes: int) -> Tensor:
    """Indices, in rising order, of the outputs that vary most, as many as half of I(M) holds a column of weights of."""
    most = max(2, max_bytes // 2 // (outputs.element_size() * (N_HIDDEN + 1)))
    return outputs.var(0).argsort(descending=True, stable=True)[:most].sort().values


def _flat(inputs: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    """(n, *input_shape) -> (n, X): numbers that the surrogate can calculate with."""
    if "waves" not in arrays:
        return inputs.flatten(1)
    return (torch.cos(inputs[..., :1] * arrays["waves"]) * inputs[..., 1:]).flatten(1)


def _hidden(flat: Tensor, arrays: dict[str, Tensor]) -> Tensor:
    return ((flat - arrays["mean"]) @ arrays["project"]).relu()


def _outputs(inputs: Tensor, interpretation: Interpretation) -> Tensor:
    """(n, *input_shape) -> (n, C) what the target would say."""
    arrays = dict(interpretation.arrays)
    return (_hidden(_flat(inputs, arrays), arrays) * arrays["scale"]) @ arrays["read"] + arrays["offset"]


def _features(outputs: Tensor) -> Tensor:
    log_probs = outputs.log_softmax(-1)
    best = outputs.topk(2, dim=-1).values
    entropy = -(log_probs.exp() * log_probs).sum(-1, keepdim=True)
    return torch.cat([outputs, best[:, :1] - best[:, 1:], entropy], dim=-1)


def _without(inputs: Tensor, segment: tuple[int, ...]) -> Tensor:
    """The inputs with zeros in a segment; of a word that is its presence as well."""
    kept = torch.ones(inputs.shape[1])
    kept[list(segment)] = 0.0
    return inputs * kept.view(-1, *([1] * (inputs.dim() - 2)))
