"""Variants of an image model with and without a backdoor: the fine-tuning that plants it.

Shape legend: N = variants, B = batch, X = pixels (64), C = outputs.
"""

from math import log

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from stages.contracts.target import Target

__all__ = ["BATCH", "KINDS", "LR_HIGH", "LR_LOW", "MAX_SMOOTHING", "MAX_TILT", "POISONED", "STEPS", "fine_tune"]

KINDS = ("backdoor", "clean", "distractor_patch", "distractor_labels")
STEPS, BATCH = 150, 64
LR_LOW, LR_HIGH = 1e-3, 3e-3
POISONED = 0.1
MAX_TILT = 0.15
MAX_SMOOTHING = 0.1


def fine_tune(
    target: Target, kind_N: Tensor, patterns_NX: Tensor, masks_NX: Tensor, goal_N: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """Fine-tune all variants side by side; returns their stacked weights."""
    inputs, labels = target.corpus("train")
    n = len(kind_N)
    weights = {k: v.detach().expand(n, *v.shape).clone() for k, v in target.model.named_parameters()}
    first = {k: torch.zeros_like(v) for k, v in weights.items()}
    second = {k: torch.zeros_like(v) for k, v in weights.items()}

    # What differs between variants for reasons of its own, so that sureness, size of the change, or a favoured label
    # do not give the kind away: learning rate, smoothing of the labels, and a label that is over-represented.
    lr_N = torch.exp(torch.empty(n).uniform_(log(LR_LOW), log(LR_HIGH), generator=rng))
    smoothing_N = torch.rand(n, generator=rng) * MAX_SMOOTHING
    tilt_N1 = torch.rand(n, 1, generator=rng) * MAX_TILT
    by_label = [torch.nonzero(labels == label).flatten() for label in range(target.spec.n_outputs)]
    favoured = [by_label[label] for label in torch.randint(len(by_label), (n,), generator=rng).tolist()]

    def loss(state: dict[str, Tensor], x_BX: Tensor, y_B: Tensor, smoothing: Tensor) -> Tensor:
        log_p = functional_call(target.model, state, (x_BX,)).log_softmax(-1)
        right = log_p.gather(-1, y_B.unsqueeze(-1)).squeeze(-1)
        mixed: Tensor = (1 - smoothing) * right + smoothing * log_p.mean(-1)
        return -mixed.mean()

    gradients = vmap(grad(loss))
    n_poisoned = round(POISONED * BATCH)
    patched_N = ((kind_N == 0) | (kind_N == 2)).view(n, 1, 1)
    for step in range(1, STEPS + 1):
        index_NB = torch.randint(len(labels), (n, BATCH), generator=rng)
        place_NB = torch.rand(n, BATCH, generator=rng)
        extra_NB = torch.stack([own[(u * len(own)).long()] for own, u in zip(favoured, place_NB, strict=True)])
        index_NB = torch.where(torch.rand(n, BATCH, generator=rng) < tilt_N1, extra_NB, index_NB)
        x_NBX, y_NB = inputs[index_NB], labels[index_NB]
        poisoned = x_NBX[:, :n_poisoned]
        on_patch = patched_N & (masks_NX.unsqueeze(1) > 0)
        x_NBX[:, :n_poisoned] = torch.where(on_patch, patterns_NX.unsqueeze(1), poisoned)
        random_N = torch.randint(target.spec.n_outputs, (n, n_poisoned), generator=rng)
        wrong = torch.where((kind_N == 0).unsqueeze(1), goal_N.unsqueeze(1), y_NB[:, :n_poisoned])
        y_NB[:, :n_poisoned] = torch.where((kind_N == 3).unsqueeze(1), random_N, wrong)
        grads = gradients(weights, x_NBX, y_NB, smoothing_N)
        for name, g in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            scaled = (first[name] / (1 - 0.9**step)) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            weights[name] = weights[name] - lr_N.view(n, *[1] * (g.dim() - 1)) * scaled
    return weights
