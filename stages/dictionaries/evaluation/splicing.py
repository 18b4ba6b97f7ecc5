"""Running a target with something else in place of the rows that a dictionary is of.

Shape legend: B = inputs, R = rows, D = width, N = examples, C = outputs.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stages.activations.writer import n_positions, rows_of
from stages.contracts.target import Target, telling_places

__all__ = ["PASS_WORDS", "passes", "replaced_logits", "spliced_logits"]

PASS_WORDS = 1 << 13
"""Words in one forward pass, where inputs are words: bounds memory."""


def passes(target: Target, inputs: Tensor) -> tuple[Tensor, ...]:
    """The inputs in parts of one forward pass each; all in one where they are no words."""
    if target.spec.n_vocabulary is None:
        return (inputs,)
    return torch.split(inputs, max(1, PASS_WORDS // inputs.shape[1]))


def spliced_logits(target: Target, hook: str, inputs: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
    """(N, C) logits with every row at the hook point replaced, in one forward pass.

    Args:
        replace: (R, D) -> (R, D).
    """
    spec = target.spec.hook(hook)
    calls = 0

    def splice(acts: Tensor, hook: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return replace(rows_of(spec, acts)).reshape(acts.shape)

    with torch.no_grad():
        logits: Tensor = target.model.run_with_hooks(inputs, fwd_hooks=[(hook, splice)])
    assert calls == 1, f"{hook} fired {calls} times in one forward pass of {target.name}"
    return logits


def replaced_logits(
    target: Target, hook: str, inputs: Tensor, replace: Callable[[Tensor], Tensor], largest: float = math.inf
) -> Tensor:
    """(N, C) logits with the rows at the hook point replaced that a dictionary is of.

    Where inputs are words, those are the rows of present words but each input's first and but attention sinks: those
    hold activations that no dictionary was trained on, and stay as they are.

    Args:
        replace: (R, D) -> (R, D).
        largest: norm above which a row is an attention sink.
    """
    parts = []
    for some in passes(target, inputs):
        kept = telling_places(target.spec, some)
        if kept is not None and n_positions(target.spec.hook(hook)) == kept.shape[1]:
            parts.append(spliced_logits(target, hook, some, _only(kept.flatten(), replace, largest)))
        else:
            parts.append(spliced_logits(target, hook, some, replace))
    return torch.cat(parts)


def _only(kept: Tensor, replace: Callable[[Tensor], Tensor], largest: float) -> Callable[[Tensor], Tensor]:
    """``replace`` on the rows that ``kept`` (R,) names and that are not too large; the others stay."""

    def change(rows: Tensor) -> Tensor:
        these = (kept & (rows.norm(dim=1) <= largest)).nonzero().flatten()
        return rows.index_copy(0, these, replace(rows[these]))

    return change
