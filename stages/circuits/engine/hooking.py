"""Hook points as the engine sees them: where they are, what they hold, and which axis holds the units.

Shape legend: S = masks (or groups of data), B = batch, U = units of a node, V = readers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from stages.circuits.engine.graph import Block, Node
from stages.errors import UserError

__all__ = [
    "TOLERANCE",
    "Hook",
    "attach",
    "check_model",
    "differs",
    "hooked",
    "point_of",
    "size_of",
    "units_back",
    "units_first",
]

Hook = tuple[str, Callable[[Tensor], Tensor | None]]
"""Name of a hook point, and what is called with its value; what it returns takes the value's place."""

TOLERANCE = 1e-3
"""Largest deviation, as a share of the largest value, that is rounding and not an undeclared source."""


def differs(found: Tensor, wanted: Tensor) -> bool:
    return float((found - wanted).abs().max()) > TOLERANCE * (float(wanted.abs().max()) + 1e-6)


def check_model(model: nn.Module) -> None:
    if not hasattr(model, "hook_dict"):
        raise UserError(
            f"{type(model).__name__} has no hook points: extend transformer_lens.HookedRootModule, call HookPoints in"
            " forward, and end __init__ with self.setup()"
        )
    learning = [name or type(model).__name__ for name, part in model.named_modules() if part.training]
    if model.training or any(name not in dict(model.hook_dict) for name in learning):  # type: ignore[arg-type]
        raise UserError(
            f"the module is in training mode ({', '.join(learning[:3])}), where dropout and batch norm move: call"
            " model.eval() first"
        )


def point_of(model: nn.Module, name: str) -> tuple[nn.Module, bool]:
    """(module, whether its input is meant) of a hook point, or of "module:in" and "module:out"."""
    hooks: dict[str, nn.Module] = dict(model.hook_dict)  # type: ignore[arg-type]
    if name in hooks:
        return hooks[name], False
    path, _, side = name.rpartition(":")
    modules = dict(model.named_modules())
    if side in ("in", "out") and path in modules:
        return modules[path], side == "in"
    raise UserError(
        f"{name!r} is no hook point of {type(model).__name__}: it has {', '.join(list(hooks)[:20])}; a module's input"
        f" or"
        " output is named 'module:in' or 'module:out'"
    )


@contextmanager
def hooked(points: Mapping[str, tuple[nn.Module, bool]], hooks: Sequence[Hook]) -> Iterator[None]:
    """Hooks at points by name, inside the block only."""
    handles = []
    try:
        for name, function in hooks:
            handles.append(attach(*points[name], function))
        yield
    finally:
        for handle in handles:
            handle.remove()


def attach(module: nn.Module, at_input: bool, function: Callable[[Tensor], Tensor | None]) -> Any:
    if at_input:

        def before(_: nn.Module, given: tuple[Any, ...]) -> Any:
            if not given:
                raise UserError(
                    f"a {type(module).__name__} whose input is a node is called with keyword arguments only: pass its"
                    " input by position, or put a HookPoint before it"
                )
            found = function(given[0])
            return None if found is None else (found, *given[1:])

        return module.register_forward_pre_hook(before)
    return module.register_forward_hook(lambda _, given, value: function(value))


def size_of(node: Node, values: dict[str, Tensor]) -> int:
    if node.part is not None and node.part.decoder is not None:
        return len(node.part.decoder)
    if node.axis is None:
        return 1
    hook = node.writes or next(iter(node.ports.values()))
    shape = values[hook].shape
    if not 0 < node.axis < len(shape):
        raise UserError(
            f"node {node.name!r}: axis {node.axis} of {hook!r}, which holds {tuple(shape)}; axis 0 is the batch"
        )
    for other in node.ports.values():
        if not node.shared_input and (
            values[other].dim() <= node.axis or values[other].shape[node.axis] != shape[node.axis]
        ):
            raise UserError(
                f"node {node.name!r} has {shape[node.axis]} units along axis {node.axis} of {hook!r}, but {other!r}"
                f" holds"
                f" {tuple(values[other].shape)}: let the module copy its input per unit, or set shared_input=True"
            )
    return int(shape[node.axis])


def units_first(node: Node, value: Tensor, n: int, reading: int | None = None) -> Tensor:
    """Hook value (S * B, ...) -> (S, U, B, ...)."""
    if reading is None and node.part is not None:
        value = node.part.value(value)
        axis = value.dim() - 1 if node.part.decoder is not None else node.axis
    else:
        axis = None if reading is not None and node.shared_input else node.axis
        if reading is not None and node.part is not None:
            axis = None
    split = value.view(n, value.shape[0] // n, *value.shape[1:])
    return split.unsqueeze(1) if axis is None else split.movedim(axis + 1, 1)


def units_back(block: Block, total: Tensor, like: Tensor) -> Tensor:
    """(S, V, B, ...) -> the shape of the hook's value."""
    node = block.port.node
    whole = node.axis is None or node.shared_input or node.part is not None
    out = total.squeeze(1) if whole else total.movedim(1, node.axis + 1)  # type: ignore[operator]
    return out.reshape(like.shape)
