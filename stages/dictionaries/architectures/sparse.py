"""Sparse latents: choosing the active ones of dense pre-activations, and products with them.

A batch of a TopK dictionary has k of F latents active per row, so decoding it and both weight gradients need k/F of the
dense work. Selection uses numpy's vectorised partial sort (several times faster than ``torch.topk`` on CPU), products
use ``embedding_bag`` and ``sampled_addmm``; everything is deterministic.

Shape legend: B = rows of the batch, D = width, F = latents, A = active entries of the batch.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from torch import Tensor

__all__ = ["Active", "active_top", "block_rows", "encode_above", "encode_top", "encode_top_of_batch"]


@dataclass(frozen=True)
class Active:
    """Places of the active entries of a (B, F) matrix, row by row."""

    n_rows: int
    n_latents: int
    flat: NDArray[np.int64]
    """(A,) row * F + latent, ascending."""

    def __len__(self) -> int:
        return len(self.flat)

    @cached_property
    def row(self) -> NDArray[np.int32]:
        return (self.flat // self.n_latents).astype(np.int32)

    @cached_property
    def latent(self) -> NDArray[np.int32]:
        return (self.flat % self.n_latents).astype(np.int32)

    @cached_property
    def latents(self) -> Tensor:
        """(A,) int32: latent of each entry."""
        return torch.from_numpy(self.latent)

    @cached_property
    def starts(self) -> NDArray[np.int32]:
        """(B + 1,): entries of row b are starts[b]..starts[b+1]."""
        bounds = np.arange(self.n_rows + 1, dtype=np.int64) * self.n_latents
        return np.searchsorted(self.flat, bounds).astype(np.int32)

    @cached_property
    def _transposed(self) -> tuple[Tensor, Tensor, Tensor]:
        """Entries sorted by latent: their rows, where each latent starts, and which entry each is."""
        order = csr_matrix(
            (np.arange(len(self), dtype=np.int32), self.latent, self.starts), shape=(self.n_rows, self.n_latents)
        ).tocsc()
        order_of = (order.indices.astype(np.int32), order.indptr[:-1].astype(np.int32), order.data)
        rows, starts, entry = (torch.from_numpy(part) for part in order_of)
        return rows, starts, entry

    @cached_property
    def fired(self) -> Tensor:
        """(F,) bool: latents with an entry."""
        return torch.from_numpy(np.bincount(self.latent, minlength=self.n_latents) > 0)

    def at(self, dense: Tensor) -> Tensor:
        """(A,) values of a contiguous (B, F) matrix at the entries."""
        return dense.view(-1).index_select(0, torch.from_numpy(self.flat))

    def times(self, values: Tensor, matrix: Tensor) -> Tensor:
        """Z @ matrix: (B, F) sparse times (F, D) -> (B, D)."""
        return _bags(self.latents, torch.from_numpy(self.starts[:-1]), values, matrix)

    def transposed_times(self, values: Tensor, *matrices: Tensor) -> tuple[Tensor, ...]:
        """Z^T @ matrix: (F, B) sparse times (B, D) -> (F, D), for each matrix."""
        rows, starts, entry = self._transposed
        values = values.index_select(0, entry)
        return tuple(_bags(rows, starts, values, matrix) for matrix in matrices)

    def products(self, left: Tensor, right: Tensor) -> Tensor:
        """(A,) <left[row], right[latent]> of each entry; left is (B, D), right (F, D)."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # CSR tensors are announced as beta
            places = torch.sparse_csr_tensor(
                torch.from_numpy(self.starts.astype(np.int64)),
                self.latents.long(),
                torch.zeros(len(self)),
                (self.n_rows, self.n_latents),
                check_invariants=False,
            )
            found: Tensor = torch.sparse.sampled_addmm(places, left, right.T, beta=0.0).values()
        return found

    def per_latent(self, values: Tensor) -> Tensor:
        """(F,) sum of the values of each latent."""
        sums = np.bincount(self.latent, weights=values.numpy(), minlength=self.n_latents)
        return torch.from_numpy(sums.astype(np.float32))


def _bags(indices: Tensor, starts: Tensor, weights: Tensor, matrix: Tensor) -> Tensor:
    return torch.nn.functional.embedding_bag(indices, matrix, starts, mode="sum", per_sample_weights=weights)


def active_above(pre: Tensor, threshold: Tensor | float = 0.0) -> Active:
    """Entries of (B, F) that exceed the threshold, a number or (F,)."""
    bound = threshold.numpy() if isinstance(threshold, Tensor) else threshold
    return _active(pre, pre.numpy() > bound)


