"""Researchers, one file each; the name of the file is the name of the researcher."""

import inspect
from pathlib import Path

from stages.base.code import code_digest, digest_with_imports
from stages.base.registry import Registry, classes_of
from stages.base.users_code import users_module
from stages.errors import UserError
from stages.research.researcher import Researcher

__all__ = ["RESEARCHERS", "has_islands", "is_path", "make_researcher"]

RESEARCHERS = Registry(
    Path(__file__).parent, __name__, "researcher", lambda cls: issubclass(cls, Researcher),
    hint="or give the path of a file that ends in .py",
)  # fmt: skip


def is_path(name: str) -> bool:
    """Whether a researcher is given by its file."""
    return name.endswith(".py")


def make_researcher(name: str, seed: int, space: str = "specs", islands: int = 1) -> Researcher:
    """A researcher by name, or by the path of its file, which runs with the user's own rights.

    Args:
        space: what ``random`` and ``search`` propose.
        islands: populations that breed apart, of a researcher that has them.

    Raises:
        UserError: no such researcher, the file does not define exactly one, or it has no islands.
    """
    found = _from_file(Path(name)) if is_path(name) else RESEARCHERS.find(name)
    given = {} if islands == 1 else {"islands": islands}
    if given and not has_islands(name):
        raise UserError(f"--islands {islands}: {name} has no islands; use --researcher programs, or leave it out")
    made = found(seed, **given) if is_path(name) else found(seed, space, **given)
    assert isinstance(made, Researcher)
    # Found by its name, so that no import leads to it: what a campaign imports does not cover it.
    made.code = made.code or (digest_with_imports(Path(name)) if is_path(name) else code_digest(found.__module__))
    return made


def has_islands(name: str) -> bool:
    """Whether a researcher, by name or path, takes a number of islands."""
    found = _from_file(Path(name)) if is_path(name) else RESEARCHERS.find(name)
    return "islands" in inspect.signature(found).parameters


def _from_file(path: Path) -> type:
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a Python file with one subclass of Researcher, or a name")
    found = classes_of(users_module(path), lambda cls: issubclass(cls, Researcher))
    if len(found) != 1:
        listed = ", ".join(cls.__name__ for cls in found) or "none"
        raise UserError(f"{path} defines {listed}: give a file with one public subclass of Researcher")
    return found[0]
