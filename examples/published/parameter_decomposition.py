"""Parameter decomposition: the last weight matrix as a sum of rank-one parts, few of which matter for an input.

Source: Bushnaq, Braun and Sharkey 2025, "Stochastic parameter decomposition", arXiv 2506.20790, section 2: parts u v^T
whose sum is the matrix; for each input and part a causal importance between 0 and 1, computed by a small network of its
own from v . x; parts are multiplied by random numbers between their importance and 1, and the outputs must stay what
they are; importances are pushed to 0.

Setting: as in the authors' smallest experiment (TMS 5-2) where it can be: importance networks of 16 hidden units with
leaky hard sigmoids, 200 steps on faithfulness alone (rate 1e-2), then Adam with rate 1e-3 and a cosine schedule, weight
3e-3 on the sum of importances. Twice as many parts as the matrix has ranks.

Here: one matrix, the unembedding, since it is the one that every target has between a hook point and the outputs; 600
steps in place of 10,000; the loss of faithfulness is the sum of the squared differences of the matrices; outputs stay
by the divergence of their probabilities; the corpus is the data. The reconstruction layer by layer is the same thing,
as there is one layer. Features are importances and what each part reads; of variants, how the change of the matrix lies
on the parts.

Shape legend: n = inputs, D = width, C = outputs, P = parts, H = hidden units, V = variants.
"""

import math

import torch

from lensmith import Compare, Interpretation, Method, Represent, Unembed, at_readout, by_group

HIDDEN, STEPS, RATE, SPARSITY, BATCH, LEAK = 16, 600, 1e-3, 3e-3, 256, 0.01
WARM_STEPS, WARM_RATE = 200, 1e-2


class ParameterDecomposition(Method):
    def interpret(self, target, budget):
        spec, streams = target.spec, target.spec.with_role("residual")
        unembed = Unembed.of(spec, target.weights())
        if unembed is None or not streams:
            return Interpretation(data={"stream": ""})
        name = streams[-1].name
        captured = target.forward(target.corpus("train").inputs, capture=[name]).captured[name]
        stream = unembed.normed(at_readout(spec, name, captured))
        parts = decompose(unembed.matrix, unembed.bias, stream, budget.generator())
        return Interpretation(unembed.arrays() | parts, {"stream": name})

    def answer(self, query, interpretation, target):
        name, arrays = interpretation.data["stream"], interpretation.arrays
        if not name:
            return None
        match query:
            case Represent():
                return by_group(query, lambda one: represent(target, one.inputs, name, arrays))
            case Compare():
                return compare(target, query, arrays)
            case _:
                return None


def hard(x, leak_above):
    """A sigmoid of straight lines with a leak: below 0 where it is a mask's bound, above 1 where it is punished."""
    inside = x.clamp(0.0, 1.0)
    return inside + LEAK * ((x - 1).clamp_min(0.0) if leak_above else x.clamp_max(0.0))


def gate(x, parts):
    """(n, D) -> what each part reads (n, P), and the importances before their sigmoid (n, P)."""
    read = x @ parts["v"]
    hidden = torch.nn.functional.gelu(read.unsqueeze(-1) * parts["into"] + parts["into_bias"])  # (n, P, H)
    return read, (hidden * parts["out"]).sum(-1) + parts["out_bias"]


def decompose(matrix, bias, stream, generator):
    """Parts of a (C, D) matrix from the (n, D) vectors it is applied to: v (D, P), u (P, C), and the importance
    networks."""

    def drawn(*shape, scale):
        return (torch.randn(*shape, generator=generator) * scale).requires_grad_(True)

    n_out, width = matrix.shape
    n_parts = 2 * min(n_out, width)
    parts = {
        "v": drawn(width, n_parts, scale=width**-0.5),
        "u": drawn(n_parts, n_out, scale=n_parts**-0.5),
        "into": drawn(n_parts, HIDDEN, scale=1.0),
        "into_bias": torch.zeros(n_parts, HIDDEN, requires_grad=True),
        "out": drawn(n_parts, HIDDEN, scale=HIDDEN**-0.5),
        "out_bias": torch.ones(n_parts, requires_grad=True),
    }
    wanted = (stream @ matrix.T + bias).log_softmax(-1)
    with torch.enable_grad():
        optimiser = torch.optim.Adam([parts["u"], parts["v"]], lr=WARM_RATE)
        for _ in range(WARM_STEPS):
            optimiser.zero_grad()
            unfaithful(parts, matrix).backward()
            optimiser.step()
        optimiser = torch.optim.Adam(parts.values(), lr=RATE)
        for step in range(STEPS):
            optimiser.param_groups[0]["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            optimiser.zero_grad()
            rows = torch.randint(len(stream), (BATCH,), generator=generator)
            read, raw = gate(stream[rows], parts)
            importance = hard(raw, leak_above=False)
            mask = importance + (1 - importance) * torch.rand(importance.shape, generator=generator)
            outputs = ((read * mask) @ parts["u"] + bias).log_softmax(-1)
            stays = (wanted[rows].exp() * (wanted[rows] - outputs)).sum(-1).mean()
            loss = unfaithful(parts, matrix) + stays + SPARSITY * hard(raw, leak_above=True).sum(-1).mean()
            loss.backward()
            optimiser.step()
    return {name: value.detach() for name, value in parts.items()}


def unfaithful(parts, matrix):
    return ((parts["v"] @ parts["u"]).T - matrix).square().sum()


def represent(target, inputs, name, arrays):
    """(n, 2 P): importances, and what each part reads, weighed by them."""
    captured = target.forward(inputs, capture=[name]).captured[name]
    read, raw = gate(Unembed.kept(arrays).normed(at_readout(target.spec, name, captured)), arrays)
    importance = raw.clamp(0.0, 1.0)
    return torch.cat([importance, importance * read], dim=-1)


def compare(target, query, arrays):
    """(V, P + 2): how much the change of the matrix is along each part, its size, and how much no part has."""
    name = target.spec.unembed
    try:
        changed = target.variants(query.variants).weights([name])[name]
    except ValueError:
        return None  # variants share this matrix with the target
    if name.endswith("W_U"):  # kept as (D, C)
        changed = changed.transpose(-1, -2)
    change = changed - arrays["unembed"]  # (V, C, D)
    u, v = arrays["u"], arrays["v"]
    size = ((u * u).sum(-1) * (v * v).sum(0)).sqrt() + 1e-6
    along = ((u @ change) * v.T).sum(-1) / size  # (V, P)
    whole = (change * change).sum((-1, -2))
    return torch.cat([along, whole.sqrt().unsqueeze(-1), (whole - (along**2).amax(-1)).unsqueeze(-1)], dim=-1)
