"""The other side: a process that holds one method and nothing else of ours.

``python -I -m stages.sandbox.worker FD METHOD`` reads jobs from the socket FD. A job is one ``interpret`` or one
``answer``; while it runs, every touch of the target is a call back over the same socket.
"""

import os
import socket
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.contracts.dictionary import Dictionary
from stages.contracts.method import Budget, Interpretation, Method
from stages.contracts.target import (
    Corpus,
    Forward,
    Gradients,
    Intervention,
    Objective,
    TargetSpec,
)
from stages.interpretation.loading import built_in, from_file
from stages.sandbox.codec import Disconnected, decode, encode, receive, send
from stages.sandbox.confine import confine
from stages.sandbox.limits import TargetRefusal, layer_of
from stages.sandbox.method_meter import MethodMeter

__all__ = ["RemoteAccess", "main"]


class RemoteAccess:
    """``TargetAccess`` over a socket."""

    def __init__(self, connection: socket.socket, spec: TargetSpec, variant: int | None = None) -> None:
        self._connection, self._spec, self._variant = connection, spec, variant

    @property
    def spec(self) -> TargetSpec:
        return self._spec

    def _call(self, name: str, **arguments: Any) -> Any:
        send(self._connection, {"call": name, "variant": self._variant, "arguments": arguments})
        reply = receive(self._connection)
        if "error" in reply:
            raise TargetRefusal(reply["error"])
        return reply["value"]

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        return self._call(  # type: ignore[no-any-return]
            "forward", inputs=inputs, capture=list(capture), interventions=list(interventions)
        )

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        return self._call("gradients", inputs=inputs, objective=objective, wrt=list(wrt))  # type: ignore[no-any-return]

    def variant(self, index: int) -> "RemoteAccess":
        if self._variant is not None:
            raise ValueError("a variant has no variants")
        self._call("has_variant", index=int(index))
        return RemoteAccess(self._connection, self._spec, int(index))

    def weights(self) -> dict[str, Tensor]:
        return self._call("weights")  # type: ignore[no-any-return]

    def corpus(self, split: str = "train") -> Corpus:
        return self._call("corpus", split=split)  # type: ignore[no-any-return]

    def dictionaries(self) -> dict[str, Dictionary]:
        return self._call("dictionaries")  # type: ignore[no-any-return]


def _run(job: dict[str, Any], method: Method, connection: socket.socket) -> dict[str, Any]:
    access = RemoteAccess(connection, job["spec"])
    if job["do"] == "interpret":
        budget = Budget(job["max_seconds"], job["max_bytes"], job["seed"])
        made: Any = method.interpret(access, budget)
        if not isinstance(made, Interpretation):
            return {"error": f"it returned {type(made).__name__}, not an Interpretation"}
        return {"done": Interpretation(dict(made.arrays), dict(made.data)), "own_flops": 0}
    with torch.no_grad(), MethodMeter() as meter:
        answer: Any = method.answer(job["query"], job["interpretation"], access)
        if isinstance(answer, np.ndarray):
            answer = torch.from_numpy(np.array(answer))
        encode(answer)  # whatever it puts off until it is read happens here, inside the meter
    return {"done": answer, "own_flops": meter.flops, "own_ops": meter.ops, "tampered": meter.tampered}


def _load(source: str) -> Method:
    return from_file(Path(source)) if source.endswith(".py") else built_in(source)


def _warm_up() -> None:
    """What is slow the first time happens before the clock runs."""
    with torch.no_grad(), MethodMeter():
        square = torch.eye(8)
        raw = encode([square @ square, torch.from_numpy(square.numpy() + 1.0)])
        n_text, n_blob = struct.unpack("!QQ", raw[:16])
        decode(raw[16 : 16 + n_text], raw[16 + n_text : 16 + n_text + n_blob])


def main() -> None:
    source, descriptor = sys.argv[1], int(sys.argv[2])
    connection = socket.socket(fileno=descriptor)
    torch.set_num_threads(1)
    _warm_up()
    go = receive(connection)
    layers = confine(go["limits"], descriptor) if go["limits"] else []
    try:
        method = _load(source)
        hello = {"ready": type(method).__name__, "name": str(getattr(method, "name", ""))[:64], "layers": layers}
        send(connection, hello)
    except Exception as error:
        send(
            connection,
            {"error": getattr(error, "cause", f"{type(error).__name__}: {error}")[:2000], "layer": layer_of(error)},
        )
        os._exit(1)
    while True:
        try:
            job = receive(connection)
        except Disconnected:
            return
        try:
            reply = _run(job, method, connection)
            send(connection, reply)
        except Disconnected:
            return
        except BaseException as error:  # SystemExit too: leaving is not an answer
            send(connection, {"error": f"{type(error).__name__}: {error}"[:2000], "layer": layer_of(error)})


if __name__ == "__main__":
    main()
