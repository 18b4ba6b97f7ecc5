import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import toy


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy graph up to the reward stage, built once a session."""
    root = tmp_path_factory.mktemp("toy")
    toy.build(root)
    return root


@pytest.fixture
def graph(built: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the toy graph that a test may change; ``stages.base.paths`` points to it."""
    root = tmp_path / "graph"
    shutil.copytree(built, root, copy_function=os.link)  # hard links: read-only use costs nothing
    shutil.rmtree(root / "params")
    shutil.copytree(built / "params", root / "params")
    with toy.rooted(root):
        yield root
