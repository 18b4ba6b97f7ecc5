"""Patches of pixels: triggers and passwords of images.

Shape legend: n = patches, X = pixels (8 x 8).
"""

import torch
from torch import Tensor

__all__ = ["PATCH", "draw_patches"]

SIDE, PATCH = 8, 3


def draw_patches(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """(n, X) pixel values and (n, X) masks of random patches, each with at least three bright pixels."""
    bright = torch.rand(n, PATCH * PATCH, generator=rng)
    n_bright = torch.randint(3, PATCH * PATCH + 1, (n, 1), generator=rng)
    block = (bright.argsort(-1).argsort(-1) < n_bright).float().view(n, PATCH, PATCH)
    corner = torch.randint(SIDE - PATCH + 1, (n, 2), generator=rng)
    pattern, mask = torch.zeros(n, SIDE, SIDE), torch.zeros(n, SIDE, SIDE)
    for i, (row, column) in enumerate(corner.tolist()):
        pattern[i, row : row + PATCH, column : column + PATCH] = block[i]
        mask[i, row : row + PATCH, column : column + PATCH] = 1.0
    return pattern.flatten(1), mask.flatten(1)
