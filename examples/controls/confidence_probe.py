"""A control: a probe for how sure the target is of its answer, on every layer. It knows no task.

In the free phase a linear probe is fitted from the activations of each layer to the margin of the target's answer over
the next one. How sure a model is bears on many questions (noise, pruning, deletion), so unlike a probe for one question
this one may be worth something on families that its author has not seen (docs/people.md has what it earned).

Shape legend: n = inputs, D = width.
"""

import torch

from lensmith import Interpretation, Method, Represent, at_readout, by_group

PENALTY = 1e-2


class ConfidenceProbe(Method):
    def interpret(self, target, budget):
        spec, inputs = target.spec, target.corpus("train").inputs
        names = [h.name for h in spec.hooks if h.role == "residual" or (h.role == "mlp" and spec.tokens is None)]
        found, arrays = target.forward(inputs, capture=names), {}
        best = found.outputs.topk(2, dim=-1).values
        truth = best[:, 0] - best[:, 1]
        for name in names:
            x = at_readout(spec, name, found.captured[name])
            arrays |= {f"{name}.{part}": value for part, value in fit(x, truth).items()}
        return Interpretation(arrays, {"layers": names})

    def answer(self, query, interpretation, target):
        layers, arrays = interpretation.data["layers"], interpretation.arrays
        if not isinstance(query, Represent):
            return None

        def single(one):
            captured = target.forward(one.inputs, capture=layers).captured
            columns = []
            for name in layers:
                x = at_readout(target.spec, name, captured[name])
                columns.append(x @ arrays[f"{name}.weight"] + arrays[f"{name}.bias"])
            return torch.stack(columns, dim=-1)

        return by_group(query, single)


def fit(x, truth):
    """Ridge regression: weight (D,) and bias of a linear probe."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z, y = (x - mean) / scale, truth - truth.mean()
    weight = torch.linalg.solve(z.T @ z + PENALTY * len(z) * torch.eye(z.shape[1]), z.T @ y) / scale
    return {"weight": weight, "bias": (truth.mean() - mean @ weight).reshape(1)}
