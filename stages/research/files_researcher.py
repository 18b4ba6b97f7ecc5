"""Hands in method files that somebody else wrote: `lensmith research --methods DIR`."""

from pathlib import Path

from stages.errors import UserError
from stages.research.researcher import Move, Researcher
from stages.research.view import View
from stages.scoring.candidate import Source

__all__ = ["FilesResearcher"]


class FilesResearcher(Researcher):
    """Method files of a folder, in the order of their names.

    Args:
        folder: one Python file with one Method each; what is proposed is the text at that moment.

    Raises:
        UserError: the folder holds no Python file.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed)
        self.name = "files"  # type: ignore[misc]
        self.files = sorted(folder.glob("*.py"))
        if not self.files:
            raise UserError(f"{folder} holds no Python file: put one file with one subclass of Method each into it")

    def propose(self, view: View, slot: int) -> Move:
        file = self.files[slot]
        return Move(Source.of(file), {"file": file.name}, operator="handed in")
