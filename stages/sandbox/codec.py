"""Messages between a method's process and ours: JSON and safetensors, nothing executable.

A message is a tree of None, booleans, numbers, strings, lists, tuples, string-keyed dicts, tensors, and the few
record types that the contracts name. On the wire: two 8-byte lengths, the JSON, the safetensors bytes.
"""

import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from stages.contracts.method import (
    Attribute,
    Compare,
    Interpretation,
    Localise,
    Propose,
    Represent,
    Steer,
)
from stages.contracts.target import (
    Component,
    Corpus,
    Forward,
    Gradients,
    HookSpec,
    Intervention,
    Objective,
    TargetSpec,
)
from stages.tracing.program import Blank, Node, Plan, Program, Ref, Static

__all__ = ["MAX_FROM_METHOD", "Disconnected", "MessageError", "TimedOut", "decode", "encode", "receive", "send"]

MAX_BYTES = 1 << 30
"""Largest message: a method that sends more is stopped, rather than our memory filled."""
MAX_TEXT = 8 << 20
"""Largest JSON part: as Python objects it takes up to 30 times its length."""
MAX_FROM_METHOD = 256 << 20
"""Largest message that a method may send us; we send it corpora, which may be larger."""
RECORDS: dict[str, Any] = {
    record.__name__: record
    for record in (
        Attribute,
        Compare,
        Component,
        Corpus,
        Forward,
        Gradients,
        HookSpec,
        Interpretation,
        Intervention,
        Localise,
        Objective,
        Propose,
        Represent,
        Steer,
        TargetSpec,
        Blank,
        Node,
        Plan,
        Program,
        Ref,
        Static,
    )
}
_HEAD = struct.Struct("!QQ")


class MessageError(ValueError):
    """A message that is malformed, too large, or holds something it may not."""


class Disconnected(ConnectionError):
    """The other side is gone."""


class TimedOut(TimeoutError):
    """The other side did not answer before the deadline."""


def encode(value: Any) -> bytes:
    """A tree as bytes.

    Raises:
        MessageError: something that is not data.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_plain(value, tensors, 0), separators=(",", ":")).encode()
    blob = save(tensors) if tensors else b""
    return _HEAD.pack(len(text), len(blob)) + text + blob


def decode(text: bytes, blob: bytes) -> Any:
    """Bytes as a tree.

    Raises:
        MessageError: they are no message.
    """
    # A safetensors file begins with the length of its header, which is JSON as well.
    n_header = int.from_bytes(blob[:8], "little")
    if n_header > MAX_TEXT:
        raise MessageError(f"tensors with a header of {n_header:,} bytes; at most {MAX_TEXT:,} are taken")
    try:
        tensors = load(blob) if blob else {}
        return _rich(json.loads(text), tensors)
    except MessageError:
        raise
    except Exception as error:
        raise MessageError(f"not a message: {type(error).__name__}: {error}") from error


def send(connection: socket.socket, value: Any) -> int:
    """Send a tree; returns its size in bytes."""
    raw = encode(value)
    try:
        connection.sendall(raw)
        return len(raw)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Disconnected(str(error)) from error
    except TimeoutError as error:
        raise TimedOut("it does not read what is sent to it") from error


def receive(
    connection: socket.socket,
    deadline: float | None = None,
    max_bytes: int = MAX_BYTES,
    ready: Callable[[], None] | None = None,
) -> Any:
    """The next message. One that is too large is neither read nor parsed.

    Args:
        deadline: on ``time.monotonic()``'s clock; None: wait for ever.
        max_bytes: of the whole message.
        ready: called before each part is read; it waits until there is something, or raises.

    Raises:
        TimedOut, Disconnected, MessageError: as named.
    """
    n_text, n_blob = _HEAD.unpack(_read(connection, _HEAD.size, deadline, ready))
    if n_text + n_blob > max_bytes:
        raise MessageError(f"a message of {n_text + n_blob:,} bytes; at most {max_bytes:,} are taken")
    if n_text > MAX_TEXT:
        raise MessageError(f"a message with {n_text:,} bytes of text; at most {MAX_TEXT:,} are taken: use tensors")
    return decode(_read(connection, n_text, deadline, ready), _read(connection, n_blob, deadline, ready))


def _read(connection: socket.socket, n: int, deadline: float | None, ready: Callable[[], None] | None) -> bytes:
    chunks, left = [], n
    while left:
        if ready is not None:
            ready()
        remaining = None if deadline is None else deadline - time.monotonic()
        if remaining is not None and remaining <= 0:
            raise TimedOut("deadline passed")
        connection.settimeout(remaining)
        try:
            chunk = connection.recv(min(left, 1 << 20))
        except TimeoutError as error:
            raise TimedOut("deadline passed") from error
        except ConnectionError as error:
            raise Disconnected(str(error)) from error
        if not chunk:
            raise Disconnected("the connection was closed")
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


def _plain(value: Any, tensors: dict[str, Tensor], depth: int) -> Any:
    if depth > 32:
        raise MessageError("nested more than 32 deep")
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter) or value.is_sparse or value.is_quantized:
            raise MessageError(f"a {type(value).__name__} is no plain tensor")
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous().clone()
        return {"tensor": name}
    kind = type(value).__name__
    if RECORDS.get(kind) is type(value):
        names = [field.name for field in fields(value)] if is_dataclass(value) else list(value._fields)
        return {"record": kind, "fields": {n: _plain(getattr(value, n), tensors, depth + 1) for n in names}}
    if isinstance(value, list):
        return [_plain(item, tensors, depth + 1) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_plain(item, tensors, depth + 1) for item in value]}
    if isinstance(value, dict) and all(type(key) is str for key in value):
        return {"dict": {key: _plain(item, tensors, depth + 1) for key, item in value.items()}}
    raise MessageError(f"a {kind} cannot be sent: only numbers, strings, lists, dicts and tensors can")


def _rich(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_rich(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_rich(item, tensors) for item in value["tuple"])
    if "dict" in value:
        return {key: _rich(item, tensors) for key, item in value["dict"].items()}
    record = RECORDS.get(value.get("record", ""))
    if record is None:
        raise MessageError(f"unknown record {str(value.get('record'))[:40]!r}")
    return record(**{key: _rich(item, tensors) for key, item in value["fields"].items()})
