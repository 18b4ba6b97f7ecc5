"""Prices of what is more than a product: decompositions, transforms, distances, sparse products, recurrent layers.

Decompositions are charged the leading terms of the textbook algorithm (Golub & Van Loan 2013, Matrix Computations, 4th
edition, secs. 3.2, 4.2, 5.2, 7.5, 8.3, 8.6), whatever the library calls inside; iterative ones the usual number of
sweeps:

    Cholesky n^3/3      LU (determinant, solve) 2n^3/3      inverse 2n^3      triangular solve n^2 per right side
    QR with Q 4 m n^2 - 4/3 n^3      least squares 2 m n^2 - 2/3 n^3 + 4 m n per right side
    symmetric eigenvalues 4/3 n^3, with vectors 9 n^3      general ones 10 n^3, with vectors 25 n^3
    singular values 2 m n^2 + 2 n^3, with vectors 6 m n^2 + 20 n^3 (m >= n)
    matrix exponential 2 n^3 x 12 products      FFT of N points 5 N log2 N, 2.5 N log2 N where one side is real

A batch costs its members' sum. Distances cost 3 per pair and coordinate. Sparse products cost 2 per stored value and
column.
"""

from collections.abc import Callable
from math import log2, prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["DECOMPOSITIONS", "sparse_values"]

Price = Callable[[tuple[Any, ...], Any], int]


def sparse_values(value: Any) -> int | None:
    """Stored values of a sparse tensor; None: it is not sparse."""
    if not isinstance(value, Tensor) or value.layout is torch.strided:
        return None
    return int(value.values().numel() if value.layout is not torch.sparse_coo else value._nnz())


def _shape(value: Tensor) -> tuple[int, int, int]:
    """(batch, longer side, shorter side)."""
    m, n = value.shape[-2:]
    return prod(value.shape[:-2]), max(m, n), min(m, n)


def _cubic(share: float) -> Price:
    def price(args: tuple[Any, ...], out: Any) -> int:
        batch, _, n = _shape(args[0])
        return round(batch * share * n**3)

    return price


def _svd(args: tuple[Any, ...], out: Any) -> int:
    batch, m, n = _shape(args[0])
    vectors = len(args) < 3 or bool(args[2])  # compute_uv
    return batch * (6 * m * n**2 + 20 * n**3 if vectors else 2 * m * n**2 + 2 * n**3)


def _pseudo_inverse(args: tuple[Any, ...], out: Any) -> int:
    batch, m, n = _shape(args[0])
    return int(batch * (8 * m * n**2 + 20 * n**3))


def _eigh(args: tuple[Any, ...], out: Any) -> int:
    batch, _, n = _shape(args[0])
    return batch * 9 * n**3 if len(args) < 3 or args[2] else round(batch * 4 / 3 * n**3)


def _eig(args: tuple[Any, ...], out: Any) -> int:
    return _cubic(25)(args, out)


def _qr(args: tuple[Any, ...], out: Any) -> int:
    batch, m, n = _shape(args[0])
    return round(batch * (4 * m * n**2 - 4 / 3 * n**3))


# Right sides are counted in the result: there every one has its row, whichever operand was broadcast over the other.
def _solve(args: tuple[Any, ...], out: Any) -> int:
    batch, _, n = _shape(args[0])
    return round(batch * 2 / 3 * n**3) + 2 * n * int(out[0].numel())


def _triangular(times: int, matrix: int = 0) -> Price:
    """So many triangular solves with argument ``matrix``."""
    return lambda args, out: times * _shape(args[matrix])[2] * int(out.numel())


def _lstsq(args: tuple[Any, ...], out: Any) -> int:
    batch, m, n = _shape(args[0])
    return round(batch * (2 * m * n**2 - 2 / 3 * n**3)) + 4 * m * int(out[0].numel())


def _fft(factor: float) -> Price:
    def price(args: tuple[Any, ...], out: Any) -> int:
        whole = out if out.numel() >= args[0].numel() else args[0]
        # A real transform is as long as its real side.
        shape = args[0].shape if not args[0].is_complex() else whole.shape
        if not out.is_complex():
            shape = out.shape
        points = prod(shape[d] for d in args[1]) or 1
        flops: float = factor * prod(shape) * log2(max(2, points))
        return round(flops)

    return price


