"""The space of methods a researcher proposes from, written once, as choices of an Optuna trial."""

from typing import Any, Protocol

from stages.scoring.composed import Spec

__all__ = ["Chooser", "draw_spec"]


class Chooser(Protocol):
    """The part of ``optuna.Trial`` that is used."""

    def suggest_categorical(self, name: str, choices: list[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


def draw_spec(trial: Chooser) -> Spec:
    """Which representation, hook points, dictionary (type, size, sparsity), pooling and attributions."""
    representation = trial.suggest_categorical("representation", ["none", "raw", "pca", "sae"])
    values: dict[str, Any] = {
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
    return Spec(**values)