def active_top(pre: Tensor, k: int) -> Active:
    """The k largest entries of each row; of equal ones at the border, those of the first latents."""
    values = pre.numpy()
    n_latents = values.shape[1]
    if k >= n_latents:
        return _active(pre, np.ones_like(values, dtype=bool))
    border = np.partition(values, n_latents - k, axis=1)[:, n_latents - k, None]
    found = _active(pre, values >= border)
    if len(found) > k * len(values):
        above = values > border
        room = k - above.sum(1, keepdims=True)
        ties = values == border
        found = _active(pre, above | (ties & (ties.cumsum(1) <= room)))
    return found


def encode_top(rows: Tensor, encoder: Tensor, bias: Tensor, k: int, *, signed: bool = False) -> tuple[Active, Tensor]:
    """``active_top`` of rows @ encoder^T + bias, and the values there, block by block in the processor's cache.

    With ``signed``, the largest by magnitude.
    """
    parts = []
    for block in torch.split(rows, block_rows(len(bias))):
        pre = torch.addmm(bias, block, encoder.T)
        active = active_top(pre.abs() if signed else pre, k)
        parts.append((active, active.at(pre)))
    return _joined(parts)


def encode_above(
    rows: Tensor, encoder: Tensor, bias: Tensor, share: float, floor: Tensor | float = 0.0
) -> tuple[Active, Tensor] | None:
    """Entries of rows @ encoder^T + bias above ``floor``, a number or (F,); the positive ones by default.

    None where their share of the first block exceeds ``share``.
    """
    parts: list[tuple[Active, Tensor]] = []
    for block in torch.split(rows, block_rows(len(bias))):
        pre = torch.addmm(bias, block, encoder.T)
        if not parts and torch.count_nonzero(pre > floor) > share * pre.numel():
            return None
        active = active_above(pre, floor)
        parts.append((active, active.at(pre)))
    return _joined(parts)


def encode_top_of_batch(rows: Tensor, encoder: Tensor, bias: Tensor, n: int) -> tuple[Active, Tensor]:
    """The n largest entries of rows @ encoder^T + bias in the whole batch, positive ones only (BatchTopK).

    A first block says where the border may be; what exceeds a little less than that is kept, and the exact border is
    found among it. Should fewer than n be kept, all positive entries are.
    """
    floor = 0.0
    blocks = torch.split(rows, block_rows(len(bias)))
    first = torch.addmm(bias, blocks[0], encoder.T).numpy().ravel()
    expected = int(n * len(blocks[0]) / len(rows) * MARGIN)
    if 0 < expected < len(first):
        floor = max(0.0, float(np.partition(first, len(first) - expected)[len(first) - expected]))
    while True:
        parts = []
        for block in blocks:
            pre = torch.addmm(bias, block, encoder.T)
            active = active_above(pre, floor)
            parts.append((active, active.at(pre)))
        active, values = _joined(parts)
        if len(active) >= n or floor == 0.0:
            break
        floor = 0.0
    if len(active) <= n:
        return active, values
    among = values.numpy()
    border = np.partition(among, len(among) - n)[len(among) - n]
    keep = among >= border
    surplus = int(keep.sum()) - n
    if surplus:
        keep[np.flatnonzero(among == border)[-surplus:]] = False
    kept = Active(active.n_rows, active.n_latents, active.flat[keep])
    return kept, torch.from_numpy(among[keep])


MARGIN = 1.25
"""How many more entries than expected are looked at to find the border of BatchTopK."""
BLOCK_BYTES = 1 << 20
"""Pre-activations of one block: they stay in the second-level cache between the product and what reads them."""


def block_rows(n_latents: int) -> int:
    return max(16, BLOCK_BYTES // (4 * n_latents))


def _joined(parts: list[tuple[Active, Tensor]]) -> tuple[Active, Tensor]:
    if len(parts) == 1:
        return parts[0]
    n_latents = parts[0][0].n_latents
    flats, n_rows = [], 0
    for active, _ in parts:
        flats.append(active.flat + n_rows * n_latents)
        n_rows += active.n_rows
    return Active(n_rows, n_latents, np.concatenate(flats)), torch.cat([values for _, values in parts])


def _active(pre: Tensor, chosen: NDArray[np.bool_]) -> Active:
    return Active(pre.shape[0], pre.shape[1], np.flatnonzero(chosen))
