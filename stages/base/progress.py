"""How far long work has come: code that computes reports it, who listens (a terminal, a log) shows it.

Nobody listens by default, and a report then costs a dictionary look-up. It is not passed as an argument, since a search
runs through half a dozen functions that have nothing to say about it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["Listener", "listening", "report"]

Listener = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all)."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(what: str, done: int, total: int) -> None:
    """Say that ``done`` of ``total`` steps of something are done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Reports from inside the block go to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
