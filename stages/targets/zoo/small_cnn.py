"""A two-layer convolutional classifier; every position of a convolution is a sample for a dictionary.

Images are Fashion-MNIST (Xiao et al. 1708.07747), pooled to 14 x 14, where Debian's package dataset-fashion-mnist is
installed, and scikit-learn's 8 x 8 digits otherwise; both in 17 grey levels. The classifier averages over positions, so
one architecture serves both.

Shape legend: B = batch, S = side of the image, H = height, W = width, K = channels (16 then 32), C = classes (10).
"""

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.contracts.target import Component, Corpus, HookSpec, Layout
from stages.targets.definition import train_loop
from stages.targets.few_shot_data import digit_splits, disguised

__all__ = ["FASHION", "Cnn", "SmallCnn", "fashion_splits"]

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""
CHANNELS = (16, 32)
N_CLASSES = 10
BATCH = 64
LEVELS = 16
DIGITS_SIDE, FASHION_SIDE = 8, 14
SIZES = {"train": 6000, "validation": 1500, "tasks": 1500}
"""Fashion images of each split, of the 60,000."""


class Convolution(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(d_in, d_out, kernel_size=3, padding=1)
        self.hook_post = HookPoint()  # [batch, height, width, channel]: positions before what is at each of them

    def forward(self, x_BKHW: Tensor) -> Tensor:
        post_BHWK = self.hook_post(F.relu(self.conv(x_BKHW)).movedim(1, -1))
        return post_BHWK.movedim(-1, 1)  # type: ignore[no-any-return]


class Cnn(HookedRootModule):
    """inputs (B, S, S) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            Convolution(d_in, d_out) for d_in, d_out in zip((1, *CHANNELS[:-1]), CHANNELS, strict=True)
        )
        self.hook_pooled = HookPoint()  # [batch, channel]
        self.unembed = nn.Linear(CHANNELS[-1], N_CLASSES)
        self.setup()

    def forward(self, inputs_BSS: Tensor) -> Tensor:
        x_BKHW = self.convs[0](inputs_BSS.unsqueeze(1))
        x_BKHW = self.convs[1](F.max_pool2d(x_BKHW, 2))
        return self.unembed(self.hook_pooled(x_BKHW.mean((2, 3))))  # type: ignore[no-any-return]


def fashion_splits(folder: Path, seed: int) -> dict[str, Corpus]:
    """(n, 14, 14) images in [0, 1] with their classes, from the training file."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        pixels = torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28).copy())
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = torch.from_numpy(np.frombuffer(file.read(), np.uint8, offset=8).copy()).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    splits, start = {}, 0
    for split, n in SIZES.items():
        index = order[start : start + n]
        small = F.avg_pool2d(pixels[index].float().unsqueeze(1) / 255.0, 2).squeeze(1)
        splits[split] = Corpus((small * LEVELS).round() / LEVELS, labels[index])
        start += n
    return splits


def _fashion() -> bool:
    return (FASHION / "train-images-idx3-ubyte.gz").is_file() and (FASHION / "train-labels-idx1-ubyte.gz").is_file()


def side() -> int:
    """Height and width of the images here."""
    return FASHION_SIDE if _fashion() else DIGITS_SIDE


class SmallCnn:
    """Zoo entry: see ``TargetDefinition``."""

    minimum: Mapping[str, float] = {"accuracy": 0.75}

    def build(self, generator: torch.Generator) -> HookedRootModule:
        model = Cnn()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                fan_in = parameter[0].numel()
                parameter.data.normal_(0.0, (2.0 / fan_in) ** 0.5, generator=generator)
            else:
                parameter.data.zero_()
        return model

    def data(self, seed: int) -> dict[str, Corpus]:
        if _fashion():
            return fashion_splits(FASHION, seed)
        flat = digit_splits(seed)
        return {split: Corpus(of.inputs.reshape(-1, DIGITS_SIDE, DIGITS_SIDE), of.labels) for split, of in flat.items()}

    def disguise(self, images: Corpus, generator: torch.Generator) -> Corpus:
        moved = disguised(Corpus(images.inputs.flatten(1), images.labels), generator)
        return Corpus(moved.inputs.view_as(images.inputs), moved.labels)

    def sample(self, data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
        index = torch.randint(len(data[split].labels), (n,), generator=generator)
        return Corpus(data[split].inputs[index], data[split].labels[index])

    def fit(
        self,
        model: HookedRootModule,
        data: Mapping[str, Corpus],
        steps: int,
        generator: torch.Generator,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        inputs, labels = data["train"]

        def loss_of(_: int) -> Tensor:
            index = torch.randint(len(labels), (BATCH,), generator=generator)
            return F.cross_entropy(model(inputs[index]), labels[index], label_smoothing=0.05)

        train_loop(model, loss_of, steps, 5e-3, log)

    def hooks(self) -> tuple[HookSpec, ...]:
        sides = (side(), side() // 2)
        convolutions = [
            HookSpec(f"convs.{i}.hook_post", (s, s, k), k, "mlp")
            for i, (s, k) in enumerate(zip(sides, CHANNELS, strict=True))
        ]
        return (*convolutions, HookSpec("hook_pooled", (CHANNELS[-1],), CHANNELS[-1], "residual"))

    def components(self) -> tuple[Component, ...]:
        return tuple(Component(f"convs.{i}.hook_post", 3, k) for i, n in enumerate(CHANNELS) for k in range(n))

    def layout(self) -> Layout:
        return {
            "input_shape": (side(), side()),
            "n_outputs": N_CLASSES,
            "tokens": None,
            "present_channel": None,
            "unembed": "unembed.weight",
            "norm": None,
            "n_vocabulary": None,
            "offers": ("kinds", "pixels"),
        }
