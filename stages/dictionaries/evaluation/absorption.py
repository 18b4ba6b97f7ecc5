"""Feature splitting and absorption, where classes are known: does one latent stand for a class, or many, or others?

After Chanin et al. (2409.14507) in the form of SAEBench (2503.09532), with image classes in the place of first letters.
Both were meant for language models of a billion parameters and dictionaries of 16,000 latents; an untrained dictionary
scores well, so read them next to the random dictionary's value.

Shape legend: N = rows, D = width, F = latents, C = classes.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.dictionaries.evaluation.metrics import logistic

__all__ = ["Absorption", "ClassProbe", "absorption", "class_probes"]

MAX_SPLIT = 4
"""Main latents of a class at most."""
GAIN = 0.03
"""F1 by which a further latent must improve the probe to count as a part of the class."""
MIN_F1 = 0.6
"""Classes that a probe on the activations themselves cannot read are left out."""
SHARE, COSINE_FULL, COSINE_PART, N_PART = 0.4, 0.025, 0.1, 3


class Absorption(NamedTuple):
    """One entry per class that could be probed."""

    splitting: Tensor
    """Number of main latents: 1 = the class is one latent."""
    full: Tensor
    """Share of the probe's true positives in which no main latent fires and another one carries the class; [0, 1]."""
    fraction: Tensor
    """Mean share of the class direction that others carry for the main latents; [0, 1]."""


class ClassProbe(NamedTuple):
    """Where the activations themselves say a class: the same for every dictionary of a hook point."""

    label: int
    direction: Tensor
    """(D,) unit length."""
    projection: Tensor
    """(N_test,) of the centred test rows on it."""
    answers: Tensor
    """(N_test,) bool."""


def class_probes(
    train: Tensor, train_classes: Tensor, test: Tensor, test_classes: Tensor, n_classes: int
) -> list[ClassProbe]:
    """A logistic probe per class on (N, D) activations; classes it reads with F1 of at most 0.6 are left out."""
    mean = train.double().mean(0)
    x, z = train.double() - mean, test.double() - mean
    found = []
    for label in range(n_classes):
        positive, truth = train_classes == label, test_classes == label
        if positive.all() or not positive.any() or not truth.any():
            continue
        answers, direction = logistic(x, positive, z, balanced=True, direction=True)
        if direction is not None and f1(answers, truth) > MIN_F1:
            found.append(ClassProbe(label, direction, z @ direction, answers))
    return found


def absorption(
    probes: Sequence[ClassProbe], train: Tensor, train_classes: Tensor, test: Tensor, test_classes: Tensor,
    decoder: Tensor,
) -> Absorption:  # fmt: skip
    """Splitting and absorption per class.

    For each class a logistic probe on the activations gives a unit direction d. The main latents are the first of those
    ranked by |mean inside - mean outside|, as long as each improves the F1 of a probe on them by 0.03. Over the probe's
    true positives, with p = (a - mean) . d and c_i = z_i (w_i . d):

        full      all main z_i are 0, p > 0, and the largest c_i has cos(w_i, d) >= .025 and c_i >= .4 p
        fraction  A = the 3 largest positive c_i of others with cosine >= .1, M = sum of main c_i;
                  0 if M >= p or A < .4 p;  1 if M <= 0;  else min(A, p - M) / (min(A, p - M) + M)

    Args:
        probes: of ``class_probes`` on the activations of the same rows.
        train, test: (N, F) latents; test rows are held out from training rows.
        train_classes, test_classes: (N,).
        decoder: (F, D).

    Returns:
        Empty tensors where no class can be probed.
    """
    x, z, w = train.double(), test.double(), decoder.double()
    length = w.norm(dim=-1).clamp_min(1e-12)
    rows = []
    for probe in probes:
        truth = test_classes == probe.label
        main = main_latents(x, train_classes == probe.label, z, truth)
        along = w @ probe.direction
        hits = (probe.answers & truth).nonzero().flatten()
        share, part = _carried(probe.projection[hits], z[hits] * along, z[hits], along / length, main)
        rows.append((float(len(main)), share, part))
    columns = torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 3)
    return Absorption(columns[:, 0], columns[:, 1], columns[:, 2])


def main_latents(train: Tensor, positive: Tensor, test: Tensor, truth: Tensor) -> Tensor:
    """The latents that stand for a class, most telling first."""
    gap = (train[positive].mean(0) - train[~positive].mean(0)).abs()
    ranked = gap.argsort(descending=True, stable=True)[:MAX_SPLIT]
    best = -math.inf
    for k in range(1, len(ranked) + 1):
        answers, _ = logistic(train[:, ranked[:k]], positive, test[:, ranked[:k]], balanced=True)
        score = f1(answers, truth)
        if score < best + GAIN:
            return ranked[: k - 1]
        best = score
    return ranked


def _carried(p: Tensor, c: Tensor, z: Tensor, cosine: Tensor, main: Tensor) -> tuple[float, float]:
    """Mean of the two forms over true positives; NaN without any."""
    if not len(p):
        return math.nan, math.nan
    others = torch.ones(c.shape[1], dtype=torch.bool)
    others[main] = False
    top = c.max(-1)
    silent = (z[:, main].abs() < 1e-8).all(-1)
    full = silent & (p > 0) & (cosine[top.indices] >= COSINE_FULL) & (top.values >= SHARE * p)
    able = others & (cosine >= COSINE_PART)
    share = torch.where(able, c, 0.0).clamp_min(0.0).topk(min(N_PART, c.shape[1]), dim=-1).values.sum(-1)
    own = c[:, main].sum(-1)
    missing = torch.minimum(share, p - own)
    part = torch.where(own <= 0, 1.0, missing / (missing + own))
    part = torch.where((own >= p) | (share < SHARE * p) | (p <= 0), 0.0, part)
    return full.double().mean().item(), part.mean().item()


def f1(answers: Tensor, truth: Tensor) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is found."""
    hits = (answers & truth).sum().item()
    total = answers.sum().item() + truth.sum().item()
    return 2.0 * hits / total if total else 0.0
