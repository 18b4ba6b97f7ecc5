"""The space of methods a researcher proposes from, written once, as choices of an Optuna trial."""

import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from pydantic import JsonValue

from stages.contracts.journal import Choices
from stages.research.view import Seen, View
from stages.scoring.composed import Spec

__all__ = ["Chooser", "draw_spec", "new_spec"]

MAX_ATTEMPTS = 20


class Chooser(Protocol):
    """The part of ``optuna.Trial`` that is used."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


def draw_spec(trial: Chooser) -> Spec:
    """Which representation, hook points, dictionary (type, size, sparsity), pooling and attributions."""
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
    return Spec.model_validate(values)


def new_spec(view: View, kind: str, seed: int, slot: int) -> tuple[Spec, Choices]:
    """A proposal that has not been tried and that answers something; a repeat would spend an iteration on nothing."""
    tried = [one.choices for one in view.tried]
    learned = [] if kind == "random" else view.seen
    for attempt in range(MAX_ATTEMPTS):
        # The sampler is seeded by the slot, so a resumed campaign proposes what an uninterrupted one would have.
        spec, choices = _ask(learned, kind, 1_000_003 * seed + MAX_ATTEMPTS * slot + attempt)
        if choices not in tried and spec != Spec():
            break
    return spec, choices


def _ask(trials: Sequence[Seen], kind: str, seed: int) -> tuple[Spec, Choices]:
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
            if past.value is not None:
                study.enqueue_trial(dict(past.choices))
                replayed = study.ask()
                draw_spec(replayed)
                study.tell(replayed, past.value)
        trial = study.ask()
        spec = draw_spec(trial)
    return spec, dict(trial.params)
