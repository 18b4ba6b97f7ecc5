"""A running account of FLOPs."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["Ledger"]


class Ledger:
    """FLOPs and calls charged since it was made. One ledger may serve a target and all its variants."""

    def __init__(self) -> None:
        self.flops = 0
        self.calls = 0

    def charge(self, flops: int) -> None:
        """Add one call.

        Raises:
            ValueError: a negative charge.
        """
        if flops < 0:
            raise ValueError(f"a charge of {flops} FLOPs: charges are never negative")
        self.flops += flops
        self.calls += 1

    @contextmanager
    def window(self) -> Iterator["Ledger"]:
        """A ledger that ends up with what was charged to this one inside the ``with`` block."""
        inside = Ledger()
        flops, calls = self.flops, self.calls
        try:
            yield inside
        finally:
            inside.flops, inside.calls = self.flops - flops, self.calls - calls
