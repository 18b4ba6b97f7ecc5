"""M1: who proposes the next method. A researcher's parameters theta are its trials so far; they are persisted.

Add one: a file in researchers/ with a subclass of ``Researcher``, found by its name.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple, TypedDict

from stages.contracts.journal import Choices
from stages.scoring.proposals import Proposal

__all__ = ["Researcher", "Theta", "Trial"]


class Trial(NamedTuple):
    """What was chosen, and what it was worth."""

    choices: Choices
    value: float | None
    """The objective; None where the run says nothing about it (void or infra)."""


class TrialFacts(TypedDict):
    choices: Choices
    value: float | None


class Theta(TypedDict):
    """theta.json: everything a researcher has learned."""

    researcher: str
    seed: int
    trials: list[TrialFacts]


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
        self.trials: list[Trial] = []

    @abstractmethod
    def propose(self, iteration: int) -> tuple[Proposal, Choices]:
        """(method, the choices behind it) for one iteration."""

    def update(self, choices: Choices, value: float | None) -> None:
        """Learn what a proposal was worth; None where the run says nothing about it (void or infra)."""
        self.trials.append(Trial(choices, value))

    def theta(self) -> Theta:
        """Everything it has learned, as JSON."""
        trials: list[TrialFacts] = [{"choices": one.choices, "value": one.value} for one in self.trials]
        return {"researcher": self.name, "seed": self.seed, "trials": trials}
