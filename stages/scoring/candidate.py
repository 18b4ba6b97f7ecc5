"""A method to be scored, whatever it is given as, and who may run it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stages.base.text import plain
from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Method
from stages.contracts.target import Target
from stages.execution.answering import Asked
from stages.interpretation.artifact import unpack
from stages.tasks.storage import Task
from stages.tracing.program import Recorded

__all__ = ["Candidate", "Frozen", "Host", "Source"]


@dataclass(frozen=True)
class Source:
    """A method as the text of a Python file that nobody has reviewed: it runs in the sandbox, one process a phase."""

    file: str
    """What its author called it."""
    text: str

    @classmethod
    def of(cls, path: Path) -> "Source":
        return cls(plain(path.name, 120), path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Candidate:
    """A method and its name in tables."""

    name: str
    what: Method | Source
    """An instance of reviewed code (a built-in method, a composed one), or unreviewed source."""

    @property
    def reviewed(self) -> bool:
        return not isinstance(self.what, Source)

    def method(self) -> Method:
        """The method itself, to be run in this process.

        Raises:
            ValueError: it is source: only a host with a sandbox runs that.
        """
        if isinstance(self.what, Source):
            raise ValueError(f"{self.name} is source that nobody has reviewed: give it to an isolated host")
        return self.what


@dataclass(frozen=True)
class Frozen:
    """I(M) on one target as bytes: what leaves the free phase is data only."""

    arrays: bytes
    text: bytes
    cpu_s: float = 0.0
    adaptive: bool = False
    """Its answers are not recorded: see ``Method.adaptive``."""
    programs: Mapping[str, Recorded] = field(default_factory=dict)
    """Answers recorded on shapes, by the key of what was asked."""

    @property
    def n_bytes(self) -> int:
        return len(self.arrays) + len(self.text)

    def interpretation(self) -> Interpretation:
        return unpack(self.arrays, self.text)


class Host(Protocol):
    """Runs methods: in this process, or each in a process of its own. Pickled to the workers that evaluate tasks."""

    def freeze(
        self, candidate: Candidate, targets: list[str], asked: Mapping[str, Sequence[Asked]] | None = None
    ) -> Mapping[str, Frozen]:
        """I(M) on every target.

        Args:
            asked: questions by target whose answers are recorded while the method is at hand; others are later.

        Raises:
            MethodError: the method failed.
        """
        ...

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        """The answer to one task's query. A method's failure is a result, never an exception."""
        ...
