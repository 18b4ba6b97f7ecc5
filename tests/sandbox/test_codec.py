"""Messages are data: everything that may be sent survives, everything else is refused."""

import json
import socket
import struct
import threading
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.contracts.method import Interpretation, Represent
from stages.contracts.target import Intervention, Objective
from stages.sandbox.codec import (
    MAX_FROM_METHOD,
    Disconnected,
    MessageError,
    TimedOut,
    decode,
    encode,
    receive,
    send,
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def there_and_back(value):
    raw = encode(value)
    n_text, n_blob = struct.unpack("!QQ", raw[:16])
    return decode(raw[16 : 16 + n_text], raw[16 + n_text : 16 + n_text + n_blob])


@given(plain)
def test_plain_trees_survive(value):
    assert there_and_back(value) == value
    assert there_and_back((value, [value])) == (value, [value])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8])
def test_tensors_survive_bit_for_bit(dtype):
    tensor = (torch.randn(3, 5) * 4).to(dtype)
    back = there_and_back({"a": tensor, "b": [tensor[:, 1]]})
    assert torch.equal(back["a"], tensor) and back["a"].dtype == dtype
    assert torch.equal(back["b"][0], tensor[:, 1])


def test_records_survive():
    sent = [
        Intervention("h", "set", torch.ones(2), axis=1, indices=(0, 1)),
        Objective("loss", torch.arange(3)),
        Represent(torch.randn(2, 3)),
        Interpretation({"w": torch.eye(2)}, {"k": [1, {"x": None}]}),
    ]
    back = there_and_back(sent)
    assert [type(b) for b in back] == [type(s) for s in sent]
    assert back[0].indices == (0, 1) and torch.equal(back[3].arrays["w"], torch.eye(2))


class Sly(torch.Tensor):
    """A tensor that is more than data."""


@pytest.mark.parametrize(
    "value",
    [
        object(),
        lambda: 1,
        {1: "a"},
        {"x": {2, 3}},
        torch.randn(2).as_subclass(Sly),
        torch.eye(2).to_sparse(),
        1j,
        b"raw",
    ],
)
def test_what_is_not_data_is_refused(value):
    with pytest.raises(MessageError):
        encode(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[1,2",
        b'{"record": "Popen", "fields": {"args": "true"}}',
        b'{"tensor": "9"}',
        b'{"record": "Corpus", "fields": {"x": 1}}',
    ],
)
def test_garbage_is_refused(text):
    with pytest.raises(MessageError):
        decode(text, b"")


def test_an_oversized_message_is_refused_before_it_is_read():
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack("!QQ", 1 << 40, 0))
    with pytest.raises(MessageError, match="at most"):
        receive(ours)


@pytest.mark.parametrize(("text", "blob"), [(60 << 20, 0), ((8 << 20) + 1, 0), (10, 1 << 40)])
def test_text_that_would_fill_memory_is_refused_before_it_is_read(text, blob):
    """60 MB of JSON are 1.5 GB of Python objects."""
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack("!QQ", text, blob))
    with pytest.raises(MessageError, match="at most"):
        receive(ours)


def test_a_method_may_send_less_than_it_is_sent():
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack("!QQ", 10, 300 << 20))
    with pytest.raises(MessageError, match="at most"):
        receive(ours, max_bytes=MAX_FROM_METHOD)


def test_a_header_of_tensors_that_would_fill_memory_is_refused_before_it_is_parsed():
    with pytest.raises(MessageError, match="header"):
        decode(b'{"tensor": "0"}', (60 << 20).to_bytes(8, "little") + b"{" + b" " * 100)


def test_the_largest_interpretation_that_is_allowed_still_passes():
    made = Interpretation({"a": torch.zeros(1_000_000)}, {"text": "x" * 4_000_000})
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=send, args=(theirs, made))
    thread.start()
    assert receive(ours, time.monotonic() + 30, MAX_FROM_METHOD).data == made.data
    thread.join()


def test_a_silent_peer_times_out_and_a_dead_one_is_noticed():
    ours, theirs = socket.socketpair()
    with pytest.raises(TimedOut):
        receive(ours, time.monotonic() + 0.05)
    theirs.close()
    with pytest.raises(Disconnected):
        receive(ours, time.monotonic() + 5)


def test_a_dripping_peer_cannot_stretch_the_deadline():
    """One byte at a time: each read succeeds, the deadline still holds."""
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        theirs.sendall(struct.pack("!QQ", 1000, 0))
        while not stop.wait(0.01):
            theirs.sendall(b" ")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    with pytest.raises(TimedOut):
        receive(ours, time.monotonic() + 0.3)
    stop.set()
    thread.join()


def test_send_and_receive_meet():
    ours, theirs = socket.socketpair()
    send(theirs, {"x": torch.arange(4)})
    assert json.dumps(receive(ours)["x"].tolist()) == "[0, 1, 2, 3]"
