"""Researchers, one file each; the name of the file is the name of the researcher."""

import hashlib
from pathlib import Path

from stages.base.registry import Registry, classes_of
from stages.base.users_code import users_module
from stages.errors import UserError
from stages.research.researcher import Researcher

__all__ = ["RESEARCHERS", "is_path", "make_researcher"]

RESEARCHERS = Registry(
    Path(__file__).parent, __name__, "researcher", lambda cls: issubclass(cls, Researcher),
    hint="or give the path of a file that ends in .py",
)  # fmt: skip


def is_path(name: str) -> bool:
    """Whether a researcher is given by its file."""
    return name.endswith(".py")


def make_researcher(name: str, seed: int, space: str = "specs") -> Researcher:
    """A researcher by name, or by the path of its file, which runs with the user's own rights.

    Args:
        space: what ``random`` and ``search`` propose.

    Raises:
        UserError: no such researcher, or the file does not define exactly one.
    """
    made = _from_file(Path(name))(seed) if is_path(name) else RESEARCHERS.find(name)(seed, space)
    assert isinstance(made, Researcher)
    if is_path(name):
        made.code = hashlib.sha256(Path(name).read_bytes()).hexdigest()
    return made


def _from_file(path: Path) -> type:
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a Python file with one subclass of Researcher, or a name")
    found = classes_of(users_module(path), lambda cls: issubclass(cls, Researcher))
    if len(found) != 1:
        listed = ", ".join(cls.__name__ for cls in found) or "none"
        raise UserError(f"{path} defines {listed}: give a file with one public subclass of Researcher")
    return found[0]
