"""What each row of activations is about: what latents are compared with and shown as.

Where inputs are images, a row is about an image and its class. A row of a target without token positions is about its
input, at whatever place of a convolution it lies. A token of an episode is about the image of the segment it belongs
to. Classes of an episode's images are not in the corpus (labels are re-drawn per episode), so they are looked up in
scikit-learn's digits, from which the images come.

Where inputs are words, a row is about a context: the words up to and including the one at its place, which is all that
a causal model has seen there. Its class is that last word, if it is among the most frequent ones.

Shape legend: R = rows, X = pixels of an image (64 for digits), N = inputs, T = places.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from stages.activations.cache import Rows
from stages.contracts.target import Target, telling_places

__all__ = ["N_WORDS", "PIXELS", "Subjects", "contexts", "distinct_examples", "frequent_words", "subjects"]

PIXELS = 64
"""Of a digit, which is 8 x 8: the first 64 channels of a segment."""
LEVELS = 16
"""Pixels are stored as multiples of 1/16."""
N_DIGITS = 10
N_WORDS = 10
"""Words that are classes, the most frequent ones; of all others the class is unknown."""


class Subjects(NamedTuple):
    classes: Tensor
    """(R,) int64 in 0..n_classes-1; -1 where unknown."""
    image: Tensor
    """(R,) int64: number of the distinct image or context, 0..n-1."""
    n_classes: int
    pixels: Tensor | None
    """(R, X) int64 in 0..16; None where inputs are words."""
    words: Tensor | None = None
    """(n_classes,) ids of the words that are classes; None where inputs are images."""


def subjects(target: Target, split: str, rows: Rows) -> Subjects:
    """The subject of each row of a cache."""
    return _of_images(target, split, rows) if target.spec.n_vocabulary is None else _of_words(target, split, rows)


def _of_images(target: Target, split: str, rows: Rows) -> Subjects:
    corpus = target.corpus(split)
    inputs, n_pixels, n_classes = corpus.inputs[rows.example], PIXELS, N_DIGITS
    if target.spec.tokens is None:
        n_pixels = int(torch.Size(target.spec.input_shape).numel())
        n_classes = max(N_DIGITS, target.spec.n_outputs)
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
    return Subjects(classes, image, n_classes, pixels)


def _of_words(target: Target, split: str, rows: Rows) -> Subjects:
    inputs, words = target.corpus(split).inputs, frequent_words(target)
    node = contexts(inputs)[rows.example, rows.position]
    ids = inputs[rows.example, rows.position, 0].long()
    found = (ids.unsqueeze(1) == words).long()
    classes = torch.where(found.any(1), found.argmax(1), -1)
    return Subjects(classes, torch.unique(node, return_inverse=True)[1], len(words), None, words)


def frequent_words(target: Target) -> Tensor:
    """(up to ``N_WORDS``,) ids of the words that have most rows in the training corpus, most frequent first."""
    inputs = target.corpus("train").inputs
    kept = telling_places(target.spec, inputs)
    assert kept is not None, "asked of targets of words only"
    counts = torch.bincount(inputs[..., 0].long()[kept])
    ranked = counts.argsort(descending=True, stable=True)[:N_WORDS]
    return ranked[counts[ranked] > 0]


def contexts(inputs: Tensor) -> Tensor:
    """(N, T) number of the context that ends at each place: equal where the present words up to it are equal.

    Places of absent words have -1. Contexts are the nodes of a tree of words, so no two are confused.

    Args:
        inputs: (N, T, 2) of (id, present).
    """
    present = inputs[..., 1] > 0.5
    depth = torch.where(present, present.long().cumsum(1), 0)
    ids = inputs[..., 0].long()
    n_words = int(ids.max()) + 1 if ids.numel() else 1
    node = torch.full(depth.shape, -1)
    parent = torch.zeros(len(inputs), dtype=torch.int64)
    total = 0
    for level in range(1, int(depth.max()) + 1 if depth.numel() else 1):
        at = depth == level
        which = at.any(1)
        _, number = torch.unique(parent[which] * n_words + ids[at], return_inverse=True)
        node[at] = parent[which] = number + total
        total += int(number.max()) + 1
    return node


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
