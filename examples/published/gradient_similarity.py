"""Gradient similarity: how far a step of training on the corpus would move the loss of an input.

Sources: Pruthi et al. 2020, "Estimating training data influence by tracing gradient descent" (TracIn), arXiv
2002.08484: products of loss gradients of two examples (section 3), of the last layer alone (section 4), an example with
itself as a sign of a wrong label (section 5.1); Charpiat et al. 2019, "Input similarity from the neural network
perspective", section 2, for their cosine.

Setting: last layer, one checkpoint (the target itself), learning rate 1.

Here: the gradient of the last layer is an outer product, so that sums over the corpus, all of it or those of one label,
are frozen as one matrix each. Where the matrices of the labels are too large for I(M) the sum over all is kept alone.

Shape legend: n = inputs, D = width, C = outputs.
"""

import torch

from lensmith import Interpretation, Method, Represent, Unembed, at_readout, by_group


class GradientSimilarity(Method):
    def interpret(self, target, budget):
        spec, (inputs, labels) = target.spec, target.corpus("train")
        unembed, streams = Unembed.of(spec, target.weights()), spec.with_role("residual")
        if unembed is None or not streams:
            return Interpretation(data={"stream": ""})
        found = target.forward(inputs, capture=[streams[-1].name])
        stream = unembed.normed(at_readout(spec, streams[-1].name, found.captured[streams[-1].name]))
        error = residue(found.outputs, labels)
        arrays = unembed.arrays() | {"all": error.T @ stream / len(inputs)}
        known = labels.unique()
        if 4 * len(known) * unembed.matrix.numel() < budget.max_bytes / 2:
            arrays["of_label"] = torch.zeros(spec.n_outputs, *unembed.matrix.shape)
            for label in known:
                mine = labels == label
                arrays["of_label"][label] = error[mine].T @ stream[mine] / mine.sum()
        return Interpretation(arrays, {"stream": streams[-1].name})

    def answer(self, query, interpretation, target):
        name = interpretation.data["stream"]
        if not name or not isinstance(query, Represent):
            return None
        return by_group(query, lambda one: read(target, one.inputs, one.labels, name, interpretation.arrays))


def residue(outputs, labels):
    """(n, C) slope of the loss in the outputs."""
    return outputs.softmax(-1) - torch.nn.functional.one_hot(labels, outputs.shape[-1])


def read(target, inputs, labels, name, arrays):
    """(n, k): loss, product of the gradient with itself, with the corpus's mean gradient and with that of the label's
    part of it, and the cosines of the two."""
    found = target.forward(inputs, capture=[name])
    stream = Unembed.kept(arrays).normed(at_readout(target.spec, name, found.captured[name]))
    asked = found.outputs.argmax(-1) if labels is None else labels
    error = residue(found.outputs, asked)
    own = (error * error).sum(-1) * (stream * stream).sum(-1)
    loss = -found.outputs.log_softmax(-1).gather(-1, asked.unsqueeze(-1)).squeeze(-1)
    columns, means = [loss, own], [arrays["all"]]
    if "of_label" in arrays:
        means.append(arrays["of_label"][asked])
    for mean in means:
        product = (error.unsqueeze(1) @ mean @ stream.unsqueeze(-1)).flatten()
        size = (mean * mean).sum((-1, -2)).sqrt() * own.sqrt()
        columns += [product, product / (size + 1e-9)]
    return torch.stack(columns, dim=-1)
