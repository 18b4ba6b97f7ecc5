"""Hands in method files that somebody else wrote: `lensmith research --methods DIR`."""

from pathlib import Path

from stages.contracts.journal import Choices
from stages.errors import UserError
from stages.research.researcher import Researcher
from stages.scoring.candidate import Source
from stages.scoring.proposals import Proposal

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

    def propose(self, iteration: int) -> tuple[Proposal, Choices]:
        file = self.files[iteration]
        return Source.of(file), {"file": file.name}
