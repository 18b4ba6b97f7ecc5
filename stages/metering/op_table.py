"""The price table, fail-closed (an op without a price raises), and the mode that counts with it."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from stages.metering.prices import COMPLEX_PRODUCTS, COMPLEX_SUMS, INDEX_RESULTS, RULES, Bound, Price

__all__ = ["Charge", "OpTable", "UnknownOpError", "count_flops"]

Charge = Callable[[Sequence[Any], Mapping[str, Any], Any], int]
"""(arguments, named arguments, output) -> FLOPs."""
_BOOKKEEPING = frozenset({"profiler::_record_function_enter_new", "profiler::_record_function_exit", "prim::device"})
"""Ops of other libraries that compute nothing."""


class UnknownOpError(ValueError):
    """An op that is in no price list."""


@lru_cache(maxsize=1)
def _default_prices() -> dict[str, Price]:
    return {name: rule.price for rule in RULES for name in rule.names}


def _factor(name: str, args: Sequence[Any], out: Any) -> int:
    """How many real numbers of 4 bytes one element stands for, and how much dearer its arithmetic is."""
    first = out[0] if isinstance(out, (tuple, list)) and out else out
    dtypes = [value.dtype for value in args[:2] if isinstance(value, Tensor)]
    factor = 1
    if any(dtype.is_complex for dtype in dtypes) and not name.startswith("_fft"):  # its price is in real numbers
        factor = 4 if name in COMPLEX_PRODUCTS else 2 if name in COMPLEX_SUMS else 6
    seen = [value.dtype for value in args[:1] if isinstance(value, Tensor)]
    if isinstance(first, Tensor) and name not in INDEX_RESULTS:
        seen.append(first.dtype)
    widest = max((dtype.itemsize // (2 if dtype.is_complex else 1) for dtype in seen), default=4)
    return factor * (2 if widest > 4 else 1)


class OpTable:
    """Prices by op name. Immutable once made; ``extended`` returns a larger one.

    Args:
        prices: op name (as in ``torch.ops.aten``) -> function of (args, output) giving FLOPs; None: the default list.
    """

    def __init__(self, prices: Mapping[str, Price] | None = None) -> None:
        self._prices = dict(_default_prices() if prices is None else prices)
        self._charges: dict[Any, Charge] = {}

    def extended(self, prices: Mapping[str, Price]) -> "OpTable":
        return OpTable(self._prices | dict(prices))

    def fingerprint(self) -> int:
        """Changes when any price does."""
        return hash(tuple(sorted((name, id(price)) for name, price in self._prices.items())))

    def price(self, op: Any) -> Charge:
        """FLOPs of a call, given its arguments, named arguments and output; tensors need no values. Ask before the op
        runs: what one in place wrote stays.

        Raises:
            UnknownOpError: the op has no price.
        """
        if op not in self._charges:
            self._charges[op] = self._charge(op)
        return self._charges[op]

    def _charge(self, op: Any) -> Charge:
        schema = op._schema
        if schema.name in _BOOKKEEPING:
            return lambda args, kwargs, out: 0
        namespace, _, name = schema.name.partition("::")
        function = None
        if namespace == "aten":
            function = self._prices.get(f"{name}.{schema.overload_name}", self._prices.get(name))
        if function is None:
            raise UnknownOpError(
                f"op {schema.name} has no price, so it may not be used: compute it from priced ops,"
                " or add a price with a test in stages/metering/prices.py"
            )
        priced = function

        def charge(args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
            bound = Bound.of(schema, args, kwargs)
            return _factor(name, bound, out) * priced(bound, out)

        return charge


class count_flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Count the FLOPs of every op inside the ``with`` block, backward passes included.

    What it cannot see: other threads and processes, numpy, code that disables dispatch modes. It prices trusted code;
    code nobody has reviewed needs a process boundary as well.
    """

    def __init__(self, table: OpTable | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.ops = 0
        self.seen = 0
        """The count when it was last added to: a count below it was tampered with."""
        self._table = table or OpTable()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        price = self._table.price(func)
        out = func(*args, **(kwargs or {}))
        self.flops += price(args, kwargs or {}, out)
        self.ops += 1
        self.seen = max(self.seen, self.flops)
        return out
