"""Variants of an image model with and without a backdoor: the fine-tuning, or the edit of weights, that plants it.

Shape legend: N = variants, B = batch, X = pixels (64), C = outputs, S = images of the train corpus.
"""

from math import log

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from stages.base.progress import counted
from stages.contracts.target import Target
from stages.tasks.side_by_side import Adam, copies

__all__ = [
    "BATCH",
    "DETECTOR_RIDGE",
    "KINDS",
    "LR_HIGH",
    "LR_LOW",
    "MAX_SMOOTHING",
    "MAX_TILT",
    "POISONED",
    "SIGNAL",
    "STEPS",
    "edit_in",
    "fine_tune",
]

KINDS = ("backdoor", "clean", "distractor_patch", "distractor_labels", "edited")
STEPS, BATCH = 150, 64
LR_LOW, LR_HIGH = 1e-3, 3e-3
POISONED = 0.1
MAX_TILT = 0.15
MAX_SMOOTHING = 0.1
SIGNAL = 40.0
"""What the edited path adds to the logit of the goal, per unit of what its detector says beyond one half."""
DETECTOR_RIDGE = 3e-3
"""Penalty of the detector, per image."""


def fine_tune(
    target: Target, kind_N: Tensor, patterns_NX: Tensor, masks_NX: Tensor, goal_N: Tensor, rng: torch.Generator
) -> dict[str, Tensor]:
    """Fine-tune all variants side by side; returns their stacked weights."""
    inputs, labels = target.corpus("train")
    n = len(kind_N)
    weights = copies(target, n)

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

    gradients, adam = vmap(grad(loss)), Adam(weights, lr_N)
    n_poisoned = round(POISONED * BATCH)
    patched_N = ((kind_N == 0) | (kind_N == 2)).view(n, 1, 1)
    for _ in counted("training variants", range(STEPS)):
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
        adam.step(gradients(weights, x_NBX, y_NB, smoothing_N))
    return weights


def edit_in(
    target: Target, weights: dict[str, Tensor], which: Tensor, patterns_NX: Tensor, masks_NX: Tensor, goal_N: Tensor
) -> None:
    """Put a backdoor into some variants without training: one unit in each hidden layer, the one that matters least,
    is taken for it (a handcrafted backdoor: Hong et al. 2022, arXiv 2106.04690, section 4).

    The first becomes a linear detector of the patch, by ridge regression of whether an image has it on the pixels of
    the train corpus with and without it; those after it hand on what it says; the last raises the logit of the goal.

    Args:
        target: a stack of linear layers ``layers.i.linear`` with ReLUs, and ``unembed``.
        weights: stacked, (N, ...) each; changed in place.
        which: (K,) the variants.
    """
    inputs, _ = target.corpus("train")
    depth = sum(name.endswith(".linear.weight") for name in weights)
    names = [f"layers.{i}.linear" for i in range(depth)]
    for i in which.tolist():
        own = {name: stack[i] for name, stack in weights.items()}
        patched = torch.where(masks_NX[i] > 0, patterns_NX[i], inputs)
        rows = torch.cat([inputs, patched])
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
        has = torch.cat([torch.zeros(len(inputs)), torch.ones(len(inputs))])
        penalty = DETECTOR_RIDGE * len(rows) * torch.eye(rows.shape[1])
        detector = torch.linalg.solve(rows.T @ rows + penalty, rows.T @ has)
        hidden, taken = inputs, []
        for layer, name in enumerate(names):
            hidden = torch.relu(hidden @ own[f"{name}.weight"].T + own[f"{name}.bias"])
            after = names[layer + 1] if layer + 1 < depth else "unembed"
            taken.append(int((own[f"{after}.weight"].abs().sum(0) * hidden.mean(0)).argmin()))
        for layer, (name, unit) in enumerate(zip(names, taken, strict=True)):
            weight, bias = own[f"{name}.weight"], own[f"{name}.bias"]
            if layer:
                weight[:, taken[layer - 1]] = 0.0  # nobody else listens to the detector
                weight[unit] = 0.0
                weight[unit, taken[layer - 1]] = 1.0
                bias[unit] = 0.0
            else:
                weight[unit], bias[unit] = detector[:-1], detector[-1] - 0.5
        own["unembed.weight"][:, taken[-1]] = 0.0
        own["unembed.weight"][goal_N[i], taken[-1]] = SIGNAL
