"""What training and measuring targets of words share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.target import Corpus
from stages.targets.token_model import TokenModel

__all__ = ["accuracy", "answers", "in_rounds", "shares_of", "train_words"]

CHUNK = 500
"""Inputs per forward pass."""


def train_words(
    model: TokenModel,
    loss_of: Callable[[int], Tensor],
    steps: int,
    rate: Callable[[int], float],
    log: Callable[[dict[str, float], int], None],
    *,
    weight_decay: float = 0.01,
    decay_all: bool = False,
    clip: float | None = 1.0,
    done: Callable[[int], bool] = lambda step: False,
) -> None:
    """AdamW (betas 0.9, 0.98) on a loss; logs every 100 steps.

    Args:
        rate: learning rate of each step, counted from 0.
        decay_all: whether vectors decay as well as matrices.
        clip: largest norm of the gradient; None: any.
        done: asked after each step, whether to stop.
    """
    model.train().requires_grad_(True)
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": weight_decay if decay_all else 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate(step)
        loss = loss_of(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimiser.step()
        if step % 100 == 0 or step == steps - 1:
            log({"loss": loss.item(), "lr": rate(step)}, step)
        if done(step):
            break
    model.eval().requires_grad_(False)


def answers(model: TokenModel, inputs: Tensor) -> Tensor:
    """(n, T, 2) -> (n, C) logits, in chunks."""
    with torch.no_grad():
        return torch.cat([model(part) for part in torch.split(inputs, CHUNK)])


def accuracy(model: TokenModel, corpus: Corpus) -> float:
    """Share of inputs whose largest output is the right next word."""
    return (answers(model, corpus.inputs).argmax(-1) == corpus.labels).double().mean().item()


def in_rounds(size: int, n: int, generator: torch.Generator) -> Tensor:
    """n indices below ``size`` in random order, each about equally often: none twice before all came once."""
    return torch.cat([torch.randperm(size, generator=generator) for _ in range(-(-n // size))])[:n]


def shares_of(n: int, shares: Sequence[float]) -> list[int]:
    """n split into whole numbers by shares; the first takes what rounding leaves."""
    rest = [int(n * share) for share in shares[1:]]
    return [n - sum(rest), *rest]


def cross_entropy_at(logits_BTC: Tensor, ids_BT: Tensor, where_BT: Tensor) -> Tensor:
    """Mean loss (nats) of the next word, over the places where ``where_BT`` is true (the last place has none)."""
    where = where_BT[:, :-1]
    return F.cross_entropy(logits_BTC[:, :-1][where], ids_BT[:, 1:][where])
