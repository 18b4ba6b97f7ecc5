"""One forward pass shared by the parts of a composed method."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from stages.contracts.dictionary import Dictionary
from stages.contracts.target import (
    Forward,
    Gradients,
    Intervention,
    Objective,
    TargetAccess,
    TargetSpec,
)

__all__ = ["SharedForward"]


class SharedForward:
    """A ``TargetAccess`` that asks for all hook points at once and remembers the last inputs.

    A forward pass costs the same whatever is captured, so parts that look at the same inputs pay for one pass together.
    """

    def __init__(self, access: TargetAccess, hook_points: Sequence[str]) -> None:
        self._access, self._hook_points = access, list(hook_points)
        self._memory: list[tuple[Tensor, Forward]] = []
        self._variants: dict[tuple[object, ...], SharedForward] = {}

    @property
    def spec(self) -> TargetSpec:
        return self._access.spec

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        if interventions:
            return self._access.forward(inputs, capture, interventions)
        result = next((known for seen, known in self._memory if _same(seen, inputs)), None)
        if result is None:
            result = self._access.forward(inputs, self._hook_points)
            self._memory.append((inputs, result))
        return Forward(result.outputs, {name: result.captured[name] for name in capture})

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        return self._access.gradients(inputs, objective, wrt)

    def variant(self, index: int) -> "SharedForward":
        return self._over((index,), lambda: self._access.variant(index))

    def variants(self, indices: Sequence[int]) -> "SharedForward":
        return self._over(("all", *indices), lambda: self._access.variants(indices))

    def _over(self, key: tuple[object, ...], made: Callable[[], TargetAccess]) -> "SharedForward":
        if key not in self._variants:
            self._variants[key] = SharedForward(made(), self._hook_points)
        return self._variants[key]

    def weights(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        return self._access.weights(names)

    def corpus(self, split: Any = "train") -> Any:
        return self._access.corpus(split)

    def dictionaries(self) -> dict[str, Dictionary]:
        return self._access.dictionaries()


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same place in memory, read the same way: what they hold nobody knows yet while an
    answer is recorded."""
    return a is b or (
        a.untyped_storage()._cdata == b.untyped_storage()._cdata
        and (a.dtype, a.shape, a.stride(), a.storage_offset()) == (b.dtype, b.shape, b.stride(), b.storage_offset())
    )
