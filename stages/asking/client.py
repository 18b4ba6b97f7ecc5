"""Asks language models within a limit of money, and writes down every call before and after it is made.

A call is ``asked`` (its price is reserved) and then ``replied`` (it is counted as what it took) in a journal, and the
journal is all there is: what was replied is never asked again, and what was asked without a reply, because the process
ended, is counted in full and left alone unless it is told otherwise. So the sum never exceeds the limit, however many
ask at once and whenever they are killed:

    settled + reserved + (bytes sent as tokens x dearest price in) + (max_tokens x price out) <= limit

holds before each call. A token is at least one byte for tokenisers that work on bytes; ``max_tokens`` is the server's
to keep. A server that says it took more than that is believed, and its model is reserved as much from then on.
"""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, JsonValue

from stages.asking.provider import Answer, Interrupted, Question
from stages.base import paths
from stages.base.params import Params, load
from stages.contracts.journal import Asked, CallStatus, Replied, Stopped, Tokens
from stages.errors import UserError

__all__ = ["SETUP", "TRANSIENT", "USABLE", "Book", "Client", "Price", "Prices", "Stop", "load_prices", "priced"]

USABLE: tuple[CallStatus, ...] = ("ok", "no_usage")
TRANSIENT: tuple[CallStatus, ...] = ("rate_limited", "server_error", "timeout", "dropped", "unreachable")
"""Asked again, after a pause."""
SETUP: tuple[CallStatus, ...] = ("auth", "not_found", "bad_request", "malformed")
"""The next question would end the same way."""
FREE: tuple[CallStatus, ...] = ("rate_limited", "unreachable", "auth", "not_found", "bad_request")
"""Turned away before anything was generated. What broke later may have been generated, and is counted in full."""
PAUSES_S = (1.0, 4.0, 16.0)
"""Before each attempt after the first; more where the server asks for it."""
LONGEST_PAUSE_S = 120.0
OVERHEAD = 512
"""Tokens that a chat's template may add."""
MILLION = Decimal(1_000_000)


class Price(Params):
    """USD per million tokens."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    """Of prompt tokens from the server's cache; that of ``input`` where it is not given."""
    cache_write: Decimal | None = Field(default=None, ge=0)
    """Of prompt tokens put there; that of ``input`` where it is not given."""
    date: date
    """Day on which the price was read."""
    source: str
    """Where."""

    def numbers(self) -> dict[str, Decimal]:
        return {
            "input": self.input,
            "output": self.output,
            "cache_read": self.input if self.cache_read is None else self.cache_read,
            "cache_write": self.input if self.cache_write is None else self.cache_write,
        }


class Prices(Params):
    """params/llm/prices.yaml."""

    models: dict[str, Price]
    """By the name with which a model is asked."""


def load_prices(path: Path | None = None) -> Prices:
    """The price table."""
    return load("prices", Prices, path or paths.prices_file())


def priced(models: Sequence[str], prices: Prices, unknown: bool) -> dict[str, dict[str, Decimal]]:
    """Prices of models, empty for one whose price is not known.

    Args:
        unknown: whether such a model may be asked.

    Raises:
        UserError: a price is not known, and nobody said that it may be so.
    """
    for name in models:
        if name not in prices.models and not unknown:
            raise UserError(
                f"the price of {name} is not in {paths.prices_file()}, so no limit can be kept: add it there"
                " (USD per million tokens, date and source), or accept that its calls count as 0 with --price-unknown"
            )
    return {name: prices.models[name].numbers() if name in prices.models else {} for name in models}


def bound(question: Question, prices: Mapping[str, Decimal], max_tokens: int) -> Decimal:
    """The most that a call may cost, in USD."""
    if not prices:
        return Decimal(0)
    dearest = max(prices["input"], prices["cache_read"], prices["cache_write"])
    prompt = len(question.sent().encode()) + OVERHEAD
    return (prompt * dearest + max_tokens * prices["output"]) / MILLION


