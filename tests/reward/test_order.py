"""The order of methods on one split against another: by hand, by scipy, and what is left out."""

from collections import namedtuple

import numpy as np
import pytest
from scipy.stats import spearmanr

from stages.reward.order import order_agreement, spearman

Row = namedtuple("Row", "method split family cluster target kind status reward_mean")  # what is read of a row


def rows(rewards, split, family, kind="Localise", cluster=None, target="t", status="ok"):
    return [
        Row(method, split, family, cluster or family, target, kind, status, reward)
        for method, reward in zip("abcde", rewards, strict=False)
    ]


def test_it_is_spearmans_correlation() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        first, second = rng.integers(0, 6, (2, 9)).astype(float)
        assert spearman(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert spearman(np.zeros(5), np.arange(5.0)) is None and spearman(np.arange(3.0), np.arange(3.0)) is None


def test_families_count_once_and_clusters_of_them_too() -> None:
    """Two targets of one family, and two families of one cluster, are one place each in the mean."""
    train = rows([0, 1, 2, 3, 4], "train", "f", target="x") + rows([4, 3, 2, 1, 0], "train", "f", target="y")
    train += rows([9, 0, 0, 0, 0], "train", "g", cluster="twins") + rows(
        [-9, 0, 0, 0, 0], "train", "h", cluster="twins"
    )
    train += rows([0, 1, 2, 3, 4], "train", "k")
    validation = rows([0, 1, 2, 3, 4], "validation", "m") + rows([0, 1, 2, 3, 4], "validation", "n")
    found = {row.kind: row for row in order_agreement(train + validation)}
    assert set(found) == {"all", "Localise"}
    assert (found["all"].n_first, found["all"].n_second, found["all"].n_methods) == (3, 2, 5)
    assert found["all"].spearman == pytest.approx(1.0) and found["all"].low <= found["all"].high == pytest.approx(1.0)


def test_what_declines_a_kind_has_no_place_in_it_and_controls_have_none() -> None:
    train = rows([4, 3, 2, 1, 0], "train", "f")
    declined = Row("e", "validation", "g", "g", "t", "Localise", "declined", 9.0)
    validation = [*rows([4, 3, 2, 1], "validation", "g"), declined]
    control = [
        Row("surrogate", split, name, name, "t", "Localise", "ok", 99.0)
        for split, name in (("train", "f"), ("validation", "g"))
    ]
    found = {row.kind: row for row in order_agreement(train + validation + control)}
    assert found["Localise"].n_methods == 4 and found["Localise"].spearman == pytest.approx(1.0)
    assert found["all"].n_methods == 5 and found["all"].spearman < 1.0
    assert found["all"].low is None, "one family a split: nothing can be drawn again"


def test_only_pairs_of_splits_and_kinds_that_both_have() -> None:
    train = rows([4, 3, 2, 1, 0], "train", "f", kind="Steer")
    test = rows([4, 3, 2, 1, 0], "test", "g")
    assert [(row.splits, row.kind) for row in order_agreement(train + test)] == [("train and test", "all")]
    assert order_agreement(train) == []
