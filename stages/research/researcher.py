"""M1: who proposes the next method.

Add one: a file in researchers/ with a subclass of ``Researcher``, found by its name; or a file anywhere, given by its
path.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from pydantic import JsonValue

from stages.contracts.journal import Choices
from stages.research.view import Seen, View
from stages.scoring.proposals import Proposal

__all__ = ["Move", "Researcher", "Theta", "Trial"]

Theta = dict[str, JsonValue]
"""theta.json: everything a researcher has learned."""


@dataclass(frozen=True)
class Move:
    """A proposal, and how the researcher came to it."""

    proposal: Proposal
    choices: Choices = field(default_factory=dict)
    """What was chosen, as the researcher wants to read it again."""
    operator: str = "draw"
    parents: tuple[int, ...] = ()
    """Slots of the proposals it was made from; the first is what the diff is against."""


class Trial(NamedTuple):
    """What was chosen, and what it was worth."""

    choices: Choices
    value: float | None
    """None where the run says nothing about it (void or infra)."""


class Researcher(ABC):
    """Proposes methods and learns from what they were worth.

    ``propose`` sees the journal through a view. ``update`` is told every result, in order of slots and before the next
    batch is asked for: of a campaign that is resumed, all of them again. So whatever it keeps is a fold over results.

    Args:
        seed: of its random choices. Same seed and same results, same proposals.
        space: what is proposed, where a researcher can do more than one: ``specs`` or ``programs``.
    """

    name: ClassVar[str]
    """Name of the file it is in; set by itself."""
    batch: ClassVar[int] = 4
    """Slots that are proposed from the same results."""
    code: str = ""
    """Digest of its file, where that lies outside this project: another file is another campaign."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, seed: int, space: str = "specs") -> None:
        self.seed, self.space = seed, space
        self.trials: list[Trial] = []

    @abstractmethod
    def propose(self, view: View, slot: int) -> Move:
        """A method for one slot, from what the view shows."""

    def update(self, outcome: Seen) -> None:
        """Learn what a proposal was worth."""
        self.trials.append(Trial(outcome.choices, outcome.value))

    def theta(self) -> Theta:
        """Everything it has learned, as JSON."""
        trials: list[JsonValue] = [{"choices": dict(one.choices), "value": one.value} for one in self.trials]
        return {"researcher": self.name, "seed": self.seed, "trials": trials}
