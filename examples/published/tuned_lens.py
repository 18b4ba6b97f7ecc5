"""Tuned lens: an affine map from each layer to the last one, so that the target's unembedding can read it.

Source: Belrose et al. 2023, "Eliciting latent predictions from transformers with the tuned lens", arXiv 2303.08112,
section 3: the map of a layer begins as the identity and is trained to make the divergence of its outputs from the
target's as small as can be.

Setting: that of the authors' package: SGD with Nesterov momentum 0.9, learning rate 1 times (1 - momentum), linearly to
0 over 250 steps, weight decay 1e-3, gradients clipped to norm 1.

Here: every step sees the whole train corpus, at the place where the answer is read off. Features are those that the
paper looks at (section 4): how sure each layer is, what it gives to the final answer, how far it is from the outputs.

Shape legend: n = inputs, D = width, C = outputs.
"""

import torch

from lensmith import Compare, Interpretation, Method, Represent, Unembed, at_readout, by_group

STEPS, RATE, MOMENTUM, DECAY, CLIP = 250, 1.0, 0.9, 1e-3, 1.0


class TunedLens(Method):
    def interpret(self, target, budget):
        spec, inputs = target.spec, target.corpus("train").inputs
        unembed = Unembed.of(spec, target.weights())
        streams = spec.with_role("residual")
        names = [hook.name for hook in streams[:-1] if hook.width == streams[-1].width]
        if unembed is None or not names:
            return Interpretation(data={"layers": []})  # no layer before the last can be mapped to it
        found, arrays = target.forward(inputs, capture=names), unembed.arrays()
        for name in names:
            at = at_readout(spec, name, found.captured[name])
            arrays[f"{name}.map"], arrays[f"{name}.shift"] = fit(at, found.outputs, unembed)
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
            case _:
                return None


def fit(at, outputs, unembed):
    """(n, D) a layer, (n, C) the target's outputs -> map (D, D) and shift (D,): the layer is moved to h + h map +
    shift."""
    wanted = outputs.log_softmax(-1)
    change, shift = (torch.zeros(*shape, requires_grad=True) for shape in [(at.shape[1],) * 2, (at.shape[1],)])
    optimiser = torch.optim.SGD(
        [change, shift], lr=RATE * (1 - MOMENTUM), momentum=MOMENTUM, nesterov=True, weight_decay=DECAY
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / STEPS)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimiser.zero_grad()
            found = unembed(at + at @ change + shift).log_softmax(-1)
            divergence = (wanted.exp() * (wanted - found)).sum(-1).mean()
            divergence.backward()
            torch.nn.utils.clip_grad_norm_([change, shift], CLIP)
            optimiser.step()
            schedule.step()
    return change.detach(), shift.detach()


def read(access, inputs, labels, layers, arrays):
    """(..., n, 5 layers): at each layer entropy, largest log-probability, that of the target's answer, that of the
    label (where there is none, of the answer again), and the divergence of the outputs from it."""
    result, unembed = access.forward(inputs, capture=layers), Unembed.kept(arrays)
    final, answer = result.outputs.log_softmax(-1), result.outputs.argmax(-1)
    asked = answer if labels is None else labels.expand(answer.shape)
    columns = []
    for name in layers:
        at = at_readout(access.spec, name, result.captured[name])
        lens = unembed(at + at @ arrays[f"{name}.map"] + arrays[f"{name}.shift"]).log_softmax(-1)
        columns += [
            -(lens.exp() * lens).sum(-1),
            lens.amax(-1),
            lens.gather(-1, answer.unsqueeze(-1)).squeeze(-1),
            lens.gather(-1, asked.unsqueeze(-1)).squeeze(-1),
            (final.exp() * (final - lens)).sum(-1),
        ]
    return torch.stack(columns, dim=-1)
