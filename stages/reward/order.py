"""Does the order of the methods on one split carry over to another? Rank correlation, by kind of question and over all.

A method's place on a split is that of its mean over clusters of families, as in ``statements``. Controls are left out,
and of a kind of question methods that decline it on either split. Families of both splits are drawn again for the
interval: with one or two families it is wide or cannot be said, and nothing is made of that.

Source: Spearman 1904; the bootstrap over families as in Agarwal et al. 2021 (2108.13264, section 4.1).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from stages.contracts.reward_rows import CONTROL_METHODS, TaskRow
from stages.reward.statements import unit_weights

__all__ = ["OrderRow", "order_agreement", "spearman"]

FloatArray = npt.NDArray[np.float64]
SPLITS = ("train", "validation", "test")
DRAWS = 1000
FEWEST = 4
"""Methods in an order: of three, one of six orders agrees fully by chance."""


@dataclass(frozen=True)
class OrderRow:
    """One pair of splits, one kind of question or all of them."""

    splits: str
    kind: str
    """A kind of question, or all."""
    n_methods: int
    n_first: int
    """Clusters of families on the first split."""
    n_second: int
    spearman: float | None
    """None: fewer than four methods, or all equal on one split."""
    low: float | None
    """95% interval, families of both splits drawn again; None where either has fewer than two."""
    high: float | None


def order_agreement(rows: Sequence[TaskRow]) -> list[OrderRow]:
    """One row per pair of splits there are rows of, and kind of question that both ask; and one over all kinds."""
    found = []
    splits = [split for split in SPLITS if any(row.split == split for row in rows)]
    for first, second in combinations(splits, 2):
        asked = [{row.kind for row in rows if row.split == split} for split in (first, second)]
        for kind in ("all", *sorted(asked[0] & asked[1])):
            found.append(_agreement(rows, (first, second), kind))
    return found


def _agreement(rows: Sequence[TaskRow], splits: tuple[str, str], kind: str) -> OrderRow:
    tables = [
        _by_cluster([row for row in rows if row.split == split and kind in ("all", row.kind)]) for split in splits
    ]
    methods = sorted(set.intersection(*(set(table) for table in tables)) - set(CONTROL_METHODS))
    if kind != "all":
        methods = [method for method in methods if all(_answers(rows, method, split, kind) for split in splits)]
    clusters = [sorted({cluster for of in table.values() for cluster in of}) for table in tables]
    values = [
        np.array([[table[method][cluster] for cluster in names] for method in methods]).reshape(len(methods), -1)
        for table, names in zip(tables, clusters, strict=True)
    ]
    rho = _rho(values, [np.arange(len(names)) for names in clusters])
    low = high = None
    if rho is not None and min(map(len, clusters)) >= 2:
        rng = np.random.default_rng(0)
        draws = [_rho(values, [rng.integers(len(names), size=len(names)) for names in clusters]) for _ in range(DRAWS)]
        low, high = (float(x) for x in np.quantile([draw or 0.0 for draw in draws], (0.025, 0.975)))
    n_first, n_second = (len(names) for names in clusters)
    return OrderRow(" and ".join(splits), kind, len(methods), n_first, n_second, rho, low, high)


def _answers(rows: Sequence[TaskRow], method: str, split: str, kind: str) -> bool:
    mine = [row for row in rows if (row.method, row.split, row.kind) == (method, split, kind)]
    return any(row.status != "declined" for row in mine)


def _by_cluster(rows: Sequence[TaskRow]) -> Mapping[str, Mapping[str, float]]:
    """{method: {cluster: mean over its families of their mean over targets}}."""
    methods: dict[str, list[TaskRow]] = defaultdict(list)
    for row in rows:
        methods[row.method].append(row)
    found = {}
    for method, mine in methods.items():
        clusters: dict[str, float] = defaultdict(float)
        for row, weight in zip(mine, unit_weights(mine), strict=True):
            clusters[row.cluster] += weight * row.reward_mean
        found[method] = {name: len(clusters) * value for name, value in clusters.items()}
    return found


def _rho(values: Sequence[FloatArray], chosen: Sequence[npt.NDArray[np.int64]]) -> float | None:
    first, second = (table[:, which].mean(1) for table, which in zip(values, chosen, strict=True))
    return spearman(first, second)


def spearman(first: FloatArray, second: FloatArray) -> float | None:
    """Pearson's correlation of the ranks, ties averaged; None for fewer than four, or where one has no order."""
    if len(first) < FEWEST:
        return None
    ranks = [rankdata(values) - (len(values) + 1) / 2 for values in (first, second)]
    sizes = [float(np.sqrt((rank * rank).sum())) for rank in ranks]
    return None if min(sizes) == 0 else float((ranks[0] * ranks[1]).sum() / (sizes[0] * sizes[1]))
