"""Targets every room's tests share: real architectures and data, trained briefly or not at all."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

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


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy graph up to the reward stage, built once a session; or once for many, in the folder LENSMITH_TOY."""
    from tests import toy

    kept = os.environ.get("LENSMITH_TOY")
    root = Path(kept) if kept else tmp_path_factory.mktemp("toy")
    if not (root / "dvc.yaml").is_file():
        toy.build(root)
    return root


def copied(built: Path, root: Path) -> Path:
    """The toy graph again. Its results are hard links, so that reading them costs nothing: delete one before you write
    it. Whoever runs something that leaves new files runs it in a copy, or later tests find them."""
    shutil.copytree(built, root, copy_function=os.link)
    shutil.rmtree(root / "params")
    shutil.copytree(built / "params", root / "params")
    return root


@pytest.fixture
def graph(built: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the toy graph that a test may change; ``stages.base.paths`` points to it."""
    from tests import toy

    root = copied(built, tmp_path / "graph")
    with toy.rooted(root):
        yield root
