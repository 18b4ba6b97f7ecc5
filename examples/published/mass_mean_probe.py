"""Mass-mean probes: the difference of class means as a direction, tilted by the covariance.

Source: Marks and Tegmark 2023, "The geometry of truth", arXiv 2310.06824, section 5: theta = mean of the true ones less
mean of the false ones; for inputs like those it was fitted on, theta is multiplied by the inverse covariance of the
data around their class's mean.

Setting: none to be chosen. Layers are the residual streams, and the hidden layers of targets without positions.

Here: one probe for each answer of the target (its inputs against all others) in place of true against false. A
thousandth of the mean variance is added to the covariance, since hidden units that never fire have none.

Shape legend: n = inputs, D = width, C = outputs.
"""

import torch

from lensmith import Compare, Interpretation, Method, Represent, Steer, at_readout, by_group

FEW = 16
"""Outputs whose probes are all told; of more, that of the label and the largest are."""


class MassMeanProbe(Method):
    def interpret(self, target, budget):
        spec, (inputs, labels) = target.spec, target.corpus("train")
        names = [h.name for h in spec.hooks if h.role == "residual" or (h.role == "mlp" and spec.tokens is None)]
        captured, arrays = target.forward(inputs, capture=names).captured, {}
        for name in names:
            theta, probe, middle = fit(at_readout(spec, name, captured[name]), labels, spec.n_outputs)
            arrays |= {f"{name}.theta": theta, f"{name}.probe": probe, f"{name}.offset": -(middle * probe).sum(0)}
        return Interpretation(arrays, {"layers": names})

    def answer(self, query, interpretation, target):
        layers, arrays = interpretation.data["layers"], interpretation.arrays
        match query:
            case Represent():
                return by_group(query, lambda one: read(target, one.inputs, one.labels, layers, arrays))
            case Compare():
                original = read(target, query.inputs, query.labels, layers, arrays)
                change = read(target.variants(query.variants), query.inputs, query.labels, layers, arrays) - original
                return torch.cat([change.mean(1), change.abs().mean(1)], dim=-1)
            case Steer() if query.hook_point in layers:
                along = query.directions @ arrays[f"{query.hook_point}.theta"]
                read_off = query.directions @ arrays[f"{query.hook_point}.probe"]
                columns = [along.amax(-1), read_off.amax(-1)]
                if query.labels is not None:
                    at = query.labels.unsqueeze(-1)
                    columns += [found.gather(-1, at).squeeze(-1) for found in (along, read_off)]
                return torch.stack(columns, dim=-1)
            case _:
                return None


def fit(x, labels, n_outputs):
    """(n, D) activations -> theta, probe = inverse covariance times theta, and the point between the two means; each
    (D, C), zeros for an answer that is not among the labels or is the only one."""
    theta, middle, within = torch.zeros(x.shape[1], n_outputs), torch.zeros(x.shape[1], n_outputs), x.clone()
    for label in labels.unique():
        mine = labels == label
        within[mine] = x[mine] - x[mine].mean(0)
        if not mine.all():
            of, others = x[mine].mean(0), x[~mine].mean(0)
            theta[:, label], middle[:, label] = of - others, (of + others) / 2
    covariance = within.T @ within / len(x)
    ridge = 1e-3 * covariance.diagonal().mean() + 1e-12
    return theta, torch.linalg.solve(covariance + ridge * torch.eye(x.shape[1]), theta), middle


def read(access, inputs, labels, layers, arrays):
    """(..., n, k): at each layer the probe of the label (or of the target's answer) and the largest one; of few
    outputs all of them."""
    result = access.forward(inputs, capture=layers)
    asked = result.outputs.argmax(-1) if labels is None else labels.expand(result.outputs.shape[:-1])
    columns = []
    for name in layers:
        at = at_readout(access.spec, name, result.captured[name])
        found = at @ arrays[f"{name}.probe"] + arrays[f"{name}.offset"]
        columns += [found.gather(-1, asked.unsqueeze(-1)), found.amax(-1, keepdim=True)]
        if found.shape[-1] <= FEW:
            columns.append(found)
    return torch.cat(columns, dim=-1)
