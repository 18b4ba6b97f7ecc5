"""Somebody else's module, run once and looked at: dtype and device, hook points, randomness, in-place code, undeclared
reads. Whatever would make a masked forward mean something else is an error that names it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stages.base.users_code import given_by_the_user
from stages.circuits.engine.graph import Graph
from stages.circuits.engine.hooking import Hook, differs, hooked
from stages.errors import UserError

__all__ = ["Points", "Traced", "check_declaration", "check_repeatable", "run_module", "trace"]

Points = Mapping[str, tuple[nn.Module, bool]]
"""Module, and whether its input is meant, by name of the hook point."""

DTYPES = (torch.float32, torch.float64)
"""In half precision a sum of parents is off by more than an undeclared source would be."""
REPEATED = 1e-5
"""Difference of two runs on the same inputs, as a share of the largest value, that is no randomness."""
HOOKS = tuple(
    str(Path(__file__).resolve().with_name(f"{name}.py"))
    for name in ("hooking", "masked", "mixing", "readers", "tracing")
)
"""Code of ours that runs inside the user's module; other files here hold modules, which may fail like anyone's."""


class Traced(NamedTuple):
    values: dict[str, Tensor]
    """What every hook point of the graph held; copies, which code that works in place cannot change."""
    outputs: Tensor
    changed: frozenset[str] = frozenset()
    """Hook points whose value was changed in place after it was read."""


def run_module(model: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs of the user's module; what it raises is told with its line, what our hooks raise is not."""
    with given_by_the_user(f"the module fails on inputs {tuple(inputs.shape)}", ours=HOOKS):
        outputs: Tensor = model(inputs)
    return outputs


def trace(model: nn.Module, graph: Graph, points: Points, inputs: Tensor) -> Traced:
    """One run on inputs. Checks that each hook point fires once, in order, and holds what can be masked.

    Raises:
        UserError: dtype, device or shape of weights, inputs, hook values or outputs; a hook point that does not fire
            once; inputs that are changed in place; outputs that are not finite.
    """
    _check_place(model, inputs)
    values: dict[str, Tensor] = {}
    live: dict[str, Tensor] = {}
    fired: list[str] = []

    def keep(name: str) -> Callable[[Tensor], None]:
        def record(value: Tensor) -> None:
            if not isinstance(value, Tensor) or value.shape[:1] != inputs.shape[:1]:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise UserError(f"hook point {name!r} holds {shape}: a tensor with the batch axis first is needed")
            if value.numel() == 0:
                raise UserError(
                    f"hook point {name!r} is empty, {tuple(value.shape)}: give longer inputs, or drop the node"
                )
            if value.dtype not in DTYPES:
                raise UserError(
                    f"hook point {name!r} holds {_short(value.dtype)}: float32 or float64 is needed; take the cast or"
                    " autocast out of forward"
                )
            fired.append(name)
            live[name], values[name] = value.detach(), value.detach().clone()

        return record

    given = inputs.clone()
    with hooked(points, [(name, keep(name)) for name in points]):
        outputs = run_module(model, given)
    if not torch.equal(given, inputs) and not bool(torch.isnan(inputs).any()):
        raise UserError(
            "the module changes its inputs in place, so every run would see others: write x = x + 1 for x += 1 (copy"
            " them at the start of forward)"
        )
    _check_fired(graph, points, fired)
    _check_outputs(outputs, inputs)
    _check_finite(values, outputs)
    found = {_short(value.dtype): name for name, value in values.items()}
    if len(found) > 1:
        said = " and ".join(f"{dtype} at {name!r}" for dtype, name in sorted(found.items()))
        raise UserError(f"the hook points hold {said}: one dtype is needed, call module.float() or module.double()")
    changed = frozenset(name for name, value in live.items() if not torch.equal(value, values[name]))
    return Traced(values, outputs.detach().clone(), changed)


def _check_place(model: nn.Module, inputs: Tensor) -> None:
    """Before the module runs: torch's own message would name an operation, not the remedy."""
    weights = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in [*weights, ("inputs", inputs)]:
        if tensor.device.type != "cpu":
            what = "the inputs are" if name == "inputs" else f"the module's {name!r} is"
            raise UserError(f"{what} on {tensor.device}: circuits are searched on the CPU, give module.cpu() and"
                            " clean.cpu()")  # fmt: skip
    floats = {_short(tensor.dtype): name for name, tensor in model.named_parameters() if tensor.is_floating_point()}
    for name, tensor in model.named_parameters():
        if (tensor.is_floating_point() or tensor.is_complex()) and tensor.dtype not in DTYPES:
            raise UserError(
                f"the module's {name!r} is {_short(tensor.dtype)}, whose rounding is larger than the losses that are"
                " compared: call module.float() and give float32 inputs"
            )
    if inputs.is_complex() or (inputs.is_floating_point() and inputs.dtype not in DTYPES):
        raise UserError(f"the inputs are {_short(inputs.dtype)}: give clean.float()")
    if inputs.is_floating_point() and len(floats) == 1 and _short(inputs.dtype) not in floats:
        (wanted,) = floats
        raise UserError(
            f"the inputs are {_short(inputs.dtype)}, the module's weights {wanted}: give clean.to(torch.{wanted}), or"
            f" convert the module with .{'float' if inputs.dtype == torch.float32 else 'double'}()"
        )


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_fired(graph: Graph, points: Points, fired: list[str]) -> None:
    for name in points:
        if fired.count(name) != 1:
            raise UserError(
                f"hook point {name!r} fired {fired.count(name)} times in one forward pass, it must fire once: "
                + (
                    "call it in forward (in TransformerLens some need a flag: use_attn_result, use_split_qkv_input,"
                    " use_hook_mlp_in)"
                    if name not in fired
                    else "a module that is called twice needs two hook points"
                )
            )
    for port in graph.ports:
        for parent in graph.parents_of(port.node):
            if parent.writes and parent.writes != port.hook and fired.index(parent.writes) > fired.index(port.hook):
                raise UserError(
                    f"the graph is cyclic: {port.node.name!r} reads {parent.name!r}, but in the forward pass"
                    f" {parent.writes!r} fires after {port.hook!r}: list the nodes in the order of the forward pass"
                )


