"""What is recorded of an answer: a straight line of operations, as data.

A value is a number, a string, a list or tuple of values, a ``Ref`` to a tensor, or a ``Static`` name of a dtype.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from stages.contracts.method import Query

__all__ = [
    "FORWARD",
    "GRADIENTS",
    "MAX_NODES",
    "WEIGHTS",
    "Blank",
    "Node",
    "Plan",
    "Program",
    "Recorded",
    "Ref",
    "Refused",
    "Static",
    "blank",
    "key_of",
    "refs",
    "tensors_of",
]

FORWARD, GRADIENTS, WEIGHTS = "target.forward", "target.gradients", "target.weights"
"""Operations of the target; every other operation is one of ``torch.ops.aten``."""
MAX_NODES = 50_000
"""Operations of a program; a loop over items unrolls, so it belongs into a batch axis."""


@dataclass(frozen=True)
class Blank:
    """A tensor's shape and dtype without its values."""

    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: Tensor) -> "Blank":
        return cls(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def empty(self) -> Tensor:
        """A tensor of that shape; make it under a fake mode and it takes no memory."""
        return torch.empty(self.shape, dtype=getattr(torch, self.dtype))


@dataclass(frozen=True)
class Ref:
    """A tensor of the program: output ``item`` of operation ``index`` (node), an array of I(M), a tensor of the query,
    or constant ``index``."""

    kind: Literal["node", "array", "query", "constant"]
    name: str = ""
    index: int = 0
    item: int = 0


@dataclass(frozen=True)
class Static:
    """A value of torch that is no number: ("dtype", "float32"), ("memory_format", "contiguous_format"), ..."""

    kind: str
    name: str


@dataclass(frozen=True)
class Node:
    op: str
    """FORWARD, GRADIENTS, WEIGHTS, or "aten.name.overload"."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True)
class Program:
    nodes: tuple[Node, ...]
    output: Ref | None
    """None: the method declined."""
    constants: tuple[Tensor, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Of the constants: they count towards the size cap of I(M), since both carry what the free phase found."""
        return sum(value.numel() * value.element_size() for value in self.constants)


@dataclass(frozen=True)
class Plan:
    """What a program will do."""

    target_flops: int
    own_flops: int
    peak_bytes: int
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    """Of the results of each operation: it was priced for these, and may not make others."""
    dead: tuple[tuple[int, ...], ...]
    """After each operation: the operations whose results nothing later needs."""
    output: Blank | None
    """Shape and dtype of the answer; None: it declines."""


@dataclass(frozen=True)
class Refused:
    """What stood in the way of recording."""

    reason: str
    layer: str


Recorded = Program | Refused


def refs(value: Any) -> Iterator[Ref]:
    """Every tensor that a value refers to."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from refs(one)
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from refs(one)


def tensors_of(query: Query) -> dict[str, Tensor]:
    """The tensors of a query by field."""
    found = {field.name: getattr(query, field.name) for field in fields(query)}
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def blank(query: Query) -> Query:
    """The query as a method is asked it while its answer is recorded: shapes in place of tensors."""
    return replace(query, **{name: Blank.of(value) for name, value in tensors_of(query).items()})  # type: ignore[arg-type]


def key_of(question: Query, interpretation: Mapping[str, Tensor]) -> str:
    """What a program depends on beside the method: a blank query and the shapes of I(M)."""
    arrays = sorted((name, Blank.of(value)) for name, value in interpretation.items())
    return hashlib.sha256(f"{question!r}{arrays!r}".encode()).hexdigest()
