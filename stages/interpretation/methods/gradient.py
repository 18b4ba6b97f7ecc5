"""First-order attributions: what a small change of the input, or of a component, would do to the answer.

Sources: gradient x input (Shrikumar et al. 2016, 1605.01713); attribution patching, the first-order estimate of an
ablation (Nanda 2023; Syed et al. 2023, 2310.10348): zero-ablating activation a changes the loss by about -a . dL/da.
Directions that are added are answered from slopes frozen in the free phase, changes that are sought by the slope at the
input; see stages/interpretation/slopes.py.

Shape legend: n = inputs, m = inputs per behaviour, S = segments, P = components.
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
    Propose,
    Query,
    Represent,
    Steer,
    by_group,
    segment_sums,
)
from stages.contracts.target import Objective, TargetAccess
from stages.interpretation.representation import by_component, hook_names
from stages.interpretation.slopes import best_changes, frozen_slopes, steered

__all__ = ["Gradient"]


def _size(values: Tensor) -> Tensor:
    flat = values.flatten(1)
    return (flat * flat).sum(-1).sqrt()


class Gradient(Method):
    name = "gradient"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        arrays = frozen_slopes(target, budget)
        return Interpretation(arrays, {"hook_points": hook_names(target.spec, ("residual", "mlp"))})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        names = interpretation.data["hook_points"]
        match query:
            case Represent():
                return by_group(query, lambda single: self._represent(single, names, target))
            case Attribute():
                return self._attribute(query, names, target)
            case Localise():
                return self._localise(query, target)
            case Compare():
                return self._compare(query, target)
            case Steer():
                return steered(query, interpretation, target)
            case Propose():
                return best_changes(query, target)

    def _represent(self, query: Represent, names: list[str], target: TargetAccess) -> Tensor:
        # Margin over gradient size is the distance to the decision boundary if the target were linear.
        leaf = target.spec.leaf
        wrt = list(dict.fromkeys([leaf, *names]))
        margin = target.gradients(query.inputs, Objective("margin"), wrt)
        columns = [margin.values]
        for grad in margin.grads.values():
            columns += [_size(grad), margin.values / (_size(grad) + 1e-6)]
        columns.append(margin.grads[leaf].flatten(1).abs().amax(-1))
        if query.labels is not None:
            loss = target.gradients(query.inputs, Objective("loss", query.labels), wrt)
            columns += [loss.values, *(_size(grad) for grad in loss.grads.values())]
        return torch.stack(columns, dim=-1)

    def _attribute(self, query: Attribute, names: list[str], target: TargetAccess) -> Answer:
        leaf = target.spec.leaf
        wrt = list(dict.fromkeys([leaf, *names]))
        result = target.gradients(query.inputs, Objective("log_prob", query.labels), wrt)
        if leaf == "input":
            at_input = result.grads["input"] * query.inputs
            out = [segment_sums(at_input, query.segments), segment_sums(result.grads["input"].abs(), query.segments)]
        else:  # of words: the embedding is among the names, and an id times a slope would mean nothing
            out = []
        tokens = target.spec.tokens
        if tokens is not None:
            places = [[t for index in segment for t in tokens[index]] for segment in query.segments]
            for name in names:
                out.append(segment_sums(result.grads[name] * result.captured[name], places))
        return torch.stack(out, dim=-1)

    def _localise(self, query: Localise, target: TargetAccess) -> Answer:
        names = sorted({component.hook_point for component in query.components})
        n, m = query.inputs.shape[:2]
        result = target.gradients(query.inputs.flatten(0, 1), Objective("loss", query.labels.flatten()), names)

        def effects(hook_point: str, axis: int, indices: Tensor) -> Tensor:
            grad, value = result.grads[hook_point], result.captured[hook_point]
            part = -(grad.index_select(axis, indices) * value.index_select(axis, indices)).movedim(axis, 0)
            return part.reshape(len(indices), n, m, -1).sum(-1)

        each = by_component(query.components, effects).transpose(0, 1)  # (n, P, m)
        return torch.stack([each.mean(-1), each.abs().mean(-1), each.amax(-1)], dim=-1)

    def _compare(self, query: Compare, target: TargetAccess) -> Answer:
        def profile(access: TargetAccess) -> tuple[Tensor, Tensor]:
            result = access.gradients(query.inputs, Objective("margin"), [access.spec.leaf])
            grad = result.grads[access.spec.leaf].flatten(result.values.dim())  # (m, X), or (V, m, X)
            size = (grad * grad).sum(-1).sqrt()
            return grad, torch.stack([result.values, size, result.values / (size + 1e-6)], dim=-1)

        grad, original = profile(target)
        changed_grad, changed = profile(target.variants(query.variants))
        by_pixel = (changed_grad.abs().mean(1) - grad.abs().mean(0)).sort(descending=True).values
        change = changed - original
        return torch.cat([change.mean(1), change.abs().mean(1), by_pixel[:, :4], changed.amin(1)], dim=-1)
