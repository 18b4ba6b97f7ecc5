"""Mahalanobis distance to the nearest class, at each layer.

Source: Lee et al. 2018, "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
arXiv 1807.03888, section 2: Gaussians around the means of the classes with one covariance, eq. 1; the score of an input
is its distance to the nearest one, eq. 2; layers are features of an ensemble, section 2.2.

Setting: none to be chosen. Layers are the residual streams, and the hidden layers of targets without positions.

Here: without the noise that the paper adds to inputs (its eq. 3), which takes a gradient. A thousandth of the mean
variance is added to the covariance, since hidden units that never fire have none. The executor, who weighs the layers,
stands in for the logistic regression of the paper.

Shape legend: n = inputs, D = width, C = outputs.
"""

import torch

from lensmith import Compare, Interpretation, Method, Represent, at_readout, by_group


class Mahalanobis(Method):
    def interpret(self, target, budget):
        spec, (inputs, labels) = target.spec, target.corpus("train")
        names = [h.name for h in spec.hooks if h.role == "residual" or (h.role == "mlp" and spec.tokens is None)]
        captured, arrays = target.forward(inputs, capture=names).captured, {}
        known = labels.unique()
        row = torch.full((spec.n_outputs,), -1)
        row[known] = torch.arange(len(known))
        for name in names:
            arrays[f"{name}.white"], arrays[f"{name}.means"] = fit(at_readout(spec, name, captured[name]), labels)
        return Interpretation(arrays | {"row": row}, {"layers": names})

    def answer(self, query, interpretation, target):
        layers, arrays = interpretation.data["layers"], interpretation.arrays
        match query:
            case Represent():
                return by_group(query, lambda one: read(target, one.inputs, one.labels, layers, arrays))
            case Compare():
                original = read(target, query.inputs, query.labels, layers, arrays)
                change = read(target.variants(query.variants), query.inputs, query.labels, layers, arrays) - original
                return torch.cat([change.mean(1), change.abs().mean(1)], dim=-1)
            case _:
                return None


def fit(x, labels):
    """(n, D) activations -> what whitens them (D, D), and the whitened means of the classes there are (K, D)."""
    known = labels.unique()
    means = torch.stack([x[labels == label].mean(0) for label in known])
    around = x - means[torch.searchsorted(known, labels)]
    covariance = (around.T @ around).double() / len(x)
    covariance += (1e-3 * covariance.diagonal().mean() + 1e-12) * torch.eye(x.shape[1])
    white = torch.linalg.cholesky(torch.linalg.inv(covariance)).float()  # white white^T is the inverse covariance
    return white, means @ white


def read(access, inputs, labels, layers, arrays):
    """(..., n, 2 layers): squared distance to the nearest class, and to that of the label (or of the target's answer);
    where the corpus never shows that, to the nearest."""
    result = access.forward(inputs, capture=layers)
    asked = result.outputs.argmax(-1) if labels is None else labels.expand(result.outputs.shape[:-1])
    row = arrays["row"][asked].unsqueeze(-1)
    columns = []
    for name in layers:
        distances = squared(at_readout(access.spec, name, result.captured[name]), arrays, name)
        nearest = distances.amin(-1, keepdim=True)
        own = distances.gather(-1, row.clamp_min(0))
        columns += [nearest, torch.where(row >= 0, own, nearest)]
    return torch.cat(columns, dim=-1)


def squared(at, arrays, name):
    """(..., D) -> (..., K) squared Mahalanobis distances to the means."""
    z, means = at @ arrays[f"{name}.white"], arrays[f"{name}.means"]
    return (z * z).sum(-1, keepdim=True) - 2.0 * (z @ means.T) + (means * means).sum(-1)
