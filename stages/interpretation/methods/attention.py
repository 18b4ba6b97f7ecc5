"""Attention patterns and direct logit attribution of heads.

Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": a head's output is a sum over source
positions of pattern x value x W_O, so its direct effect on an output splits over heads and sources. The final
layer norm is taken at its gain, its scale frozen into the units (features are rescaled by the executor anyway).

Shape legend: n = inputs, m = inputs per behaviour, H = heads, T = token positions, K = d_head, D = d_model, C =
outputs, S = segments, P = components.
"""

from collections.abc import Mapping

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

__all__ = ["Attention"]


class Attention(Method):
    name = "attention"

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        spec = target.spec
        layers = [hook.name.removesuffix("hook_pattern") for hook in spec.with_role("pattern")]
        weights = target.weights()
        unembed = Unembed.of(spec, weights)
        if not layers or unembed is None:
            return Interpretation(data={"layers": []})
        gain = unembed.norm.weight if unembed.norm else torch.ones(unembed.matrix.shape[1])
        sizes = [spec.hook(f"{layer}hook_z").shape[1:] for layer in layers]
        if 4 * spec.n_outputs * sum(heads * d_head for heads, d_head in sizes) > budget.max_bytes:
            return Interpretation(data={"layers": []})  # more outputs than can be stored, so nothing to project on
        arrays = {}
        for layer, (heads, d_head) in zip(layers, sizes, strict=True):
            out = _output_matrix(weights, layer)
            direct = (unembed.matrix * gain) @ (out - out.mean(0))  # (C, H K)
            arrays[f"{layer}direct"] = direct.reshape(-1, heads, d_head).contiguous()
        return Interpretation(arrays, {"layers": layers})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        if not interpretation.data["layers"]:
            return None
        match query:
            case Represent():
                return by_group(query, lambda one: self._represent(one.inputs, interpretation, target))
            case Attribute():
                return self._attribute(query, interpretation, target)
            case Localise():
                return self._localise(query, interpretation, target)
            case Compare():
                original = self._represent(query.inputs, interpretation, target)
                change = self._represent(query.inputs, interpretation, target.variants(query.variants)) - original
                return torch.cat([change.mean(1), change.abs().mean(1)], dim=-1)
            case _:
                return None

    def _effects(
        self, inputs: Tensor, labels: Tensor | None, interpretation: Interpretation, target: TargetAccess
    ) -> tuple[Tensor, Tensor]:
        """Pattern from the read-out position and direct effect on the label's centred logit: both (n, heads, T)."""
        layers = interpretation.data["layers"]
        names = [f"{layer}{hook}" for layer in layers for hook in ("hook_pattern", "hook_v")]
        result = target.forward(inputs, capture=names)
        # Several variants asked at once have an axis in front: here they are so many more inputs.
        of = {name: result.captured[name].reshape(-1, *target.spec.hook(name).shape) for name in names}
        chosen = result.outputs.flatten(0, -2).argmax(-1) if labels is None else labels
        patterns, effects = [], []
        for layer in layers:
            pattern = of[f"{layer}hook_pattern"][:, :, readout(target.spec)]  # (n, H, T)
            direct = interpretation.arrays[f"{layer}direct"]
            centred = (direct - direct.mean(0))[chosen]  # (n, H, K)
            values = of[f"{layer}hook_v"]
            shared = centred.shape[1] // values.shape[2]  # heads that read the same values (grouped-query attention)
            values = values.repeat_interleave(shared, dim=2) if shared > 1 else values
            value = (values.transpose(1, 2) * centred.unsqueeze(2)).sum(-1)  # (n, H, T)
            patterns.append(pattern)
            effects.append(pattern * value)
        return torch.cat(patterns, dim=1), torch.cat(effects, dim=1)

    def _represent(self, inputs: Tensor, interpretation: Interpretation, target: TargetAccess) -> Tensor:
        pattern, effect = self._effects(inputs, None, interpretation, target)
        entropy = -(pattern * (pattern + 1e-9).log()).sum(-1)
        features = torch.cat([entropy, pattern.amax(-1), effect.sum(-1)], dim=-1)
        n = inputs.shape[0]
        return features if len(features) == n else features.reshape(-1, n, features.shape[-1])

    def _attribute(self, query: Attribute, interpretation: Interpretation, target: TargetAccess) -> Answer:
        tokens = target.spec.tokens
        if tokens is None:
            return None
        pattern, effect = self._effects(query.inputs, query.labels, interpretation, target)
        columns = []
        for segment in query.segments:
            places = [token for index in segment for token in tokens[index]]
            here, there = effect[..., places].sum(-1), pattern[..., places].sum(-1)
            columns.append(torch.cat([here.sum(-1, keepdim=True), here, there], dim=-1))
        return torch.stack(columns, dim=1)

    def _localise(self, query: Localise, interpretation: Interpretation, target: TargetAccess) -> Answer:
        """Direct effect of each head; position components get what all heads read from there."""
        n, m = query.inputs.shape[:2]
        flat = query.inputs.flatten(0, 1)
        pattern, effect = self._effects(flat, query.labels.flatten(), interpretation, target)
        layers = interpretation.data["layers"]
        heads = effect.shape[1] // len(layers)
        columns = []
        for hook_point, axis, index in query.components:
            layer = next((i for i, name in enumerate(layers) if hook_point.startswith(name)), None)
            if layer is not None and axis == 2:
                head = layer * heads + index
                columns.append(torch.stack([effect[:, head].sum(-1), pattern[:, head].amax(-1)], dim=-1))
            elif axis == 1 and target.spec.tokens is not None and len(target.spec.hook(hook_point).shape) == 2:
                columns.append(torch.stack([effect[..., index].sum(-1), pattern[..., index].amax(-1)], dim=-1))
            else:
                return None
        each = torch.stack(columns, dim=1).reshape(n, m, len(columns), 2)
        return torch.cat([each.mean(1), each.abs().amax(1)], dim=-1)


def _output_matrix(weights: Mapping[str, Tensor], layer: str) -> Tensor:
    """(D, H K) what a layer's heads write with: ``W_O.weight`` of a linear layer, or TransformerLens's (H, K, D)."""
    if f"{layer}W_O" in weights:
        return weights[f"{layer}W_O"].flatten(0, 1).T
    return weights[f"{layer}W_O.weight"]
