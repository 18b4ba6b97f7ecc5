"""What a black box can tell: outputs in chunks, and numbers read off them.

Shape legend: B = batch, C = outputs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.contracts.target import Target, TargetAccess

__all__ = [
    "CHUNK",
    "answer_features",
    "ask",
    "compressed",
    "label_features",
    "log_odds",
    "outputs_of",
    "true_log_probs",
]

CHUNK = 256
"""Inputs per forward pass: the fastest batch for both targets' sizes on one core (measured 64 to 4096)."""


def ask(access: TargetAccess, inputs: Tensor) -> Tensor:
    """(B, *input_shape) -> (B, C) logits by metered forward passes."""
    return torch.cat([access.forward(part).outputs for part in torch.split(inputs, CHUNK)])


def outputs_of(target: Target, inputs: Tensor) -> Tensor:
    """(B, *input_shape) -> (B, C) logits of the untouched target: the trusted side."""
    with torch.no_grad():
        return torch.cat([target.model(part) for part in torch.split(inputs, CHUNK)])


def answer_features(outputs: Tensor) -> Tensor:
    """(B, C) logits -> (B, 5): the three largest probabilities, the logit margin between the best two, the entropy."""
    probs = outputs.softmax(-1)
    best = probs.sort(-1, descending=True).values[:, :3]
    top = outputs.topk(2, -1).values
    entropy = -(probs * outputs.log_softmax(-1)).sum(-1)
    return torch.cat([best, (top[:, 0] - top[:, 1]).unsqueeze(-1), entropy.unsqueeze(-1)], dim=-1)


def label_features(outputs: Tensor, labels: Tensor) -> Tensor:
    """(B, C) logits, (B,) labels -> (B, 3): loss in nats, logit margin of the label over the best other, its rank."""
    chosen = outputs.gather(-1, labels.unsqueeze(-1))
    others = outputs.scatter(-1, labels.unsqueeze(-1), float("-inf")).amax(-1)
    rank = (outputs > chosen).sum(-1).to(outputs.dtype)
    loss = F.cross_entropy(outputs, labels, reduction="none")
    return torch.stack([loss, chosen.squeeze(-1) - others, rank], dim=-1)


def true_log_probs(outputs: Tensor, labels: Tensor) -> Tensor:
    """(B, C) logits, (B,) labels -> (B,) log-probability of the label, in nats."""
    return -F.cross_entropy(outputs, labels, reduction="none")


def log_odds(outputs: Tensor, labels: Tensor) -> Tensor:
    """(B, C) logits, (B,) labels -> (B,) log(p / (1 - p)) of the label, without rounding 1 - p away."""
    chosen = outputs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return chosen - outputs.scatter(-1, labels.unsqueeze(-1), float("-inf")).logsumexp(-1)


def compressed(values: Tensor, scale: float) -> Tensor:
    """Monotone and odd: linear below ``scale``, logarithmic above; for truths with heavy tails."""
    return values.sign() * (values.abs() / scale).log1p()