def cost(tokens: Tokens, prices: Mapping[str, Decimal]) -> Decimal:
    """What a reply's tokens cost, in USD."""
    counts = {"input": tokens.input, "cache_read": tokens.cache_read, "cache_write": tokens.cache_write}
    return sum((n * prices[kind] for kind, n in (*counts.items(), ("output", tokens.output))), Decimal(0)) / MILLION


class Stop(Exception):
    """Nothing more can be asked for now.

    Args:
        status: that of the last call, or ``spent``.
        reason: why, and what to do.
    """

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Book(Protocol):
    """Where calls are written down: a campaign's journal, or anything that appends and keeps."""

    @property
    def events(self) -> Sequence[Any]: ...

    def append(self, event: Any) -> Any: ...


class Answers(Protocol):
    """What is asked: ``stages.asking.provider.Provider``."""

    max_tokens: int

    def answer(self, name: str, question: Question) -> Answer: ...

    def close(self) -> None: ...


@dataclass
class Client:
    """Asks, from any number of threads.

    Args:
        provider: who answers.
        book: where calls are written down, and read again.
        prices: of each model, empty where unknown: its calls count as 0.
        limit_usd: that all calls in the book together may cost.
        retries: further attempts where the server could not for now.
        retry_lost: ask again what was asked without a reply.
        sleep: waits; a test's does not.
    """

    provider: Answers
    book: Book
    prices: Mapping[str, Mapping[str, Decimal]]
    limit_usd: Decimal
    retries: int = len(PAUSES_S)
    retry_lost: bool = False
    sleep: Callable[[float], object] | None = None
    _ended: threading.Event = field(default_factory=threading.Event)
    _turn: threading.Condition = field(default_factory=threading.Condition)
    _open: dict[tuple[str, int], Decimal] = field(default_factory=dict)
    """Reservations of calls that are being made now."""

    def spent(self) -> Decimal:
        """What the calls in the book count as, those under way and those that were lost in full."""
        settled = {(one.about, one.attempt): one.usd for one in self.book.events if isinstance(one, Replied)}
        asked = [one for one in self.book.events if isinstance(one, Asked)]
        return sum((settled.get((one.about, one.attempt), one.reserved_usd) for one in asked), Decimal(0))

    def ask(
        self,
        about: str,
        model: str,
        question: Question,
        context: Mapping[str, JsonValue] | None = None,
        fault: Callable[[str], str] = lambda text: "",
    ) -> Replied:
        """The reply to a question, from the book where it is there.

        Args:
            about: what is asked for; a reply in the book belongs to the question with the same words here.
            context: what is to be read again from the book.
            fault: what is wrong with an answer, empty where nothing is: makes it ``invalid``.

        Returns:
            A reply of status ``USABLE``, or one that asking again would not mend.

        Raises:
            Stop: the limit is reached, the server cannot for now, or something is set up wrongly.
        """
        asked, replied, since = self._past(about)
        failures = []
        for attempt, call in enumerate(asked):
            reply = replied.get(attempt) or self._lost(call)
            if reply.status not in (*TRANSIENT, *SETUP) and not (reply.status == "lost" and self.retry_lost):
                return reply
            if attempt >= since and reply.status != "lost":
                failures.append(reply)
        attempt, tries, last = len(asked), len(failures), failures[-1] if failures else None
        while True:
            if last is not None and (last.status in SETUP or tries > self.retries):
                raise Stop(last.status, _why(last, model, tries))
            reply, wait_s = self._once(about, attempt, model, question, context or {}, fault)
            if reply.status not in (*TRANSIENT, *SETUP):
                return reply
            last, attempt, tries = reply, attempt + 1, tries + 1
            if reply.status in TRANSIENT and tries <= self.retries:
                pause = PAUSES_S[min(tries, len(PAUSES_S)) - 1]
                (self.sleep or self._ended.wait)(min(max(pause, wait_s), LONGEST_PAUSE_S))

    def close(self) -> None:
        """Give up what is being asked, from any thread; in the book it stays asked without a reply."""
        self._ended.set()
        self.provider.close()
        with self._turn:
            self._turn.notify_all()

    def _lost(self, call: Asked) -> Replied:
        """Write down that nothing came of a call: the process ended first."""
        said = "the process ended before the reply was written down"
        lost = Replied(
            about=call.about,
            attempt=call.attempt,
            status="lost",
            text="",
            detail=said,
            tokens=None,
            usd=call.reserved_usd,
        )
        with self._turn:
            self.book.append(lost)
        return lost

    def _past(self, about: str) -> tuple[list[Asked], dict[int, Replied], int]:
        """Calls in the book, their replies, and how many there were when asking was last stopped."""
        with self._turn:
            events = list(self.book.events)
        asked: list[Asked] = []
        replied: dict[int, Replied] = {}
        since = 0
        for one in events:
            if isinstance(one, Asked) and one.about == about:
                asked.append(one)
            elif isinstance(one, Replied) and one.about == about:
                replied[one.attempt] = one
            elif isinstance(one, Stopped):
                since = len(asked)
        return asked, replied, since

    def _once(
        self,
        about: str,
        attempt: int,
        model: str,
        question: Question,
        context: Mapping[str, JsonValue],
        fault: Callable[[str], str],
    ) -> tuple[Replied, float]:
        """One call, and the seconds that the server asks to be left alone."""
        prices = self.prices[model]
        most = bound(question, prices, self.provider.max_tokens)
        key = about, attempt
        with self._turn:
            self._reserve(key, model, most)
            asked = Asked(
                about=about,
                attempt=attempt,
                model=model,
                prompt=hashlib.sha256(question.sent().encode()).hexdigest()[:16],
                prices=dict(prices),
                reserved_usd=self._open[key],
                context=dict(context),
            )
            self.book.append(asked)
        try:
            answer = self.provider.answer(model, question)
        except BaseException:  # interrupted: in the book it stays asked without a reply
            self._close(key)
            raise
        status, detail = answer.status, answer.detail
        if status in USABLE and (wrong := fault(answer.text)):
            status, detail = "invalid", wrong
        if answer.tokens is not None:
            usd = cost(answer.tokens, prices) if prices else Decimal(0)
        else:
            usd = Decimal(0) if status in FREE else asked.reserved_usd
        reply = Replied(
            about=about,
            attempt=attempt,
            status=status,
            text=answer.text,
            detail=detail,
            tokens=answer.tokens,
            usd=usd,
        )
        with self._turn:
            self.book.append(reply)
        self._close(key)
        return reply, answer.wait_s

    def _close(self, key: tuple[str, int]) -> None:
        with self._turn:
            del self._open[key]
            self._turn.notify_all()

    def _reserve(self, key: tuple[str, int], model: str, most: Decimal) -> None:
        """Wait until there is room for a call; calls under way may yet turn out cheaper than what is reserved."""
        while True:
            if self._ended.is_set():
                raise Interrupted
            known = {(one.about, one.attempt): one.model for one in self.book.events if isinstance(one, Asked)}
            dearest = max(
                (one.usd for one in self.book.events
                 if isinstance(one, Replied) and known.get((one.about, one.attempt)) == model),
                default=Decimal(0),
            )  # fmt: skip
            need, spent = max(most, dearest), self.spent()
            if spent + need <= self.limit_usd:
                self._open[key] = need
                return
            if not self._open:
                raise Stop(
                    "spent",
                    f"${spent:f} of ${self.limit_usd:f} is spent and the next call may cost ${need:f}: run the same"
                    " again with a larger --max-usd to go on",
                )
            self._turn.wait()


def _why(reply: Replied, model: str, tries: int) -> str:
    said = f"{model}: {reply.status} ({reply.detail})"
    match reply.status:
        case "auth":
            remedy = "set the provider's key in the environment"
        case "not_found" | "malformed":
            remedy = "see that the model's name and --base-url are right (a base URL mostly ends in /v1)"
        case "bad_request":
            remedy = "the server does not take the request; try another model"
        case "timeout":
            remedy = "give it more time with --attempt-timeout"
        case "unreachable":
            remedy = "see that --base-url is right and the server is up"
        case _:
            remedy = "wait"
    return f"{said} after {tries} calls: {remedy}, then run the same again, which goes on where it was"
