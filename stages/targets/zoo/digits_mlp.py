"""A two-layer ReLU classifier of real 8x8 digits.

Shape legend: B = batch, X = pixels (64), H = hidden units (64 then 32), C = digits (10).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.contracts.target import Component, Corpus, HookSpec, Layout
from stages.targets.definition import train_loop
from stages.targets.few_shot_data import PIXELS, digit_splits, disguised

__all__ = ["DigitsMlp", "Mlp"]

WIDTHS = (64, 32)
N_DIGITS = 10
BATCH = 64
LABEL_NOISE = 0.08
"""Share of training labels replaced at random: without it the classifier is so sure of everything that no task
varies."""


class Layer(nn.Module):
    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d_in, d_out)
        self.hook_post = HookPoint()  # [batch, width]

    def forward(self, x_BX: Tensor) -> Tensor:
        return self.hook_post(F.relu(self.linear(x_BX)))  # type: ignore[no-any-return]


class Mlp(HookedRootModule):
    """inputs (B, 64) -> logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(d_in, d_out) for d_in, d_out in zip((PIXELS, *WIDTHS[:-1]), WIDTHS, strict=True)
        )
        self.unembed = nn.Linear(WIDTHS[-1], N_DIGITS)
        self.setup()

    def forward(self, inputs_BX: Tensor) -> Tensor:
        for layer in self.layers:
            inputs_BX = layer(inputs_BX)
        return self.unembed(inputs_BX)  # type: ignore[no-any-return]


class DigitsMlp:
    """Zoo entry: see ``TargetDefinition``."""

    minimum: Mapping[str, float] = {"accuracy": 0.9}

    def build(self, generator: torch.Generator) -> HookedRootModule:
        model = Mlp()
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0.0, (2.0 / parameter.shape[1]) ** 0.5, generator=generator)
            else:
                parameter.data.zero_()
        return model

    def data(self, seed: int) -> dict[str, Corpus]:
        return digit_splits(seed)

    def disguise(self, images: Corpus, generator: torch.Generator) -> Corpus:
        return disguised(images, generator)

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
        noisy = torch.rand(len(labels), generator=generator) < LABEL_NOISE
        labels = torch.where(noisy, torch.randint(N_DIGITS, labels.shape, generator=generator), labels)

        def loss_of(_: int) -> Tensor:
            index = torch.randint(len(labels), (BATCH,), generator=generator)
            return F.cross_entropy(model(inputs[index]), labels[index], label_smoothing=0.05)

        train_loop(model, loss_of, steps, 3e-3, log)

    def hooks(self) -> tuple[HookSpec, ...]:
        return tuple(
            HookSpec(f"layers.{i}.hook_post", (w,), w, "residual" if i == len(WIDTHS) - 1 else "mlp")
            for i, w in enumerate(WIDTHS)
        )

    def components(self) -> tuple[Component, ...]:
        return tuple(Component(f"layers.{i}.hook_post", 1, unit) for i, w in enumerate(WIDTHS) for unit in range(w))

    def layout(self) -> Layout:
        return {
            "input_shape": (PIXELS,),
            "n_outputs": N_DIGITS,
            "tokens": None,
            "present_channel": None,
            "unembed": "unembed.weight",
            "norm": None,
            "n_vocabulary": None,
            "offers": ("flat_image", "kinds", "pixels", "triggers"),
        }
