"""Calls to the target inside a program: how their arguments and results are laid out.

FORWARD: args (inputs, capture, interventions, variants); results outputs, then what is captured, in order.
GRADIENTS: args (inputs, kind, labels, wrt, variants); results values, gradients in the order of ``wrt``, then the
activations of ``wrt`` without "input". WEIGHTS: args (names, variants); results the weights in the order of the names,
of variants alone. An intervention is a tuple of the fields of ``Intervention``; ``variants`` is
None, one index, or a list of indices, in which case every result has their axis in front.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from stages.contracts.checks import check_call, check_names, check_objective, closed
from stages.contracts.target import Forward, Gradients, Intervention, Objective, TargetAccess, TargetSpec

__all__ = [
    "Which",
    "call",
    "forward_args",
    "forward_result",
    "gradients_args",
    "gradients_result",
    "shapes_of",
    "weight_shapes_of",
]

Which = int | list[int] | None
"""The target itself, one variant, or several at once."""


def forward_args(
    inputs: Tensor, capture: Sequence[str], interventions: Sequence[Intervention], variants: Which
) -> tuple[Any, ...]:
    changes = [(i.hook_point, i.kind, i.value, i.axis, list(i.indices)) for i in interventions]
    return inputs, list(capture), changes, variants


def gradients_args(inputs: Tensor, objective: Objective, wrt: Sequence[str], variants: Which) -> tuple[Any, ...]:
    return inputs, objective.kind, objective.labels, list(wrt), variants


def forward_result(args: Sequence[Any], out: Sequence[Tensor]) -> Forward:
    return Forward(out[0], dict(zip(args[1], out[1:], strict=True)))


def gradients_result(args: Sequence[Any], out: Sequence[Tensor]) -> Gradients:
    wrt = args[3]
    hooks = [name for name in wrt if name != "input"]
    return Gradients(
        out[0], dict(zip(wrt, out[1 : 1 + len(wrt)], strict=True)), dict(zip(hooks, out[1 + len(wrt) :], strict=True))
    )


def call(target: TargetAccess, name: str, args: Sequence[Any]) -> list[Tensor]:
    """Run one call on a target. Results lie in memory as they did when the answer was recorded, one number after the
    other: an answer that was recorded with views of them would not run on heads or channels that were permuted."""
    which = args[-1]
    over = target if which is None else target.variant(which) if isinstance(which, int) else target.variants(which)
    if name == "weights":
        found_weights = over.weights(args[0])
        results = [found_weights[one] for one in args[0]]
    elif name == "forward":
        inputs, capture, changes, _ = args
        done = over.forward(inputs, capture, [_intervention(change) for change in changes])
        results = [done.outputs, *(done.captured[hook] for hook in capture)]
    else:
        inputs, kind, labels, wrt, _ = args
        found = over.gradients(inputs, Objective(kind, labels), wrt)
        hooks = [hook for hook in wrt if hook != "input"]
        results = [found.values, *(found.grads[one] for one in wrt), *(found.captured[hook] for hook in hooks)]
    return [result.contiguous() for result in results]


def _intervention(change: Sequence[Any]) -> Intervention:
    hook_point, kind, value, axis, indices = change
    return Intervention(hook_point, kind, value, axis, tuple(indices))


def shapes_of(spec: TargetSpec, name: str, args: Sequence[Any]) -> list[tuple[int, ...]]:
    """Shapes of the results of a call; all are float32.

    Raises:
        ValueError: the call is not one that this target takes.
    """
    inputs, which = args[0], args[-1]
    front = (len(which),) if isinstance(which, list) else ()
    if name == "forward":
        capture = args[1]
        check_call(spec, inputs, capture, [_intervention(change) for change in args[2]])
        hooks, batch = list(capture), inputs.shape[0]
        return [(*front, batch, spec.n_outputs), *((*front, batch, *spec.hook(hook).shape) for hook in hooks)]
    _, kind, labels, wrt, _ = args
    hooks = [hook for hook in wrt if hook != "input"]
    check_call(spec, inputs, hooks, ())
    check_objective(spec, inputs, Objective(kind, labels), wrt)
    batch = inputs.shape[0]
    at = [(*front, batch, *spec.hook(hook).shape) for hook in hooks]
    grads = [(*front, *inputs.shape) if one == "input" else (*front, batch, *spec.hook(one).shape) for one in wrt]
    return [(*front, batch), *grads, *at]


def weight_shapes_of(shapes: Mapping[str, Sequence[int]], args: Sequence[Any]) -> list[tuple[int, ...]]:
    """Shapes of the weights that a call reads.

    Args:
        shapes: of one variant's weights by name.
        args: (names, variants).

    Raises:
        ValueError: it is not about variants, or names what there is not.
    """
    names, which = args
    if which is None:
        raise ValueError(closed("weights()"))
    front = (len(which),) if isinstance(which, list) else ()
    return [(*front, *shapes[name]) for name in check_names(names, list(shapes))]
