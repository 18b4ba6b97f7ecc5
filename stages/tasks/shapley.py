"""Shapley values (Shapley 1953) of a set function: exact where it is known on all subsets, or from random orders.

Shape legend: N = instances, E = players, V = subsets (2^E), P = subsets of one size, Q = sets asked about.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from math import factorial

import torch
from torch import Tensor

__all__ = ["all_subsets", "sampled_rungs", "shapley_values", "subsets_of_size"]


def all_subsets(n_players: int) -> Tensor:
    """(V, E) bool: column e of row b is bit e of b, so the first row is empty and the last holds all."""
    return torch.tensor([[(b >> i) & 1 for i in range(n_players)] for b in range(2**n_players)]).bool()


def subsets_of_size(n_players: int, size: int) -> Tensor:
    """(P, E) bool: all subsets with as many members, in lexicographic order of the members."""
    chosen = torch.tensor(list(combinations(range(n_players), size)))
    return torch.zeros(len(chosen), n_players, dtype=torch.bool).scatter(1, chosen, True)


def sampled_rungs(
    values: Callable[[Tensor], Tensor], whole_N1: Tensor, n_players: int, wanted: Sequence[int], rng: torch.Generator
) -> list[Tensor]:
    """(N, E) estimates of the Shapley values after each number of random orders (Castro et al. 2009): the
    mean of what a player adds to those before it.

    Args:
        values: (N, Q, E) bool, sets of players -> (N, Q) their values.
        whole_N1: the value of all players.
        wanted: rising numbers of orders; all orders are drawn once.
    """
    n, total_NE, done, found = len(whole_N1), torch.zeros(len(whole_N1), n_players), 0, []
    empty_N1 = values(torch.zeros(n, 1, n_players, dtype=torch.bool))
    for orders in wanted:
        for _ in range(orders - done):
            place_NE = torch.rand(n, n_players, generator=rng).argsort(-1)  # place of each player in the order
            chain = values(place_NE.unsqueeze(1) < torch.arange(1, n_players).view(1, -1, 1))
            steps_NE = torch.cat([empty_N1, chain, whole_N1], dim=1).diff(dim=1)
            total_NE = total_NE + steps_NE.gather(-1, place_NE)
        done = orders
        found.append(total_NE / done)
    return found


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
