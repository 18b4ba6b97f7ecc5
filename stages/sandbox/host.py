"""Our side: starts a method's process, serves it the target, meters it, and ends it.

The target, the labels, the scoring and the meter stay in this process. The method's process is its own process group,
so that nothing it starts outlives it.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from stages.errors import MethodError
from stages.interpretation.contract import Interpretation, Query
from stages.metering import MeteredAccess
from stages.sandbox.codec import Disconnected, MessageError, TimedOut, receive, send
from stages.targets import Intervention, Objective

__all__ = ["MethodProcess", "Reply"]

START_SECONDS = 120.0
"""A process that has not imported its method by then is stopped."""
OPERATIONS = ("corpus", "dictionaries", "forward", "gradients", "has_variant", "weights")


class Reply(NamedTuple):
    value: Any
    own_flops: int
    """FLOPs of the method's own torch ops, as its process counted them."""


class MethodProcess:
    """One process with one method in it; use as a context manager.

    Args:
        source: a file, or the name of a built-in method.
        name: for messages.
        timeout_s: wall-clock limit of one job.

    Raises:
        MethodError: it does not start, or a job fails; says how.
    """

    def __init__(self, source: str | Path, name: str, timeout_s: float) -> None:
        self.name, self.timeout_s = name, timeout_s
        ours, theirs = socket.socketpair()
        self._connection = ours
        source = str(Path(source).resolve()) if str(source).endswith(".py") else str(source)
        command = [sys.executable, "-I", "-m", "stages.sandbox.worker", str(theirs.fileno()), source]
        self._process = subprocess.Popen(
            command,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": os.defpath, "HOME": "/nonexistent"},
        )
        theirs.close()
        try:
            hello = self._receive("import", time.monotonic() + max(START_SECONDS, timeout_s), timeout_s)
        except MethodError:
            self.close()
            raise
        if "error" in hello:
            self.close()
            raise MethodError(name, "import", str(hello["error"]), "Mend the file; it must import.")
        self.declared_name = str(hello.get("name") or "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the whole process group."""
        self._connection.close()
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()

    def interpret(self, access: MeteredAccess, max_bytes: int, seed: int) -> Any:
        place = f"interpret on {access.spec.name}"
        job = {
            "do": "interpret",
            "spec": access.spec,
            "max_seconds": self.timeout_s,
            "max_bytes": max_bytes,
            "seed": seed,
        }
        return self._job(job, access, place).value

    def answer(self, query: Query, interpretation: Interpretation, access: MeteredAccess) -> Reply:
        place = f"answer to {type(query).__name__} on {access.spec.name}"
        frozen = Interpretation(dict(interpretation.arrays), dict(interpretation.data))
        job = {"do": "answer", "spec": access.spec, "query": query, "interpretation": frozen}
        return self._job(job, access, place)

    def _job(self, job: dict[str, Any], access: MeteredAccess, place: str) -> Reply:
        deadline = time.monotonic() + self.timeout_s
        self._send(job, place)
        while True:
            message = self._receive(place, deadline, self.timeout_s)
            if "call" in message:
                self._send(_serve(message, access), place)
            elif "error" in message:
                raise MethodError(self.name, place, str(message["error"])[:2000], "Run it on its own to debug it.")
            elif "done" in message:
                return Reply(message["done"], max(0, int(message.get("own_flops", 0))))
            else:
                raise MethodError(
                    self.name, place, "its process sent a message that is no answer", "Use the contract only."
                )

    def _send(self, value: Any, place: str) -> None:
        self._connection.settimeout(self.timeout_s)
        try:
            send(self._connection, value)
        except (Disconnected, TimedOut) as error:
            raise self._gone(place, str(error)) from error

    def _receive(self, place: str, deadline: float, limit: float) -> dict[str, Any]:
        try:
            message = receive(self._connection, deadline)
        except TimedOut as error:
            cause = f"it took longer than {limit:g} s and was stopped"
            raise MethodError(self.name, place, cause, "Make it faster, or raise --timeout.") from error
        except Disconnected as error:
            raise self._gone(place, str(error)) from error
        except MessageError as error:
            raise MethodError(self.name, place, str(error), "Return tensors and plain data.") from error
        if not isinstance(message, dict):
            raise MethodError(
                self.name, place, "its process sent a message that is no answer", "Use the contract only."
            )
        return message

    def _gone(self, place: str, how: str) -> MethodError:
        try:
            code: int | str = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = "none"
        return MethodError(
            self.name, place, f"its process ended (exit code {code}; {how})", "It may not exit or be killed."
        )


def _serve(message: dict[str, Any], access: MeteredAccess) -> dict[str, Any]:
    """Run one declared operation for the method; its mistakes go back to it as an error."""
    try:
        name, arguments = message["call"], message["arguments"]
        if name not in OPERATIONS or not isinstance(arguments, dict):
            raise ValueError(f"operation {str(name)[:40]!r} is not offered: use {', '.join(OPERATIONS)}")
        if name == "has_variant":
            access.variant(arguments["index"])
            return {"value": True}
        over = access if message.get("variant") is None else access.variant(message["variant"])
        match name:
            case "forward":
                _all(arguments["interventions"], Intervention)
                return {"value": over.forward(arguments["inputs"], arguments["capture"], arguments["interventions"])}
            case "gradients":
                _all([arguments["objective"]], Objective)
                return {"value": over.gradients(arguments["inputs"], arguments["objective"], arguments["wrt"])}
            case "corpus":
                return {"value": over.corpus(arguments["split"])}
            case "weights":
                return {"value": over.weights()}
            case _:
                return {"value": over.dictionaries()}
    except Exception as error:
        # What went wrong in words, never our frames: a traceback would show the method where things lie.
        return {"error": f"{type(error).__name__}: {error}"[:2000]}


def _all(values: Sequence[Any], kind: type) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise ValueError(f"{type(value).__name__} is no {kind.__name__}")
