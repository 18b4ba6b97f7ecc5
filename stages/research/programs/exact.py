"""What the best of n random programs is worth, exactly: the null that a researcher is compared with.

A program's mean reward over tasks is a sum over kinds of what its fragments contribute, and a random draw takes the
fragments independently. So the distribution of one draw is a convolution, and that of the best of n its n-th power.

Shape legend: G = points of the grid that rewards are rounded to.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import numpy.typing as npt

from stages.research.programs.grammar import KINDS, Fragment, every_fragment, text_of
from stages.research.programs.table import Table

__all__ = ["STEP", "Null", "best_program", "chance_of", "contributions", "null_of"]

STEP = 1e-5
"""Rewards are rounded to it, kind by kind."""
FloatArray = npt.NDArray[np.float64]


def chance_of(fragment: Fragment) -> float:
    """Of being drawn: the source evenly, then each of its genes evenly."""
    rules = KINDS[fragment.kind]
    return 1 / len(rules.sources) / prod(len(gene.options) for gene in rules.sources[fragment.source])


def contributions(table: Table, split: str) -> dict[str, dict[Fragment, float]]:
    """{kind: {fragment: what it adds to the mean reward over the tasks of a split}}."""
    columns = table.of(split)
    return {
        kind: {
            fragment: sum(
                table.cells[text_of(fragment), column.task].reward for column in columns if column.kind == kind
            )
            / len(columns)
            for fragment in every_fragment(kind)
        }
        for kind in KINDS
        if any(column.kind == kind for column in columns)
    }


def best_program(table: Table, split: str) -> float:
    """The largest mean reward that any program of the grammar has on a split: the known optimum."""
    return sum(max(of.values()) for of in contributions(table, split).values())


@dataclass(frozen=True)
class Null:
    """Distribution of the mean reward of one random program."""

    low: float
    """Reward at the first point of the grid."""
    mass: FloatArray
    """(G,) probability of each point."""

    def below(self, reward: float) -> tuple[float, float]:
        """Probability that one draw is below a reward, and that it is at most that, on the grid."""
        at = round((reward - self.low) / STEP)
        return float(self.mass[: max(at, 0)].sum()), float(self.mass[: max(at + 1, 0)].sum())

    def beats(self, reward: float, n: int) -> float:
        """Probability that a reward exceeds the best of n random programs, ties counted half."""
        less, most = self.below(reward)
        return (min(less, 1.0) ** n + min(most, 1.0) ** n) / 2

    def best_of(self, n: int) -> float:
        """Expected reward of the best of n."""
        reached = np.minimum(np.cumsum(self.mass), 1.0) ** n
        chance = np.diff(reached, prepend=0.0)
        return float(chance @ (self.low + STEP * np.arange(len(self.mass))))

    def quantile(self, q: float, n: int) -> float:
        """The reward that the best of n stays at or below with probability q."""
        reached = np.minimum(np.cumsum(self.mass), 1.0) ** n
        return self.low + STEP * min(int(np.searchsorted(reached, q - 1e-12)), len(self.mass) - 1)


def null_of(parts: Mapping[str, Mapping[Fragment, float]]) -> Null:
    """The null of a split, from what each fragment contributes to it.

    Raises:
        ValueError: nothing contributes.
    """
    if not parts:
        raise ValueError("no kind of question has a task: tabulate a graph that has some")
    total, low = np.ones(1), 0
    for of in parts.values():
        places = {fragment: round(value / STEP) for fragment, value in of.items()}
        first, last = min(places.values()), max(places.values())
        mass = np.zeros(last - first + 1)
        for fragment, place in places.items():
            mass[place - first] += chance_of(fragment)
        spread = np.zeros(len(total) + last - first)
        for shift in np.flatnonzero(mass):
            spread[shift : shift + len(total)] += mass[shift] * total
        total, low = spread, low + first
    return Null(low * STEP, total)
