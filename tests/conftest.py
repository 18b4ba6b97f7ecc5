"""Targets every room's tests share: real architectures and data, trained briefly or not at all."""

import pytest
import torch

from stages.contracts.target import Target
from stages.targets.storage import freeze
from stages.targets.zoo import ZOO


def make_target(name: str, steps: int, n: int = 200) -> Target:
    definition, generator = ZOO.find(name)(), torch.Generator().manual_seed(0)
    data = definition.data(0)
    model = definition.build(generator)
    if steps:
        definition.fit(model, data, steps, generator, lambda metrics, step: None)
    corpora = {split: definition.sample(data, split, n, generator) for split in ("train", "validation")}
    return freeze(name, model, corpora | {"tasks": data["tasks"]})


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def mlp() -> Target:
    """digits_mlp, trained: half a second."""
    return make_target("digits_mlp", steps=300)


@pytest.fixture(scope="session")
def few_shot() -> Target:
    """digits_few_shot, barely trained: its arithmetic is tested, not its ability."""
    return make_target("digits_few_shot", steps=20)
