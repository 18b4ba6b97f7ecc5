"""What stands in for a source when its edge is cut. There is no default: every circuit holds for one ablation.

    zero          nothing
    mean          the source's mean over the data, position by position
    mean-all      the same, over positions too
    resample      the source on another example of the same data, drawn once per example
    interchange   the source on the example's counterfactual

Shape legend: B = batch.
"""

from typing import Literal, get_args

import torch
from torch import Tensor

from stages.errors import UserError

__all__ = ["ABLATIONS", "Ablation", "check_ablation", "derangement", "mean_over"]

Ablation = Literal["zero", "mean", "mean-all", "resample", "interchange"]
ABLATIONS: tuple[str, ...] = get_args(Ablation)


def check_ablation(name: str, counterfactual: Tensor | None) -> None:
    """Raises:
    UserError: the name is unknown, or interchange without counterfactual inputs.
    """
    if name not in ABLATIONS:
        raise UserError(
            f"ablation {name!r} is unknown: use {', '.join(ABLATIONS)}; a circuit means nothing without one"
        )
    if name == "interchange" and counterfactual is None:
        raise UserError(
            "ablation 'interchange' needs counterfactual inputs, one for each clean one: give them, or use resample"
        )


def derangement(n: int, generator: torch.Generator) -> Tensor:
    """(n,) permutation that leaves no example where it is: a random cyclic order.

    Raises:
        UserError: there is only one example.
    """
    if n < 2:
        raise UserError(f"ablation 'resample' needs at least 2 examples, there is {n}: give more, or use zero")
    order = torch.randperm(n, generator=generator)
    partner = torch.empty(n, dtype=torch.long)
    partner[order] = order.roll(1)
    return partner


def mean_over(values: Tensor, everywhere: bool, feature_axes: int) -> Tensor:
    """(B, ...) values -> their mean over the batch, expanded back to (B, ...).

    Args:
        values: (B, ...).
        everywhere: over positions too: all axes but the last ``feature_axes``.
        feature_axes: axes at the end that are not positions.
    """
    axes = tuple(range(values.dim() - feature_axes)) if everywhere else (0,)
    return values.mean(dim=axes or (0,), keepdim=True).expand_as(values)
