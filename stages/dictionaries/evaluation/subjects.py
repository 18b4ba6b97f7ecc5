"""Which image each row of activations is about, and of which class: what latents are compared with and shown as.

A row of a target without token positions is about its input, at whatever place of a convolution it lies. A token of an
episode is about the image of the segment it belongs to. Classes of an episode's images are not in the corpus (labels
are re-drawn per episode), so they are looked up in scikit-learn's digits, from which the images come.

Shape legend: R = rows, X = pixels of an image (64 for digits).
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from stages.activations.cache import Rows
from stages.contracts.target import Target

__all__ = ["N_CLASSES", "PIXELS", "Subjects", "distinct_examples", "subjects"]

PIXELS = 64
"""Of a digit, which is 8 x 8: the first 64 channels of a segment."""
LEVELS = 16
"""Pixels are stored as multiples of 1/16."""
N_CLASSES = 10


class Subjects(NamedTuple):
    pixels: Tensor
    """(R, X) int64 in 0..16."""
    classes: Tensor
    """(R,) int64 in 0..9; -1 where unknown."""
    image: Tensor
    """(R,) int64: number of the distinct image, 0..n_images-1."""


def subjects(target: Target, split: str, rows: Rows) -> Subjects:
    """The subject of each row of a cache."""
    corpus = target.corpus(split)
    inputs, n_pixels = corpus.inputs[rows.example], PIXELS
    if target.spec.tokens is None:
        n_pixels = int(torch.Size(target.spec.input_shape).numel())
    if target.spec.tokens is not None:
        segment = torch.zeros(1 + max(max(tokens) for tokens in target.spec.tokens), dtype=torch.int64)
        for number, tokens in enumerate(target.spec.tokens):
            segment[list(tokens)] = number
        inputs = inputs[torch.arange(len(inputs)), segment[rows.position]]
    pixels = (inputs.reshape(len(inputs), -1)[:, :n_pixels] * LEVELS).round().to(torch.int64)
    images, image = torch.unique(pixels, dim=0, return_inverse=True)
    known = _digits() if n_pixels == PIXELS else {}
    classes = torch.tensor([known.get(bytes(row), -1) for row in images.to(torch.uint8).tolist()])[image]
    if target.spec.tokens is None:
        classes = torch.where(classes < 0, corpus.labels[rows.example], classes)
    return Subjects(pixels, classes, image)


def distinct_examples(inputs: Tensor) -> Tensor:
    """Numbers of the examples whose input has not occurred before: a corpus drawn with replacement repeats itself."""
    flat = inputs.flatten(1)
    unique, inverse = torch.unique(flat, dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(flat)).scatter_reduce(0, inverse, torch.arange(len(flat)), "amin")
    return first.sort().values


@functools.cache
def _digits() -> dict[bytes, int]:
    """Pixels of each of scikit-learn's 1797 digits -> its class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {
        bytes(pixels): int(label)
        for pixels, label in zip(digits.data.astype("uint8").tolist(), digits.target, strict=True)
    }
