"""Principal components of the activations at every residual-stream and hidden-layer hook point, and of what the
target's components are part of."""

import torch
from torch import Tensor

from stages.contracts.method import (
    Answer,
    Budget,
    Interpretation,
    Method,
    Query,
)
from stages.contracts.target import TargetAccess
from stages.interpretation.representation import Encode, Pooling, answer_with, corpus_vectors, hook_names, within

__all__ = ["Pca"]


class _Project(Encode):
    def __call__(self, name: str, values: Tensor) -> Tensor:
        arrays = self.interpretation.arrays
        return (values - arrays[f"{name}.mean"]) @ arrays[f"{name}.components"]

    def knows(self, name: str) -> bool:
        return f"{name}.mean" in self.interpretation.arrays

    def rebuilt(self, name: str, features: Tensor) -> Tensor:
        arrays = self.interpretation.arrays
        return features @ arrays[f"{name}.components"].T + arrays[f"{name}.mean"]


class Pca(Method):
    """
    Of a large target not every hook point fits into I(M): the last ones are taken.

    Args:
        n_components: components kept per hook point.
        roles: hook points used, by role.
        pooling: which positions Represent and Compare read.
    """

    name = "pca"

    def __init__(
        self, n_components: int = 12, roles: tuple[str, ...] = ("residual", "mlp"), pooling: Pooling = "readout"
    ) -> None:
        self.n_components, self.roles, self.pooling = n_components, roles, pooling

    def interpret(self, target: TargetAccess, budget: Budget) -> Interpretation:
        arrays: dict[str, Tensor] = {}
        spec, width = target.spec, 1 + self.n_components
        parts = {component.hook_point for component in spec.components} | set(hook_names(spec, self.roles))
        names = within({name: 4 * width * spec.hook(name).width for name in parts}, spec, budget.max_bytes)
        for name, rows in corpus_vectors(target, names).items():
            mean = rows.mean(0)
            _, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / len(rows))
            kept = vectors[:, -min(self.n_components, rows.shape[1]) :].flip(-1)
            # eigh leaves the signs open; fix them so that the artifact is the same on every run.
            sign = kept.gather(0, kept.abs().argmax(0, keepdim=True)).sign()
            arrays |= {f"{name}.mean": mean, f"{name}.components": (kept * sign).contiguous()}
        return Interpretation(arrays, {"hook_points": [name for name in names if spec.hook(name).role in self.roles]})

    def answer(self, query: Query, interpretation: Interpretation, target: TargetAccess) -> Answer:
        names = interpretation.data["hook_points"]
        return answer_with(_Project(interpretation), names, query, interpretation, target, self.pooling)
