"""Training runs of the last block of a model of words, many side by side: what ``Runs`` is for whole small models.

Shape legend: V = runs, N = prompts, B = batch, C = outputs.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.target import Target
from stages.tasks.inputs import kinds_of
from stages.tasks.side_by_side import Adam, slopes_of
from stages.tasks.word_backdoors import LastBlock

__all__ = ["BlockRuns", "varied_kinds"]


class BlockRuns:
    """V runs with Adam, each with its own learning rate.

    Args:
        target: of words.
        prompts: (N, T, 2) all that is trained on: what the blocks before the last compute of it is computed once.
        rates: (V,) learning rates.
        start: {weight of the whole model: (V, ...)} last blocks to start from; None: the target's.
    """

    def __init__(
        self, target: Target, prompts: Tensor, rates: Tensor, start: Mapping[str, Tensor] | None = None
    ) -> None:
        self._block = LastBlock(target, prompts)
        self._table = self._block.before(prompts)
        self._prefix = f"{self._block.prefix}."
        own = {name: value.detach() for name, value in self._block.trained().items()}
        self.weights = {
            name: value.expand(len(rates), *value.shape).clone()
            if start is None
            else start[self._prefix + name].clone()
            for name, value in own.items()
        }
        self._adam = Adam(self.weights, rates)

    def step(self, index_VB: Tensor, labels_VB: Tensor) -> None:
        """One step of every run on its own batch of the prompts."""

        def loss(weights: dict[str, Tensor]) -> Tensor:
            logits = self._block.outputs(weights, *(part[index_VB] for part in self._table))
            return F.cross_entropy(logits.transpose(1, 2), labels_VB, reduction="none").mean(1).sum()

        self._adam.step(slopes_of(self.weights, loss))

    def outputs(self, index_VB: Tensor) -> Tensor:
        """(V, B, C) logits on some of the prompts, of each run on its own."""
        with torch.no_grad():
            return self._block.outputs(self.weights, *(part[index_VB] for part in self._table))

    def full(self) -> dict[str, Tensor]:
        """The weights by the names that they have in the whole model."""
        return {self._prefix + name: value.detach() for name, value in self.weights.items()}


def varied_kinds(target: Target, n_answers: int, n_prompts: int) -> tuple[int, ...]:
    """Kinds with more than so many answers, and at least so many prompts in the split that tasks are drawn from."""
    own = target.corpus("tasks")
    kind_N = kinds_of(target, own)
    return tuple(
        kind
        for kind in torch.unique(kind_N).tolist()
        if len(torch.unique(own.labels[kind_N == kind])) > n_answers and int((kind_N == kind).sum()) >= n_prompts
    )
