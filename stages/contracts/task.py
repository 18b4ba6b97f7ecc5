"""The contract of a task family: instances with a public part, a brute-force truth, and a black-box toolkit.

A family asks one kind of question about any target that fits it. Every instance has ``n_items`` rows to predict (1
where the question is about the whole instance; one per segment, component, ... otherwise). The truth of each row is a
real number; the score is the share of its variance that the predictions explain, so 0 is the best constant predictor
and 1 is perfect.

Shape legend: N = instances, I = items per instance, K = features, W = weightings (bootstrap resamples).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import JsonValue
from torch import Tensor

from stages.contracts.method import Query
from stages.contracts.target import OFFERS, Offer, Target, TargetAccess, TargetSpec

__all__ = ["Constants", "Instances", "TaskFamily", "Truth", "skill"]

FloatArray = npt.NDArray[np.float64]
Constants = Mapping[str, JsonValue]
"""Numbers by name, as JSON."""


@dataclass(frozen=True)
class Instances:
    """The public part of N instances: what the executor and the method may see. Never a label of the question."""

    arrays: Mapping[str, Tensor]
    """Arrays whose first axis is the instance, except those named ``shared_*``."""
    n: int
    variants: Mapping[str, Tensor] = field(default_factory=dict)
    """Weights of modified targets, stacked: first axis = variant. Empty where the family has no variants."""
    planted: Mapping[str, Tensor] = field(default_factory=dict)
    """What the family planted (first axis = instance), for ``ground_truth`` alone. Private: storage never writes it, so
    nobody who loads a task sees it."""

    def __post_init__(self) -> None:
        # A file gives its arrays back in any order, another one in each process. Who goes over them must meet them in
        # the same order, or the columns of an answer are others than those the agent was calibrated on.
        for name in ("arrays", "variants", "planted"):
            held = getattr(self, name)
            if list(held) != sorted(held):
                object.__setattr__(self, name, dict(sorted(held.items())))

    def select(self, index: Tensor) -> "Instances":
        arrays = {k: v if k.startswith("shared_") else v[index] for k, v in self.arrays.items()}
        return Instances(arrays, int(index.numel()), self.variants, {k: v[index] for k, v in self.planted.items()})

    def public(self) -> "Instances":
        """The same instances without what was planted."""
        return Instances(self.arrays, self.n, self.variants)


@dataclass(frozen=True)
class Truth:
    values: Tensor
    """(N, I) float64."""
    groups: Mapping[str, JsonValue] = field(default_factory=dict)
    """Private facts for audits, such as which variants carry which trigger. JSON values only."""


def skill(predictions: FloatArray, truth: FloatArray, weights: FloatArray | None = None) -> FloatArray:
    """Explained variance of the truth: 1 - SSE / SST about the weighted mean, clipped to [0, 1].

    Source: the mean-squared-error skill score (Murphy 1988, Mon. Weather Rev. 116, eq. 4) with the best constant as
    reference. For a yes/no truth this is the Brier skill score.

    Args:
        predictions: (N, I).
        truth: (N, I).
        weights: (W, N) weights of the instances, one row per resample; None: all ones.

    Returns:
        (W,) scores; (1,) without weights. A truth that does not vary scores 0.
    """
    if predictions.shape != truth.shape:
        raise ValueError(f"predictions have shape {predictions.shape}, truth {truth.shape}; they must be equal")
    w = np.ones((1, truth.shape[0])) if weights is None else weights
    n_items = truth.shape[1]
    centre = truth.mean()  # shifts cancel in exact arithmetic; this keeps the sums small
    count = w.sum(1) * n_items
    first = w @ (truth - centre).sum(1)
    total = w @ ((truth - centre) ** 2).sum(1) - first**2 / np.maximum(count, 1e-12)
    error = w @ ((predictions - truth) ** 2).sum(1)
    varies = total > 1e-12 * np.maximum(count, 1.0)
    score = np.where(varies, 1.0 - error / np.where(varies, total, 1.0), 0.0)
    return np.clip(score, 0.0, 1.0)


class TaskFamily(ABC):
    """One family of verifiable tasks: one file in families/, and its split and targets in params/tasks.yaml."""

    name: ClassVar[str]
    """Name of the file it is in; set by itself."""
    version: ClassVar[int] = 1
    """Results are comparable only within a version."""
    title: ClassVar[str]
    """The question, in one line."""
    source: ClassVar[str]
    cluster: ClassVar[str] = ""
    """Families that share a generator or a game have one name here and count once; empty: it stands alone."""
    why_hard_black_box: ClassVar[str]
    why_white_box_helps: ClassVar[str]
    query_kind: ClassVar[Literal["Represent", "Attribute", "Localise", "Compare", "Steer", "Propose"]]
    needs: ClassVar[frozenset[Offer]]
    """What a target must offer so that the question means something on it; names of ``target.OFFERS``."""
    instead: ClassVar[frozenset[Offer]] = frozenset()
    """What is enough in place of ``needs``, where the question can also be put in another way; empty: nothing is."""
    n_efforts: ClassVar[int]
    """Steps of the black-box ladder: effort runs from 0 (cheapest) to n_efforts - 1."""
    cost_factor: ClassVar[float] = 1.0
    """Share of the configured number of instances that is generated: below 1 where the truth is dear."""
    truth_recipe: ClassVar[str]
    """How the truth is made, in words that an outsider can program from; names in it are keys of ``constants``."""
    constants: ClassVar[Constants]
    """Every number that instances or truth depend on. JSON values only."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.name = cls.__module__.rpartition(".")[2]
        unknown = sorted((set(getattr(cls, "needs", ("nothing said",))) | cls.instead) - set(OFFERS))
        if unknown:
            raise TypeError(
                f"{cls.__name__}.needs has {', '.join(unknown)}: say what the family needs of a target's inputs, such"
                f" as frozenset({{'pixels'}}); known: {', '.join(sorted(OFFERS))}"
            )

    def refusal(self, spec: TargetSpec) -> str | None:
        """Why the question means nothing on this target, in one line; None where it means something."""
        offered = set(spec.offers)
        if self.needs <= offered or (self.instead and self.instead <= offered):
            return None

        def lacking(needs: frozenset[Offer]) -> str:
            return "; ".join(f"{name} ({OFFERS[name]})" for name in sorted(needs - offered))

        what = lacking(self.needs) + (f"; or else {lacking(self.instead)}" if self.instead else "")
        has = ", ".join(spec.offers) or "nothing"
        return f"task family {self.name} means nothing on {spec.name}, which offers {has}: it needs {what}"

    def share_on(self, spec: TargetSpec) -> float:
        """Share of the configured number of instances that is generated on this target."""
        return self.cost_factor

    @abstractmethod
    def generate(self, target: Target, rng: torch.Generator, n: int) -> Instances:
        """Draw n instances from the target's ``tasks`` split."""

    @abstractmethod
    def ground_truth(self, target: Target, instances: Instances, rng: torch.Generator) -> Truth:
        """Brute force on the untouched target."""

    @abstractmethod
    def behavioural(self, access: TargetAccess, instances: Instances, effort: int, rng: torch.Generator) -> Tensor:
        """(N, I, K) black-box features at a rung of the ladder. Only ``access.forward`` without capture is used."""

    @abstractmethod
    def query(self, instances: Instances) -> Query:
        """The general question a method is asked. Its answer has N rows, or (N, I) of them."""

    def score(self, predictions: FloatArray, truth: FloatArray, weights: FloatArray | None = None) -> FloatArray:
        """(W,) scores in [0, 1]; see ``skill``."""
        return skill(predictions, truth, weights)
