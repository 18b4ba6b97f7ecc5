"""M1: who proposes the next method. A researcher's parameters theta are its trials so far; they are persisted.

``random`` is the control every other researcher must beat. ``search`` is a tree-structured Parzen estimator
(Bergstra et al. 2011, NeurIPS 24) through Optuna. ``files`` hands in method files that somebody else wrote.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from stages.errors import UserError
from stages.research.space import draw_spec
from stages.scoring.composed import Spec
from stages.scoring.proposals import Proposal, Source

__all__ = ["RESEARCHERS", "Researcher", "make_researcher"]

MAX_ATTEMPTS = 20


class Researcher(ABC):
    """Proposes specs and learns from what they were worth.

    Args:
        seed: of its random choices. Same seed and same results, same proposals.
    """

    name: ClassVar[str]

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


class RandomResearcher(Researcher):
    name = "random"

    def propose(self, iteration: int) -> tuple[Spec, dict[str, Any]]:
        return _new([], self.trials, "random", self.seed, iteration)


class FilesResearcher(Researcher):
    """Method files of a folder, in the order of their names.

    Args:
        folder: one Python file with one Method each; what is proposed is the text at that moment.

    Raises:
        UserError: the folder holds no Python file.
    """

    name = "files"

    def __init__(self, seed: int, folder: Path) -> None:
        super().__init__(seed)
        self.files = sorted(folder.glob("*.py"))
        if not self.files:
            raise UserError(f"{folder} holds no Python file: put one file with one subclass of Method each into it")

    def propose(self, iteration: int) -> tuple[Proposal, dict[str, Any]]:
        file = self.files[iteration]
        return Source(file.name, file.read_text(encoding="utf-8")), {"file": file.name}


class SearchResearcher(Researcher):
    name = "search"
    n_startup = 4
    """Random proposals before the estimator is used."""

    def propose(self, iteration: int) -> tuple[Spec, dict[str, Any]]:
        kind = "random" if len(self.trials) < self.n_startup else "tpe"
        return _new(self.trials, self.trials, kind, self.seed, iteration)


def _new(
    learned: Sequence[dict[str, Any]], tried: Sequence[dict[str, Any]], kind: str, seed: int, iteration: int
) -> tuple[Spec, dict[str, Any]]:
    """A proposal that has not been tried and that answers something; a repeat would spend an iteration on nothing."""
    seen = [trial["choices"] for trial in tried]
    for attempt in range(MAX_ATTEMPTS):
        # The sampler is seeded by the iteration, so a resumed campaign proposes what an uninterrupted one would have.
        spec, choices = _ask(learned, kind, 1_000_003 * seed + MAX_ATTEMPTS * iteration + attempt)
        if choices not in seen and spec != Spec():
            break
    return spec, choices


def _ask(trials: Sequence[dict[str, Any]], kind: str, seed: int) -> tuple[Spec, dict[str, Any]]:
    import optuna  # seconds of import, wanted by nobody who only reads this module

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # "multivariate is experimental": its results are pinned by a seed and a version
        sampler: Any
        if kind == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for past in trials:
            if past["value"] is not None:
                study.enqueue_trial(past["choices"])
                replayed = study.ask()
                draw_spec(replayed)
                study.tell(replayed, past["value"])
        trial = study.ask()
        spec = draw_spec(trial)
    return spec, dict(trial.params)


RESEARCHERS: dict[str, type[Researcher]] = {"random": RandomResearcher, "search": SearchResearcher}


def make_researcher(name: str, seed: int) -> Researcher:
    """A researcher by name.

    Raises:
        UserError: no such researcher.
    """
    if name not in RESEARCHERS:
        raise UserError(f"researcher {name!r} is unknown; known: {', '.join(sorted(RESEARCHERS))}")
    return RESEARCHERS[name](seed)
