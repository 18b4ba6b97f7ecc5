"""Modules as users bring them: one hidden layer, and one thing about it that is unusual."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.circuits.engine.graph import Graph, Node


class Foreign(HookedRootModule):
    """x -> h -> out, with hook points in, pre, post, out. ``kind`` says what is unusual."""

    def __init__(self, kind: str = "plain", sizes: tuple[int, int, int] = (3, 4, 2)) -> None:
        super().__init__()
        self.kind = kind
        self.a, self.b = nn.Linear(sizes[0], sizes[1]), nn.Linear(sizes[1], sizes[2])
        self.hook_in, self.hook_pre, self.hook_post, self.hook_out = (HookPoint() for _ in range(4))
        self.setup()
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            parameter.data.normal_(0.0, 1.0, generator=generator)
        self.calls = 0
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.kind == "in place on inputs":
            x += 1.0
        h = self.hook_pre(self.a(self.hook_in(x)))
        h = torch.relu_(h) if self.kind == "relu in place" else torch.relu(h)
        if self.kind == "dropout":
            h = F.dropout(h, 0.3)
        if self.kind == "state":
            h = h + 0.1 * self.calls
        if self.kind == "batch":
            h = h - h.mean(0)
        h = self.hook_post(h)
        if self.kind == "changed after":
            h.mul_(2.0)
        if self.kind == "raises" and len(x) > 41:
            raise KeyError("too many at once")
        out: Tensor = self.hook_out(self.b(h))
        if self.kind == "answers":
            return out.argmax(-1, keepdim=True)
        return out.squeeze(-1) if self.kind == "flat" else out

    def circuit(self) -> Graph:
        return Graph(
            Node("x", writes="hook_in", axis=1),
            Node("h", "hook_post", "hook_pre", axis=1, parents=["x"], through="a"),
            Node("out", reads="hook_out", axis=1, parents=["h"], through="b"),
        )


def inputs(n: int = 40, width: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


class TwoLayers(HookedRootModule):
    """8 -> 10 -> 6 -> 3 with a skip connection: 188 edges, of which a plan uses 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.skip = (
            nn.Linear(8, 10),
            nn.Linear(10, 6),
            nn.Linear(6, 3),
            nn.Linear(10, 3),
        )
        for name in ("x", "pre1", "post1", "pre2", "post2", "out"):
            setattr(self, f"hook_{name}", HookPoint())
        self.setup()
        for parameter in self.parameters():
            parameter.data.zero_()
        generator = torch.Generator().manual_seed(0)
        for layer, rows, columns in (("first", 4, 3), ("second", 2, 4), ("third", 3, 2), ("skip", 3, 2)):
            drawn = torch.randn(rows, columns, generator=generator)
            getattr(self, layer).weight.data[:rows, :columns] = drawn + 0.7 * drawn.sign()
        self.eval()

    def cancelling(self, weights: tuple[float, ...], readers: tuple[str, int]) -> "TwoLayers":
        """Hidden units 6, 7, ... that all compute the same of four inputs, into one reader with weights that add up to
        nothing."""
        layer, reader = readers
        drawn = torch.randn(4, generator=torch.Generator().manual_seed(1))
        for unit, weight in enumerate(weights, start=6):
            self.first.weight.data[unit, :4] = drawn
            getattr(self, layer).weight.data[reader, unit] = weight
        return self

    def forward(self, x: Tensor) -> Tensor:
        one = self.hook_post1(torch.tanh(self.hook_pre1(self.first(self.hook_x(x)))))
        two = self.hook_post2(torch.tanh(self.hook_pre2(self.second(one))))
        out: Tensor = self.hook_out(self.third(two) + self.skip(one))
        return out

    def circuit(self) -> Graph:
        return Graph(
            Node("x", writes="hook_x", axis=1),
            Node("one", "hook_post1", "hook_pre1", axis=1, parents=["x"], through="first"),
            Node("two", "hook_post2", "hook_pre2", axis=1, parents=["one"], through="second"),
            Node("out", reads="hook_out", axis=1, parents=["one", "two"], through={"one": "skip", "two": "third"}),
        )
