"""Activation difference: what fine-tuning added to every activation, and which answers that points to.

Source: Minder et al. 2025, "Narrow finetuning leaves clearly readable traces in activation differences", arXiv
2510.13900, section 2: the mean difference of activations of the fine-tuned and the base model on ordinary inputs, read
with the unembedding (logit lens) and by its size.

Setting: the mean over all inputs of the question; every layer that the unembedding can read.

Here: at the place where the answer is read off, not at the first five tokens of a text. The paper goes on to steer with
the difference and to decode it with patched prompts; that is left out. The executor stands in for its agent.

Shape legend: V = variants, m = inputs, D = width, C = outputs.
"""

import torch

from lensmith import Compare, Interpretation, Method, Unembed, at_readout

TOP = 5
"""Largest logits of the difference that are told."""


class ActivationDifference(Method):
    def interpret(self, target, budget):
        streams = target.spec.with_role("residual")
        unembed = Unembed.of(target.spec, target.weights())
        if unembed is None or 4 * unembed.matrix.numel() > budget.max_bytes / 2:
            return Interpretation(data={"layers": []})
        names = [hook.name for hook in streams if hook.width == streams[-1].width]
        return Interpretation(unembed.arrays(), {"layers": names})

    def answer(self, query, interpretation, target):
        layers = interpretation.data["layers"]
        if not layers or not isinstance(query, Compare):
            return None
        original = target.forward(query.inputs, capture=layers).captured
        changed = target.variants(query.variants).forward(query.inputs, capture=layers).captured
        unembed, columns = Unembed.kept(interpretation.arrays), []
        for name in layers:
            before, after = (at_readout(target.spec, name, found[name]) for found in (original, changed))
            mean = (after - before).mean(1)  # (V, D)
            size = (mean * mean).sum(-1, keepdim=True).sqrt()
            spread = ((after - before) ** 2).sum(-1).mean(1, keepdim=True).sqrt()
            logits = mean @ unembed.matrix.T
            logits = (logits - logits.mean(-1, keepdim=True)) / (size + 1e-6)
            top = logits.sort(dim=-1, descending=True).values
            typical = (before * before).sum(-1).mean().sqrt() + 1e-6
            columns += [size / typical, spread / typical, size / (spread + 1e-6), top[:, :TOP], top[:, -1:]]
        return torch.cat(columns, dim=-1)
