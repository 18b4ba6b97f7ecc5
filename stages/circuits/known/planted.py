"""Trained networks whose circuit is planted: weights outside it are held at zero in training, dead ends excepted.

They need no tracr and are no transformers. Dead ends are units that read the inputs and that no one reads: they carry
signal, and no edge into them matters.

Shape legend: B = batch, X = inputs, H = hidden units, C = outputs; conv: (B, channels, h, w).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

try:  # TransformerLens 4 keeps it only at the top
    from transformer_lens import HookedRootModule
except ImportError:  # 2.x has it only here
    from transformer_lens.hook_points import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.circuits.engine.graph import Graph, Node

__all__ = ["PLANTED", "PlantedCnn", "PlantedMlp", "planted_edges", "train_planted"]

STEPS = 300


class PlantedMlp(HookedRootModule):
    """(B, 6) -> (B, 2); three linear layers of 8 and 6 hidden units, all of them nodes."""

    input_shape = (6,)
    layers = ("first", "second", "third")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.hook_x, self.hook_pre1, self.hook_post1 = HookPoint(), HookPoint(), HookPoint()  # [batch, units]
        self.hook_pre2, self.hook_post2, self.hook_out = HookPoint(), HookPoint(), HookPoint()
        self.setup()

    def circuit(self) -> Graph:
        return Graph(
            Node("x", writes="hook_x", axis=1),
            Node("h1", reads="hook_pre1", writes="hook_post1", axis=1, parents=["x"], through="first"),
            Node("h2", reads="hook_pre2", writes="hook_post2", axis=1, parents=["h1"], through="second"),
            Node("out", reads="hook_out", axis=1, parents=["h2"], through="third"),
        )

    def forward(self, x_BX: Tensor) -> Tensor:
        h_BH = self.hook_post1(torch.tanh(self.hook_pre1(self.first(self.hook_x(x_BX)))))
        h_BH = self.hook_post2(torch.tanh(self.hook_pre2(self.second(h_BH))))
        return self.hook_out(self.third(h_BH))  # type: ignore[no-any-return]


class PlantedCnn(HookedRootModule):
    """(B, 2, 6, 6) -> (B, 2); two convolutions of 4 channels, a mean over places, a linear layer; channels are
    nodes."""

    input_shape = (2, 6, 6)
    layers = ("first", "second", "third")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        self.hook_x, self.hook_pre1, self.hook_post1 = HookPoint(), HookPoint(), HookPoint()  # [batch, channels, h, w]
        self.hook_pre2, self.hook_pooled, self.hook_out = HookPoint(), HookPoint(), HookPoint()
        self.setup()

    def circuit(self) -> Graph:
        return Graph(
            Node("x", writes="hook_x", axis=1),
            Node("c1", reads="hook_pre1", writes="hook_post1", axis=1, parents=["x"], through="first"),
            Node("c2", reads="hook_pre2", writes="hook_pooled", axis=1, parents=["c1"], through="second"),
            Node("out", reads="hook_out", axis=1, parents=["c2"], through="third"),
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.hook_post1(torch.relu(self.hook_pre1(self.first(self.hook_x(x_BCHW)))))
        h_BC = self.hook_pooled(torch.relu(self.hook_pre2(self.second(h_BCHW))).mean((2, 3)))
        return self.hook_out(self.third(h_BC))  # type: ignore[no-any-return]


PLANTED: dict[str, Callable[[], "PlantedMlp | PlantedCnn"]] = {"planted_cnn": PlantedCnn, "planted_mlp": PlantedMlp}


def plant(module: PlantedMlp | PlantedCnn, generator: torch.Generator) -> list[Tensor]:
    """(readers, sources) 0/1 mask per layer: two sources per reader among live units; the last units are dead ends."""
    masks, live = [], None
    for name in module.layers:
        rows, columns = getattr(module, name).weight.shape[:2]
        usable = columns if live is None else live
        mask = torch.zeros(rows, columns)
        for row in range(rows):
            mask[row, torch.randperm(usable, generator=generator)[:2]] = 1.0
        masks.append(mask)
        live = max(2, rows - 2)
    return masks


def train_planted(name: str, seed: int = 0) -> tuple[PlantedMlp | PlantedCnn, list[Tensor]]:
    """A network of ``PLANTED`` fitted to a teacher of the same structure; (module, planted masks). A second or less."""
    generator = torch.Generator().manual_seed(seed)
    teacher, student = PLANTED[name](), PLANTED[name]()
    masks = plant(student, generator)
    for layer in teacher.layers:
        theirs, ours = getattr(teacher, layer), getattr(student, layer)
        size = torch.rand(theirs.weight.shape, generator=generator) * 0.6 + 0.7  # no planted edge is too weak to matter
        theirs.weight.data.copy_(size * torch.randn(size.shape, generator=generator).sign())
        theirs.bias.data.normal_(0.5, 0.1, generator=generator)
        # The student starts near the teacher: from afar it often fits without some of the planted edges.
        ours.weight.data.copy_(theirs.weight * (1.0 + 0.3 * torch.randn(size.shape, generator=generator)))
        ours.bias.data.copy_(theirs.bias)
    held = [
        mask.view(*mask.shape, *([1] * (getattr(student, n).weight.dim() - 2)))
        for mask, n in zip(masks, student.layers, strict=True)
    ]
    for module in (teacher, student):
        for layer, mask in zip(module.layers, held, strict=True):
            getattr(module, layer).weight.data.mul_(mask)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(STEPS):
        inputs = torch.randn(64, *student.input_shape, generator=generator)
        with torch.no_grad():
            wanted = teacher(inputs)
        loss = (student(inputs) - wanted).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for layer, mask in zip(student.layers, held, strict=True):
            getattr(student, layer).weight.data.mul_(mask)
    student.eval().requires_grad_(False)
    return student, masks


def planted_edges(masks: list[Tensor]) -> Tensor:
    """(E,) the planted masks as one flat mask, dead ends included."""
    return torch.cat([mask.flatten() for mask in masks])
