"""The space of methods that researchers search: a method written as a spec instead of as code.

A spec names a representation with its hook points and pooling, and which attributions go with it. Its answer is the
answers of its parts side by side, paid for by one shared forward pass.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from stages.base.params import Params
from stages.contracts.dictionary import Dictionary
from stages.contracts.method import (
    Answer,
    Budget,
    Interpretation,
    Method,
    Query,
)
from stages.contracts.target import TargetAccess
from stages.dictionaries.architectures.custom_objectives import ACTIVATIONS, REGULARISERS
from stages.dictionaries.training.train import recipe_for, train
from stages.dictionaries.training.trainer import Recipe
from stages.interpretation.methods.attention import Attention
from stages.interpretation.methods.gradient import Gradient
from stages.interpretation.methods.logit_lens import LogitLens
from stages.interpretation.methods.pca import Pca
from stages.interpretation.methods.raw_activations import RawActivations
from stages.interpretation.methods.sae import Sae
from stages.interpretation.representation import corpus_vectors, hook_names
from stages.scoring.shared_forward import SharedForward

__all__ = ["Composed", "Spec"]

TRAIN_BATCH, TRAIN_LR = 512, 1e-3


class DictionarySpec(Params):
    """A dictionary trained inside ``interpret`` (free phase, so uncharged but within its time limit)."""

    architecture: Literal["standard", "topk", "batchtopk", "jumprelu", "matryoshka", "abstopk", "p_anneal"]
    n_latents: int = Field(ge=16, le=4096)
    sparsity: float = Field(gt=0)
    """Coefficient for ``standard`` and ``p_anneal``, latents per row for the others."""
    steps: int = Field(default=300, ge=1, le=10_000)
    regularisers: dict[str, float] = Field(default_factory=dict, max_length=8)
    """Coefficients of regularisers added to the loss, by name (see custom_objectives.py)."""
    activation: str = ""
    """Name of an activation in place of ReLU (``standard`` only)."""

    @model_validator(mode="after")
    def _known(self) -> "DictionarySpec":
        for kind, names, known in (
            ("regulariser", tuple(self.regularisers), REGULARISERS),
            ("activation", (self.activation,) if self.activation else (), ACTIVATIONS),
        ):
            unknown = sorted(set(names) - set(known))
            if unknown:
                raise ValueError(f"{kind} {', '.join(unknown)} is unknown; known: {', '.join(sorted(known))}")
        if not all(0.0 <= value <= 1e3 for value in self.regularisers.values()):
            raise ValueError(f"regularisers = {self.regularisers}: coefficients are from 0 to 1000")
        if self.activation and self.architecture != "standard":
            raise ValueError(f"activation = {self.activation}: {self.architecture} has its own; use standard")
        return self

    def recipe(self) -> Recipe:
        made = recipe_for(self.architecture, self.n_latents, self.sparsity, self.steps, TRAIN_BATCH, TRAIN_LR)
        return replace(made, regularisers=tuple(sorted(self.regularisers.items())), activation=self.activation)


class Spec(Params):
    """One point of the search space."""

    representation: Literal["none", "raw", "pca", "sae"] = "none"
    roles: Literal["residual", "mlp", "residual+mlp"] = "residual+mlp"
    """Hook points the representation reads."""
    pooling: Literal["readout", "mean", "max"] = "readout"
    n_features: int = Field(default=12, ge=1, le=256)
    """Principal components or latents kept per hook point."""
    dictionary: DictionarySpec | None = None
    """With ``sae``: trained to order; None takes the dictionaries of the pipeline."""
    gradient: bool = False
    attention: bool = False
    logit_lens: bool = False


class _OrderedSae(Sae):
    """Dictionaries trained to a spec instead of taken from the pipeline."""

    def __init__(self, spec: Spec) -> None:
        super().__init__("ordered", spec.n_features, spec.pooling)
        self.spec = spec

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        return super().interpret(_WithDictionaries(target, self._train(target, budget)), budget)

    def _train(self, target: TargetAccess, budget: Budget) -> dict[str, Dictionary]:
        settings = self.spec.dictionary
        assert settings is not None, "an ordered dictionary needs its settings"
        names = hook_names(target.spec, self.spec.roles.split("+"))
        recipe = settings.recipe()
        return {
            f"{name}/ordered": train(rows, recipe, budget.seed) for name, rows in corpus_vectors(target, names).items()
        }


class _WithDictionaries(SharedForward):
    def __init__(self, access: TargetAccess, dictionaries: dict[str, Dictionary]) -> None:
        super().__init__(access, [hook.name for hook in access.spec.hooks])
        self._given = dictionaries

    def dictionaries(self) -> dict[str, Dictionary]:
        return self._given


class Composed(Method):
    """A method made from a spec."""

    def __init__(self, spec: Spec | Mapping[str, Any], name: str = "composed") -> None:
        self.spec = spec if isinstance(spec, Spec) else Spec(**spec)
        self.name = name
        roles = tuple(self.spec.roles.split("+"))
        parts: dict[str, Method] = {}
        match self.spec.representation:
            case "raw":
                parts["raw"] = RawActivations(roles, self.spec.pooling)
            case "pca":
                parts["pca"] = Pca(self.spec.n_features, roles, self.spec.pooling)
            case "sae":
                parts["sae"] = (
                    _OrderedSae(self.spec)
                    if self.spec.dictionary
                    else Sae(n_kept=self.spec.n_features, pooling=self.spec.pooling)
                )
        if self.spec.gradient:
            parts["gradient"] = Gradient()
        if self.spec.attention:
            parts["attention"] = Attention()
        if self.spec.logit_lens:
            parts["logit_lens"] = LogitLens()
        self.parts = parts

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        arrays: dict[str, Tensor] = {}
        data: dict[str, object] = {}
        for name, part in self.parts.items():
            made = part.interpret(target, budget)
            arrays |= {f"{name}:{key}": value for key, value in made.arrays.items()}
            data[name] = dict(made.data)
        return Interpretation(arrays, data)

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        shared = SharedForward(target, [hook.name for hook in target.spec.hooks])
        answers = []
        for name, part in self.parts.items():
            prefix = f"{name}:"
            arrays = {k.removeprefix(prefix): v for k, v in interpretation.arrays.items() if k.startswith(prefix)}
            answer = part.answer(query, Interpretation(arrays, interpretation.data[name]), shared)
            if answer is not None:
                answers.append(answer)
        return torch.cat(answers, dim=-1) if answers else None
