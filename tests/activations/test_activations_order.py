"""Index arithmetic of shards and batches."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.activations.order import BatchOrder, shard_bounds, write_order
from stages.errors import UserError


@given(st.integers(0, 500), st.integers(1, 120))
def test_shards_cover_every_row_once_and_only_the_last_is_short(n_rows: int, rows_per_shard: int) -> None:
    bounds = shard_bounds(n_rows, rows_per_shard)
    assert [row for start, end in bounds for row in range(start, end)] == list(range(n_rows))
    assert all(end - start == rows_per_shard for start, end in bounds[:-1])


@settings(max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 5), st.integers(0, 40))
def test_seeking_equals_reading_from_the_start(n_rows: int, batch: int, seed: int, start: int) -> None:
    if batch > n_rows:
        with pytest.raises(UserError, match=f"batch = {batch} does not fit: there are {n_rows} rows"):
            BatchOrder(n_rows, batch, seed)
        return
    whole = list(itertools.islice(BatchOrder(n_rows, batch, seed).stream(), start + 3))
    sought = list(itertools.islice(BatchOrder(n_rows, batch, seed).stream(start), 3))
    assert all(torch.equal(a, b) for a, b in zip(whole[start:], sought, strict=True))


def test_an_epoch_visits_a_row_at_most_once_and_epochs_differ() -> None:
    order = BatchOrder(103, 10, seed=1)
    epochs = [torch.cat([order.indices(10 * epoch + place) for place in range(10)]) for epoch in range(2)]
    assert all(len(epoch.unique()) == 100 for epoch in epochs)
    assert not torch.equal(*epochs)


def test_the_write_order_is_a_permutation_and_depends_on_split_and_seed() -> None:
    orders = [write_order(50, split, seed) for split, seed in (("train", 0), ("train", 1), ("validation", 0))]
    assert all(torch.equal(order.sort().values, torch.arange(50)) for order in orders)
    assert not torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
