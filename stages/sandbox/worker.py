"""The other side: a process that holds one method, or none, and nothing else of ours.

``worker METHOD FD`` reads jobs from the socket FD: ``interpret``, ``record`` an answer on shapes, or ``answer`` for a
method that is adaptive. ``worker - FD`` holds no method: it runs programs that were checked. While a job runs, every
touch of the target is a call back over the same socket. A fork of the warm parent begins in ``serve``.
"""

import os
import random
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stages.base.users_code import blame, words
from stages.contracts.dictionary import Dictionary
from stages.contracts.method import Budget, Interpretation, Method
from stages.contracts.method_file import from_file
from stages.contracts.target import (
    Corpus,
    Forward,
    Gradients,
    Intervention,
    Objective,
    TargetSpec,
)
from stages.errors import MethodError
from stages.sandbox.codec import Disconnected, receive, send
from stages.sandbox.confine import confine
from stages.sandbox.limits import RUNNER, TargetRefusal, layer_of
from stages.tracing.recording import record
from stages.tracing.running import run

__all__ = ["RemoteAccess", "main", "serve"]


class RemoteAccess:
    """``TargetAccess`` over a socket."""

    def __init__(self, connection: socket.socket, spec: TargetSpec, variant: int | list[int] | None = None) -> None:
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

    def variants(self, indices: Sequence[int]) -> "RemoteAccess":
        if self._variant is not None:
            raise ValueError("a variant has no variants")
        return RemoteAccess(self._connection, self._spec, [int(index) for index in indices])

    def weights(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        return self._call("weights", names=None if names is None else list(names))  # type: ignore[no-any-return]

    def corpus(self, split: str = "train") -> Corpus:
        return self._call("corpus", split=split)  # type: ignore[no-any-return]

    def dictionaries(self) -> dict[str, Dictionary]:
        return self._call("dictionaries")  # type: ignore[no-any-return]


def _run(job: dict[str, Any], method: Method | None, connection: socket.socket) -> dict[str, Any]:
    access = RemoteAccess(connection, job["spec"])
    if method is None:
        answer = run(job["program"], job["plan"], dict(job["inputs"]), access)
        return {"done": None if answer is None else answer.contiguous()}
    match job["do"]:
        case "interpret":
            budget = Budget(job["max_seconds"], job["max_bytes"], job["seed"])
            made: Any = method.interpret(access, budget)
            if not isinstance(made, Interpretation):
                raise TypeError(f"interpret returned {type(made).__name__}, not an Interpretation")
            return {"done": Interpretation(dict(made.arrays), dict(made.data))}
        case "record":
            given = (job["question"], job["interpretation"], job["spec"], job["n_variants"], job["weights"])
            return {"done": record(method, *given)}
    with torch.no_grad():
        found: Any = method.answer(job["query"], job["interpretation"], access)
        return {"done": torch.from_numpy(np.array(found)) if isinstance(found, np.ndarray) else found}


def main() -> None:
    source, descriptor = sys.argv[1], int(sys.argv[2])
    connection = socket.socket(fileno=descriptor)
    torch.set_num_threads(1)
    serve(connection, source, receive(connection))


def serve(connection: socket.socket, source: str, go: dict[str, Any]) -> None:
    """Confine this process, load the method, and do jobs until the other side is gone.

    Args:
        source: the method's file, or RUNNER.
        go: the first message.
    """
    layers = confine(go["limits"], connection.fileno()) if go["limits"] else []
    random.seed(0)  # what a method draws without a seed is the same in every process
    np.random.seed(0)
    try:
        method = None if source == RUNNER else from_file(Path(source), go["file"])
        hello = {
            "name": str(getattr(method, "name", ""))[:64],
            "adaptive": bool(getattr(method, "adaptive", False)),
            "layers": layers,
        }
        send(connection, {"ready": hello})
    except Exception as error:
        said = f"{error.cause}. {error.remedy}" if isinstance(error, MethodError) else words(error)
        send(connection, {"error": said[:2000], "layer": layer_of(error)})
        os._exit(1)
    while True:
        try:
            job = receive(connection)
        except Disconnected:
            return
        try:
            send(connection, _run(job, method, connection))
        except Disconnected:
            return
        except BaseException as error:  # SystemExit too: leaving is not an answer
            said = words(error) if method is None else blame(error, source, go["file"])
            send(connection, {"error": said[:2000], "layer": layer_of(error)})


if __name__ == "__main__":
    main()