def _distances(args: tuple[Any, ...], out: Any) -> int:
    return 3 * int(out.numel()) * int(args[0].shape[-1])


def _sparse_addmm(args: tuple[Any, ...], out: Any) -> int:
    stored = next((n for n in map(sparse_values, args[1:3]) if n is not None), args[1].numel())
    return 2 * stored * int(out.shape[-1]) + int(out.numel())


def _sparse_sparse(args: tuple[Any, ...], out: Any) -> int:
    left, right = sparse_values(args[0]) or 0, sparse_values(args[1]) or 0
    return 2 * left * max(1, -(-right // int(args[1].shape[0])))


def _int_mm(args: tuple[Any, ...], out: Any) -> int:
    return 2 * int(out.numel()) * int(args[0].shape[-1])


def _recurrent(args: tuple[Any, ...], out: Any) -> int:
    """One layer and direction: both products, both biases, and 9 pointwise ops per hidden unit and step."""
    steps = args[0].numel() // args[0].shape[-1]
    products, hidden = args[1].numel() + args[2].numel(), int(args[10])
    return int(steps * (2 * products + 2 * args[1].shape[0] + 9 * hidden))


def _recurrent_backward(args: tuple[Any, ...], out: Any) -> int:
    steps = args[0].numel() // args[0].shape[-1]
    return int(steps * (4 * (args[1].numel() + args[2].numel()) + 20 * args[2].shape[-1]))


def _trilinear(args: tuple[Any, ...], out: Any) -> int:
    """Sums of products of three, over the space that their expanded dimensions span: two products and a sum each."""
    total = args[0].dim() + len(args[3])
    sides = []
    for tensor, added in zip(args[:3], args[3:6], strict=True):
        shape = list(tensor.shape)
        for dim in sorted(d % total for d in added):
            shape.insert(dim, 1)
        sides.append(shape)
    return 3 * int(prod(max(sizes) for sizes in zip(*sides, strict=True)))


def _matrix_exp(args: tuple[Any, ...], out: Any) -> int:
    return _cubic(24)(args, out)


DECOMPOSITIONS: dict[str, Price] = {
    "_cdist_backward": lambda args, out: 2 * _distances((args[1],), args[4]),
    "_cdist_forward": _distances,
    "_euclidean_dist": lambda args, out: 3 * int(out.numel()) * int(args[0].shape[-1]),
    "_fft_c2c": _fft(5),
    "_fft_c2r": _fft(2.5),
    "_fft_r2c": _fft(2.5),
    "_int_mm": _int_mm,
    "_linalg_det": _cubic(2 / 3),
    "_linalg_eigh": _eigh,
    "_linalg_eigvals": _cubic(10),
    "_linalg_slogdet": _cubic(2 / 3),
    "_linalg_solve_ex": _solve,
    "_linalg_svd": _svd,
    "_pdist_forward": _distances,
    "_sparse_addmm": _sparse_addmm,
    "_sparse_sparse_matmul": _sparse_sparse,
    "_trilinear": _trilinear,
    "cholesky_inverse": _cubic(2 / 3),
    "cholesky_solve": _triangular(2, 1),
    "linalg_cholesky_ex": _cubic(1 / 3),
    "linalg_eig": _eig,
    "linalg_inv_ex": _cubic(2),
    "linalg_lstsq": _lstsq,
    "linalg_lu": _cubic(2 / 3),
    "linalg_lu_factor_ex": _cubic(2 / 3),
    "linalg_lu_solve": _triangular(2),
    "linalg_matrix_exp": _matrix_exp,
    "linalg_pinv": _pseudo_inverse,
    "linalg_qr": _qr,
    "linalg_solve_triangular": _triangular(1),
    "mkldnn_rnn_layer": _recurrent,
    "mkldnn_rnn_layer_backward": _recurrent_backward,
}
