"""M1: who proposes the next method. A researcher's parameters theta are its trials so far; they are persisted.

Add one: a file in researchers/ with a subclass of ``Researcher``, found by its name.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from stages.scoring.proposals import Proposal

__all__ = ["Researcher"]


class Researcher(ABC):
    """Proposes specs and learns from what they were worth.

    Args:
        seed: of its random choices. Same seed and same results, same proposals.
    """

    name: ClassVar[str]
    """Name of the file it is in; set by itself."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.trials: list[dict[str, Any]] = []

    @abstractmethod
    def propose(self, iteration: int) -> tuple[Proposal, dict[str, Any]]:
        """(method, the choices behind it) for one iteration."""

    def update(self, choices: dict[str, Any], value: float | None) -> None:
        """Learn what a proposal was worth; None where the run says nothing about it (void or infra)."""
        self.trials.append({"choices": choices, "value": value})

    def theta(self) -> dict[str, Any]:
        """Everything it has learned, as JSON."""
        return {"researcher": self.name, "seed": self.seed, "trials": self.trials}
