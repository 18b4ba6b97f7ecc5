"""A metric of the user's own: called like ours, and looked at, since a wrong shape would come out as another fault.

Shape legend: S = masks, B = batch, C = outputs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.base.users_code import given_by_the_user
from stages.errors import UserError

__all__ = ["checked"]


def checked(metric: Callable[..., Any]) -> Callable[[Tensor, Tensor], Tensor]:
    """The same metric, whose every result is a float tensor (S, B) that keeps its gradient; else an error says what it
    returned."""
    name = getattr(metric, "__name__", type(metric).__name__)

    def objective(outputs: Tensor, clean: Tensor) -> Tensor:
        shape = tuple(outputs.shape)
        with given_by_the_user(f"metric {name!r} fails on outputs {shape} and clean ones {tuple(clean.shape)}"):
            found: object = metric(outputs, clean)
        if not isinstance(found, Tensor):
            raise UserError(f"metric {name!r} returned {_kind(found)}: {_wanted(shape)}")
        if found.shape != outputs.shape[:2]:
            raise UserError(f"metric {name!r} returned a tensor of shape {tuple(found.shape)}: {_wanted(shape)}")
        if not found.is_floating_point():
            raise UserError(f"metric {name!r} returned {found.dtype}: {_wanted(shape)}")
        if torch.is_grad_enabled() and outputs.requires_grad and not found.requires_grad:
            raise UserError(
                f"metric {name!r} has no gradient (detach, item, numpy, argmax or no_grad inside), which this method"
                " needs: use differentiable operations of torch, or --method acdc, which needs none"
            )
        return found

    return objective


def _kind(found: object) -> str:
    return "nothing (no return)" if found is None else f"a {type(found).__module__}.{type(found).__name__}".replace(
        "a builtins.", "a "
    )  # fmt: skip


def _wanted(shape: tuple[int, ...]) -> str:
    return (
        f"it must return a float tensor with one loss per mask and input, here {shape[:2]}, from outputs (masks,"
        f" inputs, ..., C) = {shape}; such as (outputs - clean).square().flatten(2).mean(-1)"
    )
