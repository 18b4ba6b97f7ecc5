"""Which row comes when: the shuffle at write time, the cut into shards, and the order of training batches.

Everything here is a function of its arguments, so any point of the stream can be reached without replaying it.
"""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from stages.errors import UserError

__all__ = ["BatchOrder", "generator_for", "shard_bounds", "write_order"]


def generator_for(*parts: str | int) -> torch.Generator:
    """A generator seeded by the sha256 of ``parts``: streams with different parts are independent."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def write_order(n_rows: int, split: str, seed: int) -> Tensor:
    """(n_rows,) permutation in which rows are written.

    It depends on the number of rows and not on the hook point, so that the caches of all hook points with the same
    positions are aligned row by row (a transcoder reads one as input and another as output).
    """
    return torch.randperm(n_rows, generator=generator_for("write", split, seed, n_rows))


def shard_bounds(n_rows: int, rows_per_shard: int) -> list[tuple[int, int]]:
    """[start, end) of each shard: all full, the last one excepted."""
    return [(start, min(start + rows_per_shard, n_rows)) for start in range(0, n_rows, rows_per_shard)]


class BatchOrder:
    """Infinite stream of shuffled batches, addressed by (seed, step).

    Each epoch is a fresh permutation of all rows; the n_rows % batch rows left at its end sit out that epoch.

    Args:
        n_rows: rows to draw from.
        batch: rows per batch.
        seed: of the permutations.

    Raises:
        UserError: fewer rows than one batch, or a batch below 1.
    """

    def __init__(self, n_rows: int, batch: int, seed: int) -> None:
        if not 1 <= batch <= n_rows:
            raise UserError(
                f"batch = {batch} does not fit: there are {n_rows} rows of activations, so 1 <= batch <= {n_rows};"
                " lower `batch` or cache more examples (max_examples in params/activations.yaml)"
            )
        self.n_rows, self.batch, self.seed = n_rows, batch, seed
        self.steps_per_epoch = n_rows // batch
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def indices(self, step: int) -> Tensor:
        """(batch,) row numbers of one step."""
        epoch, place = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = torch.randperm(self.n_rows, generator=generator_for("batches", self.seed, epoch))
            self._epoch = epoch
        return self._order[place * self.batch : (place + 1) * self.batch]

    def stream(self, start_step: int = 0) -> Iterator[Tensor]:
        """``indices`` of every step from ``start_step`` on, without end."""
        step = start_step
        while True:
            yield self.indices(step)
            step += 1
