"""Cache of a target's activations on its corpus: written once, shuffled, read by everything that trains on them."""

from stages.activations.cache import ActivationCache, Rows
from stages.activations.order import BatchOrder, shard_bounds
from stages.activations.writer import cached_hooks, row_width, rows_of, write_caches

__all__ = [
    "ActivationCache",
    "BatchOrder",
    "Rows",
    "cached_hooks",
    "row_width",
    "rows_of",
    "shard_bounds",
    "write_caches",
]
