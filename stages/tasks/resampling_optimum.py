"""Sampling weights that are close to a distribution and sure of themselves: min KL(M || M') + H(M') at equal reward.

With p of M and q of M' the objective is sum p log(p / q) - q log q. It is not convex: its second derivative by q is
(p - q) / q^2, below 0 where q > p. A reward of 0 or 1 makes "equal reward" say that each of the two groups of outcomes
keeps its mass, so the groups are solved apart, each with one condition on its sum.

In a group, by the second-order condition, at most one outcome is raised (q > p), and one is unless q = p everywhere. It
is the most probable one: if it were k and some j had p_j > p_k, then q_j < q_k, and exchanging q_j and q_k would lower
the objective by (p_j - p_k)(log q_k - log q_j). Where the objective is stationary p / q + log q = c for all outcomes,
with c of the group. For given c that has one solution below p and one above, so a group is one equation in c.

Shape legend: B = groups, G = outcomes of a group, N = instances.
"""

import torch
from torch import Tensor

__all__ = ["resampled", "resampled_group"]

N_HALVINGS, N_NEWTON = 36, 7


def resampled(log_p: Tensor, rewarded: Tensor) -> Tensor:
    """(N, G) log M', for log M and which outcomes have the reward 1, the same number in every row.

    Args:
        log_p: (N, G) float64, finite.
        rewarded: (N, G) bool.
    """
    out = log_p.clone()
    for group in (rewarded, ~rewarded):
        if bool(group.any()):
            out[group] = resampled_group(log_p[group].view(len(log_p), -1)).flatten()
    return out


def resampled_group(log_p: Tensor) -> Tensor:
    """(B, G) log q of the least sum of -p log q - q log q over q with the same sum as p."""
    top, raised = log_p.max(-1)
    total = log_p.logsumexp(-1)
    low, high = 1 + top, (top - total).exp() + total  # the raised outcome as it was; and with all of the mass
    for _ in range(N_HALVINGS):
        middle = (low + high) / 2
        over = _at(log_p, raised, middle).logsumexp(-1) > total
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return _at(log_p, raised, (low + high) / 2)


def _at(log_p: Tensor, raised: Tensor, c: Tensor) -> Tensor:
    """(B, G) log q with p / q + log q = c: above p for the raised outcome, below for the others."""
    lowered = log_p - _log_above((c.unsqueeze(-1) - log_p).clamp(min=1.0))
    of_raised = log_p.gather(-1, raised.unsqueeze(-1))
    above = of_raised - _log_below((c.unsqueeze(-1) - of_raised).clamp(min=1.0))
    return lowered.scatter(-1, raised.unsqueeze(-1), above)


def _log_above(d: Tensor) -> Tensor:
    """w >= 0 with exp(w) - w = d >= 1, by Newton from above: the function is convex, and at least 1 + w^2 / 2."""
    w = torch.minimum((d + d.log() + 1).log(), (2 * (d - 1)).sqrt())
    for _ in range(N_NEWTON):
        e = w.exp()
        w = w - (e - w - d) / (e - 1).clamp(min=1e-12)
    return w.clamp(min=0.0)


def _log_below(d: Tensor) -> Tensor:
    """w <= 0 with exp(w) - w = d >= 1, by Newton from below."""
    w = torch.maximum(-d, 1 - d - (2 * (d - 1)).sqrt())
    for _ in range(N_NEWTON):
        e = w.exp()
        w = w - (e - w - d) / (e - 1).clamp(max=-1e-12)
    return w.clamp(max=0.0)
