"""Researchers, one file each; the name of the file is the name of the researcher."""

from pathlib import Path

from stages.base.registry import Registry
from stages.research.researcher import Researcher

__all__ = ["RESEARCHERS", "make_researcher"]

RESEARCHERS = Registry(Path(__file__).parent, __name__, "researcher", lambda cls: issubclass(cls, Researcher))


def make_researcher(name: str, seed: int) -> Researcher:
    """A researcher by name.

    Raises:
        UserError: no such researcher, or it takes more than a seed (``files`` takes a folder).
    """
    made = RESEARCHERS.find(name)(seed)
    assert isinstance(made, Researcher)
    return made
