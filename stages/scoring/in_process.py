"""The host of reviewed code: built-in methods and composed ones run in this process."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stages.contracts.arms import Answered
from stages.contracts.target import Target
from stages.execution.answering import Asked, ask_in_process
from stages.interpretation.artifact import pack
from stages.interpretation.free_phase import interpret
from stages.interpretation.settings import Config as InterpretationConfig
from stages.scoring.cached import cached_target
from stages.scoring.candidate import Candidate, Frozen
from stages.tasks.storage import Task

__all__ = ["InProcess"]


@dataclass(frozen=True)
class InProcess:
    """See ``Host``."""

    config: InterpretationConfig | None = None
    """Limits of the free phase; None: this host only asks, I(M) is given."""

    def freeze(
        self, candidate: Candidate, targets: list[str], asked: Mapping[str, Sequence[Asked]] | None = None
    ) -> dict[str, Frozen]:
        return {target: self.freeze_one(candidate, target) for target in targets}

    def freeze_one(self, candidate: Candidate, target: str) -> Frozen:
        if self.config is None:
            raise ValueError(f"{candidate.name}: I(M) must be given to a host that has no limits for the free phase")
        made = interpret(candidate.method(), candidate.name, cached_target(target), self.config)
        return Frozen(*pack(made, candidate.name, f"interpret on {target}", self.config.max_bytes))

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        return ask_in_process(candidate.method(), candidate.name, frozen.interpretation(), task, target)
