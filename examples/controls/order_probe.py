"""A control: a probe for one question. It is told in the free phase what family it will be asked, and must not carry
over.

It makes its own copies of the train family `order_sensitivity`: it takes episodes of the corpus, adds the noise of that
family, shows their first five examples in random orders, and fits a linear probe from activations to how much the
log-probability of the label varies. That is what an author does who has read one task and calls the result a general
method. On its own family it may earn; on others it must not (docs/people.md has what it earned).

Shape legend: n = inputs, D = width.
"""

import torch

from lensmith import Interpretation, Method, Represent, at_readout, by_group, keep_segments

PRESENT, GRAIN, SCALE = 5, 0.5, 0.05
"""Of the family: examples that are shown, noise on pixels, and the spread below which its truth is linear."""
ORDERS, PENALTY = 24, 1e-2


class OrderProbe(Method):
    def interpret(self, target, budget):
        spec = target.spec
        if "examples" not in spec.offers:
            return Interpretation(data={"layers": []})  # nothing that could stand in another order
        (inputs, labels), generator = target.corpus("train"), budget.generator()
        names, n_examples = [hook.name for hook in spec.with_role("residual")], inputs.shape[1] - 1
        keep = torch.arange(n_examples + 1) < PRESENT
        keep[-1] = True
        noise = GRAIN * torch.randn(inputs.shape, generator=generator)
        noise[..., [spec.present_channel, spec.present_channel - 1]] = 0.0
        shown, seen = keep_segments(spec, inputs + noise, keep.expand(len(inputs), -1)), []
        for _ in range(ORDERS):
            order = torch.cat([torch.randperm(PRESENT, generator=generator), torch.arange(PRESENT, n_examples + 1)])
            outputs = target.forward(shown[:, order]).outputs
            seen.append(outputs.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1))
        truth = (torch.stack(seen).std(0) / SCALE).log1p()
        return Interpretation(fit(look(target, shown, labels, names), truth), {"layers": names})

    def answer(self, query, interpretation, target):
        layers, arrays = interpretation.data["layers"], interpretation.arrays
        if not layers or not isinstance(query, Represent):
            return None

        def single(one):
            return (look(target, one.inputs, one.labels, layers) @ arrays["weight"] + arrays["bias"]).unsqueeze(-1)

        return by_group(query, single)


def look(target, inputs, labels, layers):
    """(n, D + 1): the label's log-probability, and activations where the answer is read off."""
    found = target.forward(inputs, capture=layers)
    asked = found.outputs.argmax(-1) if labels is None else labels
    told = found.outputs.log_softmax(-1).gather(-1, asked.unsqueeze(-1))
    return torch.cat([told, *(at_readout(target.spec, name, found.captured[name]) for name in layers)], dim=-1)


def fit(x, truth):
    """Ridge regression: weight (D,) and bias of a linear probe."""
    mean, scale = x.mean(0), x.std(0) + 1e-6
    z, y = (x - mean) / scale, truth - truth.mean()
    weight = torch.linalg.solve(z.T @ z + PENALTY * len(z) * torch.eye(z.shape[1]), z.T @ y) / scale
    return {"weight": weight, "bias": (truth.mean() - mean @ weight).reshape(1)}
