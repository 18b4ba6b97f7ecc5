"""Arms are kept in a folder of the tests' own: what was computed earlier says nothing of this code."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_ROOT", str(tmp_path_factory.mktemp("root")))
        yield
