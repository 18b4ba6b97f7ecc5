"""numpy arrays that tell what is computed on them: what ``tensor.numpy()`` gives while a method is metered.

Prices follow the op table's conventions. An array made another way (``np.asarray`` included) is an ordinary one and
its cost is seen
by CPU time alone.
"""

from collections.abc import Callable
from math import ceil, log2, prod
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["PricedArray", "price_with", "priced"]

_charge: Callable[[int], None] | None = None
_FREE = frozenset(
    """
    equal not_equal less less_equal greater greater_equal logical_and logical_or logical_not isfinite isnan isinf
    """.split()
)


def price_with(charge: Callable[[int], None] | None) -> None:
    """Where charges go; None: nowhere."""
    global _charge
    _charge = charge


def priced(array: npt.NDArray[Any]) -> "PricedArray":
    return array.view(PricedArray)


class PricedArray(np.ndarray[Any, Any]):
    """See the head of this module."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = tuple(_plain(x) for x in inputs)
        out = kwargs.get("out")
        if out is not None:
            kwargs["out"] = tuple(_plain(x) for x in out)
        result = getattr(ufunc, method)(*plain, **kwargs)
        if _charge is not None:
            _charge(_ufunc_price(ufunc.__name__, method, plain, result))
        return _again(result)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain_args, plain_kwargs = _deep(args), _deep(kwargs)
        result = func(*plain_args, **plain_kwargs)
        if _charge is not None:
            _charge(_function_price(func.__name__, _arrays(plain_args), result, plain_args))
        return _again(result)

    def dot(self, other: Any, out: Any = None) -> Any:
        return np.dot(self, other)


def _plain(value: Any) -> Any:
    return value.view(np.ndarray) if isinstance(value, PricedArray) else value


def _deep(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_deep(v) for v in value)
    if isinstance(value, dict):
        return {k: _deep(v) for k, v in value.items()}
    return _plain(value)


def _again(result: Any) -> Any:
    if type(result) is np.ndarray:
        return result.view(PricedArray)
    if isinstance(result, tuple):
        values = [_again(v) for v in result]
        return type(result)(*values) if hasattr(result, "_fields") else tuple(values)
    return result


def _arrays(value: Any) -> list[npt.NDArray[Any]]:
    if isinstance(value, np.ndarray):
        return [value]
    if isinstance(value, (list, tuple)):
        return [a for v in value for a in _arrays(v)]
    return []


def _size(value: Any) -> int:
    return sum(a.size for a in _arrays(value)) or 1


def _ufunc_price(name: str, method: str, inputs: tuple[Any, ...], result: Any) -> int:
    if name in ("matmul", "vecdot", "matvec", "vecmat"):
        inner = np.shape(inputs[0])[-1] if np.shape(inputs[0]) else 1
        return int(2 * _size(result) * inner)
    if name in _FREE:
        return 0
    return max(_size(result), _size(inputs[:1])) if method != "__call__" else _size(result)


def _function_price(name: str, arrays: list[npt.NDArray[Any]], result: Any, args: tuple[Any, ...]) -> int:
    """FLOPs of a numpy function; one that is not listed costs a pass over its largest array."""
    if not arrays:
        return 0
    first = arrays[0]
    shape = first.shape or (1,)
    m, n = (shape[-2], shape[-1]) if first.ndim > 1 else (1, shape[-1])
    batch = prod(shape[:-2]) if first.ndim > 2 else 1
    if name in ("dot", "inner", "vdot", "tensordot", "matmul"):
        # Every product reads each pair of elements along the contracted axes once.
        total = prod(float(a.size) for a in arrays[:2])
        return int(2 * (total * max(1, _size(result))) ** 0.5)
    if name == "einsum" and isinstance(args[0], str):
        letters: dict[str, int] = {}
        for term, array in zip(args[0].split("->")[0].replace(" ", "").split(","), arrays, strict=False):
            letters |= dict(zip(term.replace("...", ""), array.shape[-len(term.replace("...", "")) :], strict=False))
        return int(2 * prod(letters.values()) * (len(arrays) - 1 or 1))
    if name in ("svd", "pinv", "lstsq", "matrix_rank"):
        return int(batch * (6 * m * n * min(m, n) + 20 * min(m, n) ** 3))
    if name in ("eigh", "eigvalsh"):
        return int(batch * 9 * n**3)
    if name in ("eig", "eigvals"):
        return int(batch * 25 * n**3)
    if name in ("solve", "inv", "det", "slogdet", "qr", "cholesky", "cond"):
        return int(batch * (2 * m * n * min(m, n) + 2 * _size(result) * n))
    if name.endswith(("fft", "fft2", "fftn")):
        return int(5 * first.size * max(1, ceil(log2(max(2, first.size)))))
    if name in ("sort", "argsort", "partition", "argpartition", "median", "percentile", "quantile", "unique"):
        return first.size * max(1, ceil(log2(max(2, n))))
    if name in ("convolve", "correlate", "outer", "kron", "cov", "corrcoef"):
        return int(2 * _size(result) * max(a.shape[-1] if a.ndim else 1 for a in arrays))
    return max(_size(arrays), _size(result))
