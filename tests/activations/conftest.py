"""Untrained targets of the zoo: everything about a cache can be tested on random weights."""

from collections.abc import Callable

import pytest
import torch

from stages.contracts.target import Target
from stages.targets.storage import freeze
from stages.targets.zoo import ZOO


@pytest.fixture(scope="session")
def make_target() -> Callable[..., Target]:
    def make(name: str, seed: int = 0, n: int = 60) -> Target:
        torch.set_num_threads(1)
        definition = ZOO.find(name)()
        generator = torch.Generator().manual_seed(seed)
        images = definition.data(0)
        data = {split: definition.sample(images, split, n, generator) for split in ("train", "validation")}
        return freeze(name, definition.build(generator), data | {"tasks": images["tasks"]})

    return make


@pytest.fixture(scope="session")
def mlp(make_target: Callable[..., Target]) -> Target:
    return make_target("digits_mlp")


@pytest.fixture(scope="session")
def few_shot(make_target: Callable[..., Target]) -> Target:
    return make_target("digits_few_shot")
