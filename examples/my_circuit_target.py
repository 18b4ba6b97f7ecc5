"""A module with hook points, its graph, and data: what `lensmith circuits discover` needs.

lensmith circuits discover --target examples/my_circuit_target.py:build --method edge-sp --ablation zero
"""

import torch
from torch import nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.circuits.engine.graph import Graph, Node


class TwoPaths(HookedRootModule):
    """Four numbers in, two hidden layers with a skip connection around the second, three outputs."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.skip, self.third = (
            nn.Linear(4, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 3),
            nn.Linear(6, 3),
        )
        self.hook_x, self.hook_pre1, self.hook_post1 = HookPoint(), HookPoint(), HookPoint()
        self.hook_pre2, self.hook_post2, self.hook_out = HookPoint(), HookPoint(), HookPoint()
        self.setup()

    def forward(self, x):
        one = self.hook_post1(torch.relu(self.hook_pre1(self.first(self.hook_x(x)))))
        two = self.hook_post2(torch.relu(self.hook_pre2(self.second(one))))
        return self.hook_out(self.third(two) + self.skip(one))

    def circuit(self):
        return Graph(
            Node("x", writes="hook_x", axis=1),
            Node("one", reads="hook_pre1", writes="hook_post1", axis=1, parents=["x"], through="first"),
            Node("two", reads="hook_pre2", writes="hook_post2", axis=1, parents=["one"], through="second"),
            Node("out", reads="hook_out", axis=1, parents=["one", "two"], through={"one": "skip", "two": "third"}),
        )


def build():
    generator = torch.Generator().manual_seed(0)
    module = TwoPaths()
    for weight in module.parameters():
        weight.data.normal_(0.0, 1.0, generator=generator)
    with torch.no_grad():  # the plan: outputs come from unit 0 of each layer, and unit 0 from inputs 0 and 1
        for layer, rows, columns in (("first", 1, 2), ("second", 1, 1), ("skip", 3, 1), ("third", 3, 1)):
            keep = torch.zeros_like(getattr(module, layer).weight)
            keep[:rows, :columns] = 1.0
            getattr(module, layer).weight.mul_(keep + 0.001 * (1 - keep))
    return {
        "module": module.eval(),
        "clean": torch.randn(64, 4, generator=generator),
        "metric": "mse",
    }
