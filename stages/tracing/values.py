"""From the plain data of a program to what torch takes: operations, tensors, dtypes."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from stages.tracing.program import Ref, Static

__all__ = ["ProgramError", "depends_on_values", "fill", "operation", "outputs"]

MAX_DEPTH = 6
MAX_STRING = 200
_NAME = re.compile(r"aten\.([a-zA-Z0-9_]+)\.([a-zA-Z0-9_]+)")
_REFUSED = frozenset("set_ resize_ resize_as_ _resize_output_ sparse_resize_ item _local_scalar_dense".split())
"""What changes a tensor's storage under others' hands, or asks for values."""
_KINDS = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}


class ProgramError(ValueError):
    """A program that may not run."""


@lru_cache(maxsize=4096)
def operation(op: str) -> Any:
    """The overload of an operation's name.

    Raises:
        ProgramError: there is none.
    """
    found = _NAME.fullmatch(op)
    packet = getattr(torch.ops.aten, found[1], None) if found else None
    overload = getattr(packet, found[2], None) if found and found[2] in getattr(packet, "overloads", list)() else None
    if overload is None:
        raise ProgramError(f"{op[:60]!r} is no operation of torch.ops.aten")
    if found and found[1] in _REFUSED:
        raise ProgramError(f"operation {op} may not stand in an answer: it works behind the tensors' backs")
    draws = torch.Tag.nondeterministic_seeded in overload.tags
    if draws and not any(argument.name == "dropout_p" for argument in overload._schema.arguments):
        raise ProgramError(f"operation {op} draws random numbers: put them into I(M), from budget.generator()")
    return overload


def fill(value: Any, tensors: Mapping[Ref, Tensor], depth: int = 0) -> Any:
    """A value with its tensors in place.

    Raises:
        ProgramError: it refers to something that is not there, or is no value of a program.
    """
    if depth > MAX_DEPTH:
        raise ProgramError(f"arguments nested more than {MAX_DEPTH} deep")
    if isinstance(value, Ref):
        if value not in tensors:
            raise ProgramError(f"{value} is no tensor that exists at this point")
        return tensors[value]
    if isinstance(value, Static):
        if value.kind == "device":
            return torch.device("cpu")
        found = getattr(torch, str(value.name), None)
        if value.kind not in _KINDS or not isinstance(found, _KINDS[value.kind]):
            raise ProgramError(f"{value} is no value of an operation")
        return found
    if isinstance(value, str) and len(value) > MAX_STRING:
        raise ProgramError(f"a string of {len(value):,} characters; at most {MAX_STRING} are allowed")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) in (list, tuple):
        return [fill(one, tensors, depth + 1) for one in value]
    raise ProgramError(f"a {type(value).__name__} is no value of a program")


def outputs(out: Any) -> list[Tensor]:
    """The tensors of an operation's result, in the order in which ``Ref.item`` counts them."""
    if isinstance(out, Tensor):
        return [out]
    return [one for part in out for one in outputs(part)] if isinstance(out, (list, tuple)) else []


def depends_on_values(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether the result of an operation, or its shape, depends on the values of its arguments.

    Looking up by places has the shape of the places; by a mask it has as many rows as the mask is true.
    """
    if torch.Tag.data_dependent_output in op.tags:
        return True
    if torch.Tag.dynamic_output_shape not in op.tags:
        return False
    if op._schema.name != "aten::index":
        return True
    places = args[1] if len(args) > 1 else kwargs.get("indices", ())
    return any(isinstance(place, Tensor) and place.dtype in (torch.bool, torch.uint8) for place in places)
