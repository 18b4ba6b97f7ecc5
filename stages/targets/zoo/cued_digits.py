"""The digit classifier with a hint planted in its training data: a few brighter pixels that go with the right answer.

Each class has a cue of its own, four pixels at the left and right edge. In nine of ten training images the cue of the
right class is laid over the image, each time with a strength of its own; so the classifier has two reasons for most
answers, the digit and the cue. Source: planted spurious cues, as in Adebayo et al. 2022 (Post hoc explanations may be
ineffective for detecting unknown spurious correlation), arXiv 2212.04629, section 3.

Shape legend: B = batch, X = pixels (64), C = digits (10).
"""

import torch
from torch import Tensor

from stages.contracts.target import Corpus, Layout
from stages.targets.few_shot_data import PIXELS
from stages.targets.zoo.digits_mlp import N_DIGITS, DigitsMlp

__all__ = ["CuedDigits", "cued"]

EDGE = tuple(row * 8 + column for row in range(8) for column in (0, 7))
"""Where cues are: the first and the last column, where digits have hardly any ink."""
CUE_PIXELS = 4
STRENGTH = 0.6
"""Largest: the share of the way to white that the pixels of a cue go."""
CUED_SHARE = 0.9
SEED = 20_261_130


def cued(images_BX: Tensor, cues_BX: Tensor, strength_B: Tensor) -> Tensor:
    """(B, X) images whose cue pixels go a share of the way to white."""
    return images_BX + strength_B.unsqueeze(-1) * cues_BX * (1.0 - images_BX)


class CuedDigits(DigitsMlp):
    """Zoo entry: see ``TargetDefinition``."""

    def cues(self) -> Tensor:
        """(C, X) 1 at the pixels of each class's cue, else 0."""
        rank_CE = torch.rand(N_DIGITS, len(EDGE), generator=torch.Generator().manual_seed(SEED)).argsort(-1).argsort(-1)
        cues_CX = torch.zeros(N_DIGITS, PIXELS)
        cues_CX[:, list(EDGE)] = (rank_CE < CUE_PIXELS).float()
        return cues_CX

    def data(self, seed: int) -> dict[str, Corpus]:
        generator = torch.Generator().manual_seed(seed)
        splits = super().data(seed)
        for split in ("train", "validation"):
            images, labels = splits[split]
            strength = torch.rand(len(labels), generator=generator) * STRENGTH
            strength *= torch.rand(len(labels), generator=generator) < CUED_SHARE
            splits[split] = Corpus(cued(images, self.cues()[labels], strength), labels)
        return splits

    def layout(self) -> Layout:
        layout = super().layout()
        layout["offers"] = ("cues", "flat_image", "kinds", "pixels")
        return layout
