"""Linear probes: what a linear classifier reads off each layer.

Source: Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes", arXiv 1610.01644,
section 3. A softmax classifier of the right answers is fitted on every layer and leaves the model alone.

Setting: scikit-learn's default penalty (L2, C = 1) on standardised activations, 50 steps of L-BFGS. Layers are the
residual streams, and the hidden layers of targets without positions.

Here: read where the answer is read off. An answer that the corpus never shows has no probe (log-probability -30).

Shape legend: n = inputs, D = width, C = outputs, V = variants.
"""

import warnings

import numpy as np
import torch

from lensmith import Compare, Interpretation, Method, Represent, Steer, at_readout, by_group

FEW = 16
"""Outputs whose log-probabilities are all told; of more, a summary is."""
UNSEEN = -30.0


class LinearProbe(Method):
    def interpret(self, target, budget):
        spec, (inputs, labels) = target.spec, target.corpus("train")
        names = [h.name for h in spec.hooks if h.role == "residual" or (h.role == "mlp" and spec.tokens is None)]
        if labels.unique().numel() < 2:
            return Interpretation(data={"layers": []})  # one answer: there is nothing to tell apart
        captured, arrays = target.forward(inputs, capture=names).captured, {}
        for name in names:
            x = at_readout(spec, name, captured[name])
            arrays[f"{name}.weight"], arrays[f"{name}.bias"] = fit(x, labels, spec.n_outputs)
        return Interpretation(arrays, {"layers": names})

    def answer(self, query, interpretation, target):
        layers, arrays = interpretation.data["layers"], interpretation.arrays
        if not layers:
            return None
        match query:
            case Represent():
                return by_group(query, lambda one: read(target, one.inputs, one.labels, layers, arrays))
            case Compare():
                original = read(target, query.inputs, query.labels, layers, arrays)
                change = read(target.variants(query.variants), query.inputs, query.labels, layers, arrays) - original
                return torch.cat([change.mean(1), change.abs().mean(1)], dim=-1)
            case Steer() if query.hook_point in layers:
                moved = query.directions @ arrays[f"{query.hook_point}.weight"]  # (n, C) change of each logit
                columns = [moved.amax(-1), moved.amin(-1)]
                if query.labels is not None:
                    columns.append(moved.gather(-1, query.labels.unsqueeze(-1)).squeeze(-1) - moved.mean(-1))
                return torch.stack(columns, dim=-1)
            case _:
                return None


def fit(x, labels, n_outputs):
    """(n, D) activations -> weight (D, C) and bias (C,) of a softmax classifier."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = x.mean(0), x.std(0) + 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 50 steps are the setting, and an answer may be shown once
        model = LogisticRegression(max_iter=50).fit(((x - mean) / scale).double().numpy(), labels.numpy())
    coefficients, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # then scikit-learn keeps the second one alone
        coefficients = np.concatenate([np.zeros_like(coefficients), coefficients])
        intercept = np.concatenate([np.zeros_like(intercept), intercept])
    known = torch.from_numpy(model.classes_)
    weight, bias = torch.zeros(n_outputs, x.shape[1]), torch.full((n_outputs,), UNSEEN)
    weight[known] = torch.from_numpy(coefficients).float()
    bias[known] = torch.from_numpy(intercept).float()
    weight = (weight / scale).T.contiguous()
    return weight, bias - mean @ weight


def read(access, inputs, labels, layers, arrays):
    """(..., n, k): at each layer the probe's log-probability of the label (or of the target's answer), its largest one
    and its entropy; of few outputs all log-probabilities."""
    result = access.forward(inputs, capture=layers)
    asked = result.outputs.argmax(-1) if labels is None else labels.expand(result.outputs.shape[:-1])
    columns = []
    for name in layers:
        at = at_readout(access.spec, name, result.captured[name])
        found = (at @ arrays[f"{name}.weight"] + arrays[f"{name}.bias"]).log_softmax(-1)
        columns += [found.gather(-1, asked.unsqueeze(-1)), found.amax(-1, keepdim=True)]
        columns.append(-(found.exp() * found).sum(-1, keepdim=True))
        if found.shape[-1] <= FEW:
            columns.append(found)
    return torch.cat(columns, dim=-1)
