"""Patchscope: a hidden state is put into another prompt, and the target itself says what it reads there.

Source: Ghandeharioun et al. 2024, "Patchscopes: a unifying framework for inspecting hidden representations of language
models", arXiv 2401.06102, sections 3 and 4.1: the hidden state of a layer and a place of the source prompt replaces
that of the same layer at a place of a target prompt, and the rest of the pass decodes it.

Setting: the state goes into the last place of the target prompt, at the layer it comes from; every layer but the last.

Here: the prompt that repeats what it is shown ("cat -> cat; hello -> hello; x") means nothing to small targets. In its
place stands the corpus input whose answer the target is least sure of. Targets whose layers have no places are
declined: there a patched layer is the whole state, and nothing else would be read.

Shape legend: n = inputs, S = segments, C = outputs, D = width.
"""

import torch

from lensmith import Attribute, Interpretation, Intervention, Method, Represent, at_readout, by_group


class Patchscope(Method):
    def interpret(self, target, budget):
        names = [hook.name for hook in target.spec.with_role("residual")[:-1] if len(hook.shape) == 2]
        if target.spec.tokens is None or not names:
            return Interpretation(data={"layers": []})
        inputs = target.corpus("train").inputs[:256]
        log_probs = target.forward(inputs).outputs.log_softmax(-1)
        unsure = int((-(log_probs.exp() * log_probs).sum(-1)).argmax())
        return Interpretation({"prompt": inputs[unsure]}, {"layers": names})

    def answer(self, query, interpretation, target):
        layers = interpretation.data["layers"]
        if not layers:
            return None
        prompt = interpretation.arrays["prompt"]
        match query:
            case Represent():
                return by_group(query, lambda one: represent(target, one.inputs, one.labels, prompt, layers))
            case Attribute():
                return attribute(target, query, prompt, layers)
            case _:
                return None


def decode(target, prompt, name, vectors):
    """(n, D) -> (n, C) log-probabilities after the vectors were put into the prompt's last place at a layer."""
    last = target.spec.tokens[-1][-1]
    patch = Intervention(name, "set", vectors.unsqueeze(1), axis=1, indices=(last,))
    every = prompt.unsqueeze(0).expand(vectors.shape[0], *prompt.shape)
    return target.forward(every, interventions=[patch]).outputs.log_softmax(-1)


def represent(target, inputs, labels, prompt, layers):
    """(n, 4 layers): what a layer says of the target's answer and of the label, its best, its entropy."""
    found = target.forward(inputs, capture=layers)
    answer = found.outputs.argmax(-1)
    asked, columns = answer if labels is None else labels, []
    for name in layers:
        said = decode(target, prompt, name, at_readout(target.spec, name, found.captured[name]))
        columns += [
            said.gather(-1, answer.unsqueeze(-1)).squeeze(-1),
            said.gather(-1, asked.unsqueeze(-1)).squeeze(-1),
            said.amax(-1),
            -(said.exp() * said).sum(-1),
        ]
    return torch.stack(columns, dim=-1)


def attribute(target, query, prompt, layers):
    """(n, S, layers): what the last place of each segment says of the label."""
    found, spec = target.forward(query.inputs, capture=layers), target.spec
    labels = found.outputs.argmax(-1) if query.labels is None else query.labels
    places = torch.tensor([spec.tokens[segment[-1]][-1] for segment in query.segments])
    asked, columns = labels.repeat_interleave(len(places)).unsqueeze(-1), []
    for name in layers:
        vectors = found.captured[name].index_select(1, places).flatten(0, 1)
        said = decode(target, prompt, name, vectors).gather(-1, asked)
        columns.append(said.reshape(len(labels), len(places)))
    return torch.stack(columns, dim=-1)
