"""Registries by file name: a method, a task family, a target, a researcher is one file, found by its name.

Nothing is listed anywhere: what a folder holds is what there is. A file is imported when it is asked for, so a broken
one stops nobody else, and adding one changes no other file.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

from stages.errors import UserError

__all__ = ["Registry", "classes_of"]


def classes_of(module: ModuleType, accepts: Callable[[type], bool]) -> list[type]:
    """The classes that a module itself defines and that ``accepts`` is true of; abstract and private ones left out."""
    return [
        value
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.isabstract(value)
        and accepts(value)
    ]


class Registry:
    """The files of one folder by name.

    Args:
        folder: where the files are, each with one class that counts.
        package: the folder's dotted name.
        what: what a file holds, as messages call it: ``task family``.
        accepts: whether a class is one of them.
        hint: what a user can do about a name that is not there; appended to the message.
    """

    def __init__(self, folder: Path, package: str, what: str, accepts: Callable[[type], bool], hint: str = "") -> None:
        self.folder, self.package, self.what, self.hint = folder, package, what, hint
        self._accepts = accepts

    def names(self) -> tuple[str, ...]:
        """Sorted names: files of the folder, those that begin with an underscore left out."""
        return tuple(sorted(path.stem for path in self.folder.glob("[!_]*.py")))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def find(self, name: str) -> type:
        """The class in ``<name>.py``.

        Raises:
            UserError: there is no such file, or it does not define exactly one such class; says what there is.
        """
        if name not in self:
            hint = f"; {self.hint}" if self.hint else ""
            raise UserError(f"{self.what} {name!r} is unknown; known: {', '.join(self.names())}{hint}")
        found = classes_of(import_module(f"{self.package}.{name}"), self._accepts)
        if len(found) != 1:
            listed = ", ".join(cls.__name__ for cls in found) or "none"
            raise UserError(
                f"{self.folder / name}.py defines {listed}: a {self.what} is one public class in a file of its name"
            )
        return found[0]
