"""Exact Shapley values (Shapley 1953) of a set function that is known on all subsets.

Shape legend: N = instances, E = players, V = subsets (2^E).
"""

from math import factorial

import torch
from torch import Tensor

__all__ = ["all_subsets", "shapley_values"]


def all_subsets(n_players: int) -> Tensor:
    """(V, E) bool: column e of row b is bit e of b, so the first row is empty and the last holds all."""
    return torch.tensor([[(b >> i) & 1 for i in range(n_players)] for b in range(2**n_players)]).bool()


def shapley_values(values_NV: Tensor) -> Tensor:
    """Exact Shapley values of a set function.

    Args:
        values_NV: (N, 2^E); column b is the value of the subset whose members are the set bits of b.

    Returns:
        (N, E).
    """
    n_sets = values_NV.shape[1]
    n_shots = n_sets.bit_length() - 1
    size = torch.tensor([bin(b).count("1") for b in range(n_sets)])
    weight = torch.tensor(
        [factorial(s) * factorial(n_shots - s - 1) / factorial(n_shots) for s in range(n_shots)], dtype=torch.float64
    )
    columns = []
    for i in range(n_shots):
        without = torch.tensor([b for b in range(n_sets) if not (b >> i) & 1])
        columns.append((values_NV[:, without + 2**i] - values_NV[:, without]) @ weight[size[without]])
    return torch.stack(columns, dim=-1)
