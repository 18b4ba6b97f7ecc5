"""How far a circuit's outputs are from the full module's: 0 = faithful.

Shape legend: S = masks, B = batch, C = outputs (last axis).
"""

from collections.abc import Callable

from torch import Tensor

from stages.circuits.engine.users_metric import checked
from stages.errors import UserError

__all__ = ["OBJECTIVES", "Objective", "distance"]

Objective = Callable[[Tensor, Tensor], Tensor]
"""(S, B, ..., C) outputs and (B, ..., C) or (S, B, ..., C) clean ones -> (S, B), lower = nearer to the full module."""


def mse(outputs: Tensor, clean: Tensor) -> Tensor:
    """Squared distance, mean over positions and outputs. Its gradient at the clean point is zero: see ``eap``."""
    return (outputs - clean).square().flatten(2).mean(-1)


def kl(outputs: Tensor, clean: Tensor) -> Tensor:
    """KL(full || circuit) in nats, mean over positions. Its gradient at the clean point is zero too."""
    wanted = clean.log_softmax(-1)
    gap = (wanted.exp() * (wanted - outputs.log_softmax(-1))).sum(-1)
    return gap.flatten(2).mean(-1) if gap.dim() > 2 else gap


def answer(outputs: Tensor, clean: Tensor) -> Tensor:
    """Output of the full module's own answer: how much of it was lost, relative to the mean output."""
    place = clean.argmax(-1, keepdim=True).expand(*outputs.shape[:-1], 1)
    lost = (clean - outputs).gather(-1, place).squeeze(-1) - (clean - outputs).mean(-1)
    return lost.flatten(2).mean(-1) if lost.dim() > 2 else lost


def projection(outputs: Tensor, clean: Tensor) -> Tensor:
    """How much is missing along the clean outputs: <clean, clean - outputs> / mean of <clean, clean> over the data.

    Linear in the outputs, so it has a slope everywhere; blind to what is orthogonal to the clean outputs.
    """
    whole = clean if clean.dim() == outputs.dim() else clean.unsqueeze(0)
    size = whole.square().flatten(2).mean(-1).mean(-1, keepdim=True) + 1e-12
    return ((whole - outputs) * whole).flatten(2).mean(-1) / size


OBJECTIVES: dict[str, Objective] = {"answer": answer, "kl": kl, "mse": mse, "projection": projection}


def distance(name: str | Objective) -> Objective:
    """An objective by name, or a function of one's own, whose results are looked at.

    Raises:
        UserError: there is none of this name.
    """
    if not isinstance(name, str):
        return checked(name)
    if name not in OBJECTIVES:
        raise UserError(f"objective {name!r} is unknown: use {', '.join(sorted(OBJECTIVES))} or pass a function")
    return OBJECTIVES[name]
