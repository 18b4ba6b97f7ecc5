"""One call to a language model, and what came of it in one word.

The only module that uses Inspect's model API (https://inspect.aisi.org.uk/models.html), which is imported when a
provider is made. Inspect reaches every provider and every OpenAI-compatible server, but its errors are coarse: a
refusal looks like an answer, a prompt that is too long comes back as the server's message in the place of the answer,
and most failures are one exception around others. So they are told apart here. A call is one HTTP request: Inspect's
own retries and those of the provider's client are switched off, and its cache is not used.
"""

import asyncio
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from stages.base.text import plain
from stages.contracts.journal import CallStatus, Tokens
from stages.errors import UserError

__all__ = ["INSTALL", "Answer", "Interrupted", "Model", "Provider", "Question", "installed"]

INSTALL = "pip install -c constraints.txt -e '.[llm]'"
MAX_DETAIL = 300
SPARE_S = 30.0
"""What a call may take above its own limit before it is given up from outside."""


@dataclass(frozen=True)
class Question:
    """What is sent."""

    system: str
    prompt: str
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is to follow; servers may ignore it."""
    seed: int | None = None
    """Of the sampling, where the model is ``seeded``."""

    def sent(self) -> str:
        """Everything that is sent, as one text: what a prompt is recognised by and its price is reserved from."""
        return json.dumps([self.system, self.prompt, self.schema], ensure_ascii=False)


@dataclass(frozen=True)
class Model:
    """A model that can be asked.

    Args:
        name: as Inspect calls it: ``openai/<name>``, ``anthropic/<name>``, ``openai-api/<service>/<name>``.
        base_url: of an OpenAI-compatible server; else ``<SERVICE>_BASE_URL`` of the environment says it.
        sampling: ``temperature`` and what else is not to be the provider's default.
        seeded: whether it is told the question's seed.
    """

    name: str
    base_url: str = ""
    sampling: Mapping[str, float] = field(default_factory=dict)
    seeded: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of a call."""

    status: CallStatus
    text: str = ""
    detail: str = ""
    tokens: Tokens | None = None
    wait_s: float = 0.0
    """How long the server asks to be left alone."""


def installed() -> ModuleType:
    """Inspect's model API.

    Raises:
        UserError: it is not installed; says what to install.
    """
    try:
        import inspect_ai.model
        import openai  # noqa: F401
    except ImportError as error:
        raise UserError(f"asking a language model needs the extra `llm` ({error.name} is missing): {INSTALL}") from None
    return inspect_ai.model  # type: ignore[no-any-return]


class Interrupted(Exception):
    """Asking was given up before there was an answer."""


class Provider:
    """Asks models from any number of threads; calls run in one event loop of its own.

    Args:
        max_tokens: of an answer, reasoning included.
        attempt_timeout: seconds that a call may take.

    Raises:
        UserError: a package or a key is missing.
    """

    def __init__(self, models: tuple[Model, ...], max_tokens: int, attempt_timeout: int) -> None:
        self.api = installed()
        self.max_tokens, self.attempt_timeout = max_tokens, attempt_timeout
        self.loop, self.closed = asyncio.new_event_loop(), False
        threading.Thread(target=self.loop.run_forever, name="asking", daemon=True).start()
        self.models = {one.name: one for one in models}
        self.made = {one.name: asyncio.run_coroutine_threadsafe(self._make(one), self.loop).result() for one in models}

    def close(self) -> None:
        """Give up the calls in flight: whoever waits for one gets ``Interrupted``."""
        self.closed = True

        def give_up() -> None:
            for task in asyncio.all_tasks(self.loop):
                task.cancel()

        self.loop.call_soon_threadsafe(give_up)

    async def _make(self, model: Model) -> Any:
        given: dict[str, str] = {"base_url": model.base_url} if model.base_url else {}
        kind, _, rest = model.name.partition("/")
        service = rest.partition("/")[0].upper().replace("-", "_")
        if kind == "openai-api" and model.base_url and not os.environ.get(f"{service}_API_KEY"):
            given["api_key"] = "none"  # a server of one's own wants none
        try:
            made = self.api.get_model(model.name, memoize=False, **given)
        except Exception as error:  # whatever a provider's constructor raises: a key, a package, a name
            said = re.sub(r"\[/?[a-z ]+\]", "", str(error))  # Inspect's are marked up for a terminal
            raise UserError(f"model {model.name} cannot be used: {_clean(said.removeprefix('ERROR: '))}") from None
        client: Any = getattr(made.api, "client", None)
        if hasattr(client, "max_retries"):
            client.max_retries = 0  # those of the provider's own client, which Inspect does not switch off
        return made

    def answer(self, name: str, question: Question) -> Answer:
        """Ask once. Never raises for what a server does.

        Raises:
            Interrupted: ``close`` was called.
        """
        running = asyncio.run_coroutine_threadsafe(self._ask(name, question), self.loop)
        try:
            return classified(running.result(self.attempt_timeout + SPARE_S))
        except (TimeoutError, CancelledError):
            if self.closed:
                raise Interrupted from None
            running.cancel()
            return Answer("timeout", detail=f"no answer within {self.attempt_timeout} s")
        except Exception as error:
            return failed(error)

    async def _ask(self, name: str, question: Question) -> Any:
        api, model = self.api, self.models[name]
        schema = None
        if question.schema is not None:
            from inspect_ai.util import JSONSchema

            schema = api.ResponseSchema(
                name="answer", json_schema=JSONSchema.model_validate(question.schema), strict=True
            )
        config = api.GenerateConfig(
            max_retries=0,
            attempt_timeout=self.attempt_timeout,
            max_tokens=self.max_tokens,
            max_connections=64,  # how many are asked at once is decided by whoever asks
            response_schema=schema,
            seed=question.seed if model.seeded else None,
            **model.sampling,
        )
        messages = [
            api.ChatMessageSystem(content=question.system),
            api.ChatMessageUser(content=question.prompt),
        ]
        return await self.made[name].generate(messages, config=config, cache=False)


