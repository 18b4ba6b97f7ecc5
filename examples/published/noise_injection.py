"""Noise injection: does a model get better, or answer otherwise, when noise is added inside?

Source: Tice et al. 2024, "Noise injection reveals hidden capabilities of sandbagging language models", arXiv
2412.01784, section 3: Gaussian noise of growing size is added to the model, and performance is measured at each size. A
model that holds back gets better where an honest one gets worse.

Setting: three sizes, two draws of each. The paper adds noise to weights, up to a tenth.

Here: an answer cannot change weights, so noise is added to the activations of every residual stream but the last (or of
the hidden layer, where there is one stream): 0.1, 0.3 and 1 of their standard deviation over the corpus. Draws are
frozen, the same for all inputs and variants.

Shape legend: n = inputs, V = variants, C = outputs.
"""

import torch

from lensmith import Compare, Interpretation, Intervention, Method, Represent, by_group

SIZES, DRAWS = (0.1, 0.3, 1.0), 2


class NoiseInjection(Method):
    def interpret(self, target, budget):
        spec, inputs = target.spec, target.corpus("train").inputs[:256]
        streams = spec.with_role("residual")
        hooks = streams[:-1] or spec.with_role("mlp") or streams
        captured = target.forward(inputs, capture=[hook.name for hook in hooks]).captured
        generator, arrays = budget.generator(), {}
        for hook in hooks:
            scale = captured[hook.name].std(0).mean()
            arrays[hook.name] = torch.randn(len(SIZES) * DRAWS, 1, *hook.shape, generator=generator) * scale
            for number, size in enumerate(SIZES):
                arrays[hook.name][number * DRAWS : (number + 1) * DRAWS] *= size
        return Interpretation(arrays, {"hooks": [hook.name for hook in hooks]})

    def answer(self, query, interpretation, target):
        noise = {name: interpretation.arrays[name] for name in interpretation.data["hooks"]}
        match query:
            case Represent():
                return by_group(query, lambda one: torch.cat(profile(target, one.inputs, one.labels, noise), dim=-1))
            case Compare():
                before = torch.stack(profile(target, query.inputs, query.labels, noise), dim=-1).mean(-3)
                found = profile(target.variants(query.variants), query.inputs, query.labels, noise)
                after = torch.stack(found, dim=-1).mean(-3)  # (V, 3, sizes): means over inputs
                return torch.cat([after.flatten(1), (after - before).flatten(1)], dim=-1)
            case _:
                return None


def profile(access, inputs, labels, noise):
    """For no noise and then each size (..., n, 3): log-probability of the label (or of what is answered without noise),
    whether that is the answer, and entropy; means over draws."""
    quiet = access.forward(inputs).outputs
    asked = (quiet.argmax(-1) if labels is None else labels.expand(quiet.shape[:-1])).unsqueeze(-1)
    found = [look(quiet, asked)]
    for number in range(len(SIZES)):
        each = []
        for draw in range(number * DRAWS, (number + 1) * DRAWS):
            added = [Intervention(name, "add", values[draw]) for name, values in noise.items()]
            each.append(look(access.forward(inputs, interventions=added).outputs, asked))
        found.append(torch.stack(each).mean(0))
    return found


def look(outputs, asked):
    log_probs = outputs.log_softmax(-1)
    right = (outputs.argmax(-1, keepdim=True) == asked).float()
    return torch.cat([log_probs.gather(-1, asked), right, -(log_probs.exp() * log_probs).sum(-1, keepdim=True)], -1)
