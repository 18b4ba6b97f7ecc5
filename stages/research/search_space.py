"""The spaces of methods that ``random`` and ``search`` propose from, each written once, as choices of an Optuna trial.

``specs``: settings of reviewed code. ``programs``: genomes of the grammar, written out as source.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

from pydantic import JsonValue

from stages.contracts.journal import Choices
from stages.research.programs.emitting import source_of
from stages.research.programs.grammar import KINDS, NONE, draw
from stages.research.view import Seen, View
from stages.scoring.composed import Spec
from stages.scoring.proposals import Proposal

__all__ = ["SPACES", "Chooser", "draw_program", "draw_spec", "new_proposal"]

MAX_ATTEMPTS = 20


class Chooser(Protocol):
    """The part of ``optuna.Trial`` that is used."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


def draw_spec(trial: Chooser) -> Spec | None:
    """Which representation, hook points, dictionary (type, size, sparsity), pooling and attributions; None: nothing."""
    representation = trial.suggest_categorical("representation", ["none", "raw", "pca", "sae"])
    values: dict[str, JsonValue] = {
        "representation": representation,
        "gradient": trial.suggest_categorical("gradient", [False, True]),
        "attention": trial.suggest_categorical("attention", [False, True]),
        "logit_lens": trial.suggest_categorical("logit_lens", [False, True]),
    }
    if representation != "none":
        values["roles"] = trial.suggest_categorical("roles", ["residual", "mlp", "residual+mlp"])
        values["pooling"] = trial.suggest_categorical("pooling", ["readout", "mean", "max"])
    if representation in ("pca", "sae"):
        values["n_features"] = trial.suggest_int("n_features", 4, 64, log=True)
    if representation == "sae":
        architecture = trial.suggest_categorical("architecture", ["standard", "topk", "batchtopk"])
        if architecture == "standard":
            sparsity = trial.suggest_float("l1", 0.3, 6.0, log=True)
        else:
            sparsity = float(trial.suggest_int("k", 2, 32, log=True))
        n_latents = trial.suggest_categorical("n_latents", [64, 128, 256])
        values["dictionary"] = {"architecture": architecture, "n_latents": n_latents, "sparsity": round(sparsity, 6)}
    spec = Spec.model_validate(values)
    return None if spec == Spec() else spec


class _Asked:
    """The grammar's chooser, answered by a trial."""

    def __init__(self, trial: Chooser) -> None:
        self.trial = trial

    def choose(self, name: str, options: Sequence[str]) -> str:
        return str(self.trial.suggest_categorical(name, list(options)))


def draw_program(trial: Chooser) -> Proposal | None:
    """A genome, written out; None where it declines every kind."""
    genome = draw(_Asked(trial))
    return None if all(genome[kind].source == NONE for kind in KINDS) else source_of(genome)


SPACES: Mapping[str, Callable[[Chooser], Proposal | None]] = {"specs": draw_spec, "programs": draw_program}


def new_proposal(view: View, space: str, kind: str, seed: int, slot: int) -> tuple[Proposal, Choices]:
    """A proposal that has not been tried and that answers something; a repeat would spend an iteration on nothing.

    Raises:
        ValueError: there is no such space, or every attempt answered nothing.
    """
    if space not in SPACES:
        raise ValueError(f"space {space!r} is unknown; use {' or '.join(SPACES)}")
    tried = [one.choices for one in view.tried]
    learned = [] if kind == "random" else view.seen
    found: tuple[Proposal, Choices] | None = None
    for attempt in range(MAX_ATTEMPTS):
        # The sampler is seeded by the slot, so a resumed campaign proposes what an uninterrupted one would have.
        proposal, choices = _ask(learned, space, kind, 1_000_003 * seed + MAX_ATTEMPTS * slot + attempt)
        if proposal is not None:
            found = proposal, choices
            if choices not in tried:
                break
    if found is None:
        raise ValueError(f"slot {slot}: {MAX_ATTEMPTS} draws from {space} answered nothing; use another seed")
    return found


class _Recalled:
    """A trial that answers what was chosen, and notes what it was chosen from."""

    def __init__(self, chosen: Mapping[str, Any]) -> None:
        self.chosen = chosen
        self.asked: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any:
        from optuna.distributions import CategoricalDistribution

        return self._noted(name, CategoricalDistribution(choices))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        from optuna.distributions import IntDistribution

        return int(self._noted(name, IntDistribution(low, high, log=log)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        from optuna.distributions import FloatDistribution

        return float(self._noted(name, FloatDistribution(low, high, log=log)))

    def _noted(self, name: str, distribution: Any) -> Any:
        self.asked[name] = distribution
        return self.chosen[name]


@cache
def _distributions(space: str, choices: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """{name: what it was chosen from}, of a proposal."""
    recalled = _Recalled(dict(choices))
    SPACES[space](recalled)
    return recalled.asked


def _ask(trials: Sequence[Seen], space: str, kind: str, seed: int) -> tuple[Proposal | None, Choices]:
    import optuna  # seconds of import, wanted by nobody who only reads this module

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        # "multivariate is experimental": its results are pinned by a seed and a version
        warnings.simplefilter("ignore")
        sampler: Any
        if kind == "random":
            sampler = optuna.samplers.RandomSampler(seed=seed)
        else:
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, n_startup_trials=0)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        # Added as they were and not asked for again: the estimator would be fitted to each of them.
        study.add_trials(
            [
                optuna.trial.create_trial(
                    params=dict(past.choices),
                    distributions=_distributions(space, tuple(past.choices.items())),
                    value=past.value,
                )
                for past in trials
                if past.value is not None
            ]
        )
        trial = study.ask()
        proposal = SPACES[space](trial)
    return proposal, dict(trial.params)
