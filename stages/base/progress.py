"""How far long work has come: code that computes reports it, who listens (a terminal, a log) shows it.

Nobody listens by default, and a report then costs a dictionary look-up. It is not passed as an argument, since a search
runs through half a dozen functions that have nothing to say about it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

__all__ = ["Listener", "counted", "listening", "now_and_then", "report"]

T = TypeVar("T")
Listener = Callable[[str, int, int], None]
"""(what is done, steps done, steps in all)."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(what: str, done: int, total: int) -> None:
    """Say that ``done`` of ``total`` steps of something are done."""
    listener = _listener.get()
    if listener is not None:
        listener(what, done, total)


def counted(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items, one after another; each is reported before it is handed out."""
    for done, item in enumerate(items):
        report(what, done, len(items))
        yield item


def now_and_then(say: Callable[[str], None], seconds: float) -> Listener:
    """A listener that says what was reported last, once in so many seconds and nothing in the first of them."""
    last = time.monotonic()

    def listen(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds:
            last = time.monotonic()
            say(f"{what}, {done:,} of {total:,}")

    return listen


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Reports from inside the block go to ``listener``."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
