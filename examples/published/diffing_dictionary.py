"""A dictionary of differences: sparse features learned on what variants and target do differently.

Sources: Lindsey et al. 2024, "Sparse crosscoders for cross-layer features and model diffing"; Minder et al. 2025,
"Overcoming sparsity artifacts in crosscoders to interpret chat-tuning", arXiv 2504.02922; a sparse dictionary on the
differences of activations is the simplest of the family ("diff-SAE").

Setting: 16 features, one of them active at a time, 10 rounds; every layer that the unembedding can read.

Here: no variant is there in the free phase, so the dictionary is learned in the answer, which is charged for it. One
active feature and no gradients: rounds of spherical k-means (Coates and Ng 2012, section 2), which is a TopK
autoencoder with k = 1 and tied weights, fitted by turns. It begins at differences spread evenly over variants. All
variants of a question share it, as a crosscoder's models do.

Shape legend: V = variants, m = inputs, D = width, F = features.
"""

import torch

from lensmith import Compare, Interpretation, Method, at_readout

FEATURES, ROUNDS = 16, 10
EPS = 1e-6


class DiffingDictionary(Method):
    def interpret(self, target, budget):
        return Interpretation(data={"layers": [hook.name for hook in target.spec.with_role("residual")]})

    def answer(self, query, interpretation, target):
        layers = interpretation.data["layers"]
        if not layers or not isinstance(query, Compare):
            return None
        original = target.forward(query.inputs, capture=layers).captured
        changed = target.variants(query.variants).forward(query.inputs, capture=layers).captured
        columns = []
        for name in layers:
            before, after = (at_readout(target.spec, name, found[name]) for found in (original, changed))
            difference = after - before  # (V, m, D)
            flat = difference.flatten(0, 1)
            code, missed = encode(flat, learn(flat))
            code, missed = code.reshape(*difference.shape[:2], -1), missed.reshape(difference.shape[:2])
            columns += [code.mean(1), code.amax(1), missed.mean(1, keepdim=True)]
        return torch.cat(columns, dim=-1)


def learn(x):
    """(n, D) differences -> (F, D) unit directions; fewer where there are fewer differences."""
    n = len(x)
    start = torch.tensor([i * n // min(FEATURES, n) for i in range(min(FEATURES, n))])
    features = unit(x.index_select(0, start))
    for _ in range(ROUNDS):
        code, _ = encode(x, features)
        features = unit(code.T @ x + EPS * features)  # a feature that nothing uses stays
    return features


def encode(x, features):
    """(n, D) -> (n, F) codes, all but the largest 0, and (n,) the squared length of what they miss."""
    product = x @ features.T
    best, chosen = product.max(-1, keepdim=True)
    code = torch.zeros_like(product).scatter(-1, chosen, best.clamp_min(0.0))
    return code, ((x - code @ features) ** 2).sum(-1)


def unit(x):
    return x / ((x * x).sum(-1, keepdim=True).sqrt() + EPS)