def _check_outputs(outputs: object, inputs: Tensor) -> None:
    if not isinstance(outputs, Tensor):
        raise UserError(f"the module returns {type(outputs).__name__}: a tensor with the batch axis first is needed")
    if outputs.dim() < 2 or len(outputs) != len(inputs):
        raise UserError(
            f"the module returns {tuple(outputs.shape)} for {len(inputs)} inputs: (inputs, ..., outputs) is needed,"
            " and of one number per input out.unsqueeze(-1)"
        )
    if outputs.numel() == 0:
        raise UserError(f"the module's outputs are empty, {tuple(outputs.shape)}: give longer inputs, or return some")
    if outputs.dtype not in DTYPES:
        raise UserError(f"the module returns {_short(outputs.dtype)}: return float outputs (logits), not answers")


def _check_finite(values: Mapping[str, Tensor], outputs: Tensor) -> None:
    for what, tensor in [("the module's outputs are", outputs), *((f"{n!r} is", v) for n, v in values.items())]:
        bad = (~torch.isfinite(tensor.flatten(1)).all(1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(f"{what} not finite on {len(bad)} of {len(tensor)} inputs (first: input {bad[0]}): mend"
                            " inputs or weights")  # fmt: skip


def check_repeatable(model: nn.Module, graph: Graph, points: Points, inputs: Tensor, first: Traced) -> int:
    """That the module is a function of each input: run again, and on part of the inputs. Returns the passes made.

    Raises:
        UserError: other outputs on the same inputs (randomness, a state), or an input's outputs depend on the others'.
    """
    again = trace(model, graph, points, inputs)
    for name, value in [*again.values.items(), ("outputs", again.outputs)]:
        before = first.outputs if name == "outputs" else first.values[name]
        if _moved(value, before):
            raise UserError(
                "the module gives other values on the same inputs: two runs differ by"
                f" {float((value - before).abs().max()):.2g} at {name!r}. Turn off what is random (F.dropout stays on"
                " after .eval() unless it gets training=self.training; noise) and what keeps a state between calls"
            )
    n = (len(inputs) + 1) // 2
    if n == len(inputs):
        return 1
    part = trace(model, graph, points, inputs[:n])
    # Other batch sizes take other routes through a library: rounding, but no more.
    if differs(part.outputs, first.outputs[:n]):
        raise UserError(
            "what the module gives for an input depends on the other inputs of its batch: take statistics over the"
            " batch out of forward (batch norm in training mode, a mean over axis 0)"
        )
    return 2


def _moved(value: Tensor, before: Tensor) -> bool:
    return float((value - before).abs().max()) > REPEATED * (float(before.abs().max()) + 1e-30)


def check_declaration(model: nn.Module, graph: Graph, points: Points, inputs: Tensor, first: Traced) -> None:
    """With every reader held at its clean value, other inputs and other sources must change nothing after it."""
    again = torch.roll(inputs, 1, dims=0)
    seen: dict[str, Tensor] = {}

    def disturb(name: str) -> Callable[[Tensor], Tensor]:
        def hook(value: Tensor) -> Tensor:
            seen[name] = value.clone()
            return torch.roll(value, 1, dims=0) + 0.5 * value.abs().mean()

        return hook

    def hold(name: str) -> Callable[[Tensor], Tensor]:
        return lambda value: first.values[name].clone()

    readers = {port.hook for port in graph.ports}
    writers = dict.fromkeys(node.writes for node in graph.nodes if node.writes is not None)
    hooks: list[Hook] = [(name, disturb(name)) for name in writers if name not in readers]
    hooks += [(name, hold(name)) for name in readers]
    with hooked(points, hooks):
        outputs = run_module(model, again)
    if differs(outputs, first.outputs):
        raise UserError(
            "the outputs depend on something no declared reader reads: with every reader held at its clean value they"
            " still follow the input. Declare what reads it as a node (the last one reads what makes the outputs)"
        )
    for node in graph.nodes:
        if node.reads is not None and node.writes in seen and differs(seen[node.writes], first.values[node.writes]):
            raise UserError(
                f"node {node.name!r} reads something it does not declare: with its inputs held at their clean values"
                f" {node.writes!r} still changes. Declare every hook point it reads (queries, keys and values alike)"
            )
