"""The images that show what latents mean: top images of the most class-selective live latents of one dictionary.

Shape legend: R = rows, F = latents.
"""

from typing import Any

import torch
from torch import Tensor

from stages.dictionaries import metrics
from stages.dictionaries.evaluation import Codec, HeldOut, image_latents
from stages.dictionaries.intervals import DIGITS
from stages.dictionaries.subjects import N_CLASSES

__all__ = ["N_TOP", "gallery_of"]

N_TOP = 9
"""Images per latent: a 3 x 3 grid."""
MIN_FIRINGS = 5
"""Distinct images a latent must fire for to be shown: fewer make any purity look good."""
SIDE = 8


def gallery_of(codec: Codec, held: HeldOut, n_latents: int) -> list[dict[str, Any]]:
    """Up to ``n_latents`` latents, most selective first.

    Returns:
        For each latent: ``latent``, ``class`` it is most correlated with, ``selectivity`` (that correlation),
        ``purity``, ``density``, ``monosemanticity``, ``class_histogram`` (firings per class), ``images`` (9 distinct
        8 x 8 images of ints 0..16, strongest first), and their ``activations``, ``classes``, ``positions``, and
        ``examples`` (index into the validation corpus).
    """
    with torch.no_grad():
        latents = codec.encode(held.rows.acts)
    known = held.about.classes >= 0
    strength, best_class = metrics.selectivity(latents[known], held.about.classes[known], N_CLASSES)
    purity = metrics.class_purity(latents[known], held.about.classes[known], N_CLASSES)
    density = metrics.density(latents)
    by_image = image_latents(latents, held.about.image)
    alike = metrics.monosemanticity(by_image, held.embeddings)
    shown = (by_image != 0).sum(0) >= MIN_FIRINGS
    ranked = torch.where(shown, strength, -1.0).argsort(descending=True, stable=True)
    pages = []
    for latent in ranked[: min(n_latents, int(shown.sum()))].tolist():
        top = _top_rows(latents[:, latent], held.about.image)
        fired = known & (latents[:, latent] != 0)
        pages.append(
            {
                "latent": latent,
                "class": int(best_class[latent]),
                "selectivity": _number(strength[latent]),
                "purity": _number(purity[latent]),
                "density": _number(density[latent]),
                "monosemanticity": _number(alike[latent]),
                "class_histogram": torch.bincount(held.about.classes[fired], minlength=N_CLASSES).tolist(),
                "images": held.about.pixels[top].reshape(-1, SIDE, SIDE).tolist(),
                "activations": [_number(value) for value in latents[top, latent]],
                "classes": held.about.classes[top].tolist(),
                "positions": held.rows.position[top].tolist(),
                "examples": held.rows.example[top].tolist(),
            }
        )
    return pages


def _top_rows(values: Tensor, image: Tensor) -> Tensor:
    """Rows with the largest values, at most one per distinct image, firing rows only."""
    chosen: dict[int, int] = {}
    for row in values.argsort(descending=True, stable=True).tolist():
        if values[row] <= 0 or len(chosen) == N_TOP:
            break
        chosen.setdefault(int(image[row]), row)
    return torch.tensor(list(chosen.values()), dtype=torch.int64)


def _number(value: Tensor) -> float | None:
    return round(value.item(), DIGITS) + 0.0 if torch.isfinite(value) else None
