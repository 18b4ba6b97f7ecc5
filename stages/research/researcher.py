"""M1: who proposes the next method.

Add one: a file in researchers/ with a subclass of ``Researcher``, found by its name; or a file anywhere, given by its
path.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

from pydantic import JsonValue

from stages.contracts.journal import Choices
from stages.research.journal import Journal
from stages.research.view import Seen, View
from stages.scoring.proposals import Proposal

__all__ = ["Halt", "Move", "Researcher", "Theta", "Trial"]

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
    outcome: Literal["ok", "failed", "infra"] = "ok"
    """``failed``: the researcher came up with nothing that is a method; ``infra``: what it works with failed."""
    fault: str = ""
    """What is wrong then; the proposal is not judged."""


class Halt(Exception):
    """Nothing can be proposed for now: the campaign judges what it has and ends, to be continued later.

    Args:
        status: in one word; ``spent`` ends a campaign in good order, anything else is an error.
        reason: why, and what to do.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


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
    """Digest of what proposes: its file and all of ours that it imports. Other code is another campaign."""
    told: str = ""
    """What else it was told that its proposals depend on, such as a number of islands; empty: nothing."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2]

    def __init__(self, seed: int, space: str = "specs") -> None:
        self.seed, self.space = seed, space
        self.trials: list[Trial] = []

    def prepare(self, journal: Journal, slots: Sequence[int]) -> None:  # noqa: B027 (most have nothing to prepare)
        """Do for all slots of a batch at once what takes long, before the first of them is asked for.

        What is written into the journal here is read there again when the campaign is resumed.

        Args:
            slots: those of the batch that nothing has been proposed for.
        """

    @abstractmethod
    def propose(self, view: View, slot: int) -> Move:
        """A method for one slot, from what the view shows.

        Raises:
            Halt: nothing can be proposed for now.
        """

    def update(self, outcome: Seen) -> None:
        """Learn what a proposal was worth."""
        self.trials.append(Trial(outcome.choices, outcome.value))

    def theta(self) -> Theta:
        """Everything it has learned, as JSON."""
        trials: list[JsonValue] = [{"choices": dict(one.choices), "value": one.value} for one in self.trials]
        return {"researcher": self.name, "seed": self.seed, "trials": trials}
