"""Episodes for the in-context learner: labelled digit images and a query whose label must be read off them.

Input layout (9 rows x 66): rows 0-7 are examples, row 8 the query; columns 0-63 pixels in [0, 1], column 64 the
label (0 for the query), column 65 whether the row is present.
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.target import Corpus

__all__ = ["N_LABELS", "N_SHOTS", "PIXELS", "digit_splits", "disguised", "draw_episodes"]

N_SHOTS = 8
N_LABELS = 4
PIXELS = 64
SIDE = 8
TURN, SCALE, SHIFT, INK = 0.15, 0.08, 0.1, 0.15
"""Largest turn in radians, scaling, move in half image widths (0.1: 0.4 pixels), and change of the ink."""


def digit_splits(seed: int) -> dict[str, Corpus]:
    """scikit-learn's 1797 real 8x8 digits as (n, 64) in [0, 1]: 900 train, 300 validation, 597 for tasks only."""
    digits = load_digits()
    inputs = torch.tensor(digits.data, dtype=torch.float32) / 16.0
    labels = torch.tensor(digits.target, dtype=torch.int64)
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))
    bounds = {"train": order[:900], "validation": order[900:1200], "tasks": order[1200:]}
    return {split: Corpus(inputs[index], labels[index]) for split, index in bounds.items()}


def disguised(images: Corpus, generator: torch.Generator) -> Corpus:
    """Every image turned, scaled, moved and darkened a little, each in its own way: the digits are public, so the
    images that tasks show must be ones that nobody can have stored.

    Args:
        images: (n, 64) in [0, 1].
    """
    n = len(images.labels)
    turn, scale, shift, ink = (torch.rand(n, k, generator=generator) * 2 - 1 for k in (1, 2, 2, 1))
    angle, size = TURN * turn.squeeze(-1), 1 + SCALE * scale
    rows = [
        torch.stack([angle.cos() * size[:, 0], -angle.sin() * size[:, 0], SHIFT * shift[:, 0]], dim=-1),
        torch.stack([angle.sin() * size[:, 1], angle.cos() * size[:, 1], SHIFT * shift[:, 1]], dim=-1),
    ]
    grid = F.affine_grid(torch.stack(rows, dim=1), [n, 1, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(images.inputs.view(n, 1, SIDE, SIDE), grid, align_corners=False)
    return Corpus((moved.flatten(1) * (1 + INK * ink)).clamp(0.0, 1.0), images.labels)


def draw_episodes(images: Corpus, n: int, generator: torch.Generator) -> Corpus:
    """Draw n episodes: 4 digit classes each, renamed 0-3 at random; at least one example shares the query's class.

    Returns:
        inputs (n, 9, 66) and labels (n,) of the query.
    """
    by_digit = [torch.nonzero(images.labels == digit).flatten() for digit in range(10)]
    size = torch.tensor([len(index) for index in by_digit])
    table = torch.zeros(10, int(size.max()), dtype=torch.int64)
    for row, index in enumerate(by_digit):
        table[row, : len(index)] = index
    classes = torch.rand(n, 10, generator=generator).argsort(-1)[:, :N_LABELS]  # class of each label, per episode
    labels = torch.randint(N_LABELS, (n, N_SHOTS + 1), generator=generator)
    anchor = torch.randint(N_SHOTS, (n,), generator=generator)
    labels[torch.arange(n), anchor] = labels[:, -1]
    digit = classes.gather(1, labels)
    draw = (torch.rand(n, N_SHOTS + 1, generator=generator) * size[digit]).long()
    rows = images.inputs[table[digit, draw]]
    shown = labels.to(torch.float32).clone()
    shown[:, -1] = 0.0
    inputs = torch.cat([rows, shown.unsqueeze(-1), torch.ones(n, N_SHOTS + 1, 1)], dim=-1)
    return Corpus(inputs, labels[:, -1])


def episode_labels(inputs: Tensor, query: Tensor) -> Tensor:
    """(n, 9) label of every row, the query's included."""
    labels = inputs[..., PIXELS].long()
    labels[:, -1] = query
    return labels