def classified(output: Any) -> Answer:
    """What an output of Inspect's is."""
    text, tokens = str(output.completion), _tokens(output.usage)
    if not output.choices:
        return Answer("malformed", detail="the reply has no choices", tokens=tokens)
    choice = output.choices[0]
    parts = choice.message.content
    refusal = any(getattr(part, "refusal", None) for part in parts) if isinstance(parts, list) else False
    why = getattr(choice, "stop_details", None)
    if choice.stop_reason == "model_length":
        return Answer("context", detail=_clean(text) or "the prompt is too long for the model", tokens=tokens)
    if choice.stop_reason == "content_filter":
        return Answer("filtered", detail=_clean(text) or "stopped by a content filter", tokens=tokens)
    if refusal or getattr(why, "type", "") == "refusal":
        return Answer("refused", detail=_clean(text), tokens=tokens)
    if choice.stop_reason == "max_tokens":
        return Answer("truncated", text, "the answer was cut off at the limit of tokens", tokens)
    if not text.strip():
        return Answer("empty", detail="the answer is empty", tokens=tokens)
    return Answer("no_usage" if tokens is None else "ok", text, tokens=tokens)


def _tokens(usage: Any) -> Tokens | None:
    """None where a reply says nothing, or nothing that can be."""
    if usage is None:
        return None
    counts = {
        "input": usage.input_tokens or 0,  # what was taken from a cache or put there is counted beside it
        "cache_read": usage.input_tokens_cache_read or 0,
        "cache_write": usage.input_tokens_cache_write or 0,
        "output": usage.output_tokens or 0,
    }
    return Tokens(**counts) if min(counts.values()) >= 0 and sum(counts.values()) > 0 else None


BY_CODE: Mapping[int, CallStatus] = {401: "auth", 403: "auth", 404: "not_found", 408: "timeout", 413: "context",
                                     429: "rate_limited"}  # fmt: skip
BY_NAME: tuple[tuple[CallStatus, frozenset[str]], ...] = (
    ("timeout", frozenset({"AttemptTimeoutError", "StreamIdleTimeoutError", "APITimeoutError", "TimeoutException",
                           "TimeoutError"})),
    ("unreachable", frozenset({"ConnectError", "ConnectionRefusedError", "gaierror", "UnsupportedProtocol"})),
    ("dropped", frozenset({"APIConnectionError", "TransportError", "ConnectionError", "ClosedResourceError",
                           "BrokenResourceError", "EndOfStream"})),
    ("malformed", frozenset({"OpenAIResponseError", "APIResponseValidationError", "JSONDecodeError", "DecodingError",
                             "IndexError", "KeyError", "TypeError", "AttributeError", "ValueError"})),
)  # fmt: skip
"""Names of exceptions, their bases included, the first that fits; by name, since every provider has a package of its
own."""
TOO_LONG = ("context length", "context window", "context_length", "too many tokens", "prompt is too long",
            "exceeds the available context", "maximum context")  # fmt: skip


def failed(error: BaseException | None) -> Answer:
    """What an exception says came of a call."""
    chain = list(_chain(error))
    detail = _said(chain[-1] if type(chain[0]).__name__ == "RetryError" and len(chain) > 1 else chain[0])
    code = next((int(one.status_code) for one in chain if isinstance(getattr(one, "status_code", None), int)), None)  # type: ignore[attr-defined]
    if code is not None and code >= 400:
        said = " ".join(str(getattr(one, "provider_message", "") or one) for one in chain).lower()
        status: CallStatus = BY_CODE.get(code, "server_error" if code >= 500 else "bad_request")
        if status == "bad_request" and any(words in said for words in TOO_LONG):
            status = "context"
        return Answer(status, detail=f"HTTP {code}: {_clean(_provider_said(chain))}", wait_s=_wait(chain))
    names = {base.__name__ for one in chain for base in type(one).__mro__}
    for status, known in BY_NAME:
        if names & known:
            return Answer(status, detail=detail)
    return Answer("server_error", detail=detail)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and what it wraps: causes, and the last attempt of one that gave up retrying."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        attempt = getattr(error, "last_attempt", None)
        error = attempt.exception() if attempt is not None else error.__cause__ or error.__context__


def _provider_said(chain: list[BaseException]) -> str:
    """The server's words, without the request that Inspect quotes before them."""
    words = [
        str(getattr(one, name)) for name in ("provider_message", "message") for one in chain if getattr(one, name, None)
    ]
    return words[0] if words else str(chain[-1])


def _wait(chain: list[BaseException]) -> float:
    """Seconds of a ``retry-after`` header; 0 where there is none."""
    for one in chain:
        headers = getattr(getattr(one, "response", None), "headers", None) or {}
        try:
            return max(0.0, float(headers.get("retry-after", "")))
        except ValueError:
            continue
    return 0.0


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {_clean(str(getattr(error, 'message', '') or error))}"


def _clean(text: str) -> str:
    """One line, no control characters, none of the keys of the environment."""
    for name, value in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN", "_SECRET")) and len(value) >= 8:
            text = text.replace(value, f"${name}")
    return plain(text, MAX_DETAIL)
