"""Small modules with a graph."""

import pytest
import torch
from torch import Tensor

from stages.circuits.engine.transformers import PlainTransformer
from stages.circuits.known.planted import PlantedCnn, PlantedMlp


def filled(module: torch.nn.Module, seed: int = 0, size: float = 0.5) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data.normal_(0.0, size, generator=generator)
    return module.eval()


@pytest.fixture(scope="module")
def mlp() -> PlantedMlp:
    return filled(PlantedMlp())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def cnn() -> PlantedCnn:
    return filled(PlantedCnn())  # type: ignore[return-value]


@pytest.fixture(scope="module")
def transformer() -> PlainTransformer:
    return filled(PlainTransformer(2, 2, 6, 3, 8, 5, 4, 3))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(5, (7, 4), generator=torch.Generator().manual_seed(1))
