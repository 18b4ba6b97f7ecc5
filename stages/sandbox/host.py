"""Our side: starts a method's process in the sandbox, serves it the target, watches it, and ends it.

The target, the labels, the scoring and the meter stay in this process. What the method's process uses is read from
outside it; when it ends, everything in its process namespace ends with it.
"""

import contextlib
import os
import select
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from stages.contracts.method import Interpretation, Query
from stages.contracts.target import Intervention, Objective, TargetAccess, TargetSpec
from stages.errors import InfraError, MethodError, UserError
from stages.metering.access import MeteredAccess
from stages.sandbox.bubblewrap import why_unavailable
from stages.sandbox.codec import MAX_FROM_METHOD, Disconnected, MessageError, TimedOut, receive, send
from stages.sandbox.groups import Group, Usage, cpu_seconds, writable_group
from stages.sandbox.limits import LAYERS, MESSAGE, PRIVATE_BYTES, RUNNER
from stages.sandbox.starting import START_SECONDS, start
from stages.sandbox.stopwatch import FAR, Stopwatch
from stages.tracing.program import Blank, Plan, Program, Recorded, Ref, Refused

__all__ = ["Limits", "MethodProcess", "Reply", "require_sandbox"]

WATCH_SECONDS = 0.2
OPERATIONS = ("corpus", "dictionaries", "forward", "gradients", "has_variant", "weights")


@dataclass(frozen=True)
class Limits:
    """What a method's process may use."""

    memory: int = 6 << 30
    """Address space: torch alone maps 1 to 3 GiB, most of it never touched."""
    resident: int = 2 << 30
    """Memory in use."""
    tasks: int = 64
    """Threads and processes."""
    cpu_s: int = 1800
    """CPU time of the whole process, beside the wall limit of each job."""
    files: int = 256
    """Open files."""

    def rlimits(self) -> dict[str, int]:
        # NPROC counts all of a user's threads on the machine, so it cannot be small; the watch holds the method's own
        # to ``tasks``.
        return {
            "AS": self.memory,
            "CORE": 0,
            "CPU": self.cpu_s,
            "FSIZE": PRIVATE_BYTES,
            "NOFILE": self.files,
            "NPROC": 4096,
        }


class Reply(NamedTuple):
    value: Any
    cpu_s: float
    """CPU time of its process tree during the job, read from outside."""
    served_bytes: int
    """Bytes of what the target's side answered to it."""


class MethodProcess:
    """One process with one method in it; use as a context manager.

    Args:
        source: a file; None: no method, the process runs programs.
        name: for messages.
        timeout_s: limit of one job, in seconds of its own: see ``Stopwatch``.
        shown: what the method's file is called in messages.
        trust: run it without the sandbox: a process of its own, with our rights.
        limits: what it may use.
        cold: a new interpreter, even where a warm parent could be asked.

    Raises:
        UserError: there is no sandbox here and ``trust`` was not given.
        MethodError: it does not start, or a job fails; says how.
        InfraError: no method's process starts on this machine now.
    """

    def __init__(
        self,
        source: str | Path | None,
        name: str,
        timeout_s: float,
        *,
        shown: str = "",
        trust: bool = False,
        limits: Limits | None = None,
        cold: bool = False,
    ) -> None:
        self.name, self.timeout_s, self.limits = name, timeout_s, limits or Limits()
        if not trust:
            require_sandbox(
                f"method {name!r} is code nobody has reviewed", "; or give --trust to run it with your own rights"
            )
        ours, theirs = socket.socketpair()
        self._connection, self._closed = ours, False
        file = RUNNER if source is None else str(Path(source).resolve())
        group = f"lensmith-{os.getpid()}-{ours.fileno()}-{time.monotonic_ns()}"
        self._group = Group(group, self.limits.resident, self.limits.tasks, None if trust else writable_group())
        self.usage_s = 0.0
        """CPU time of the whole process tree, start-up included; known once it is closed."""
        try:
            self._tree = start(file, theirs, self._group, trust=trust, cold=cold)
        except InfraError:
            ours.close()
            self._group.close()
            raise
        finally:
            theirs.close()
        self._root = self._tree.root
        watch = Stopwatch(self._root, self.cpu_seconds, max(START_SECONDS, timeout_s))
        try:
            go: dict[str, Any] = {"limits": {} if trust else self.limits.rlimits(), "file": shown or f"{name}.py"}
            if self._tree.text:
                go["text"] = torch.frombuffer(bytearray(Path(file).read_bytes() or b"\n"), dtype=torch.uint8)
            self._send(go, "import", watch)
            hello = self._receive("import", watch)
        except MethodError as error:
            self.close()
            if source is None or not _starts(trust):
                raise InfraError(f"no method's process starts here: {error.cause}") from error
            raise
        if "error" in hello:
            self.close()
            raise MethodError(name, "import", str(hello["error"])[:2000], "", _layer(hello))
        told = hello.get("ready")
        told = told if isinstance(told, dict) else {}
        self.adaptive = told.get("adaptive") is True
        self.layers = [*(() if trust else ("bubblewrap",)), *map(str, told.get("layers") or ())]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End everything in it, and account for it."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(OSError):
            self.usage_s = self.cpu_seconds()
        self._connection.close()
        self._tree.kill()
        self.usage_s = max(self.usage_s, self._tree.used_s)
        self._group.close()

    def cpu_seconds(self) -> float:
        """CPU time of the process tree so far, read from outside."""
        counted = self._group.cpu_seconds()
        return cpu_seconds(self._root) if counted is None else counted

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

    def record(
        self,
        asked: Query,
        n_variants: int,
        interpretation: Interpretation,
        spec: TargetSpec,
        weights: Mapping[str, Sequence[int]] | None = None,
    ) -> Recorded:
        """The method's answer as a program, or what stood in the way.

        Args:
            asked: a blank query.
            weights: shapes of one variant's weights by name.
            interpretation: I(M); of its arrays only the shapes are sent.
        """
        place = f"answer to {type(asked).__name__} on {spec.name}"
        shapes: dict[str, Any] = {name: Blank.of(value) for name, value in interpretation.arrays.items()}
        frozen = Interpretation(shapes, dict(interpretation.data))
        job = {"do": "record", "spec": spec, "question": asked, "interpretation": frozen, "n_variants": n_variants}
        job["weights"] = {name: list(shape) for name, shape in (weights or {}).items()}
        try:
            value = self._job(job, None, place).value
        except MethodError as error:
            if self._closed:
                raise
            return Refused(error.cause, error.layer)
        return value if isinstance(value, Program) else Refused("its process sent no program", MESSAGE)

    def answer(self, query: Query, interpretation: Interpretation, access: MeteredAccess) -> Reply:
        """The answer of an adaptive method, computed in its process."""
        place = f"answer to {type(query).__name__} on {access.spec.name}"
        frozen = Interpretation(dict(interpretation.arrays), dict(interpretation.data))
        job = {"do": "answer", "spec": access.spec, "query": query, "interpretation": frozen}
        return self._job(job, access, place)

    def run(self, program: Program, plan: Plan, inputs: Mapping[Ref, Tensor], access: TargetAccess) -> Any:
        """Run a checked program; see ``stages.tracing.running.run``."""
        pairs = [(ref, value) for ref, value in inputs.items()]
        job = {"spec": access.spec, "program": program, "plan": plan, "inputs": pairs}
        return self._job(job, access, f"answer on {access.spec.name}").value

    def _job(self, job: dict[str, Any], access: TargetAccess | None, place: str) -> Reply:
        watch = Stopwatch(self._root, self.cpu_seconds, self.timeout_s)
        before, served = self.cpu_seconds(), 0
        self._send(job, place, watch)
        while True:
            message = self._receive(place, watch)
            if "call" in message:
                with watch.serving():
                    reply = _serve(message, access)
                served += self._send(reply, place, watch)
            elif "error" in message:
                raise MethodError(self.name, place, str(message["error"])[:2000], "", _layer(message))
            elif "done" in message:
                return Reply(message["done"], self.cpu_seconds() - before, served)
            else:
                raise MethodError(
                    self.name, place, "its process sent a message that is no answer", "Use the contract only.", MESSAGE
                )

    def _send(self, value: Any, place: str, watch: Stopwatch) -> int:
        self._connection.settimeout(watch.limit_s)
        try:
            return send(self._connection, value)
        except TimedOut as error:
            raise self._late(place, watch) from error
        except Disconnected as error:
            raise self._gone(place, str(error)) from error

    def _receive(self, place: str, watch: Stopwatch) -> dict[str, Any]:
        try:
            message = receive(self._connection, watch.deadline, MAX_FROM_METHOD, ready=lambda: self._wait(place, watch))
        except TimedOut as error:
            raise self._late(place, watch) from error
        except Disconnected as error:
            raise self._gone(place, str(error)) from error
        except MessageError as error:
            raise MethodError(self.name, place, str(error), "Return tensors and plain data.", MESSAGE) from error
        if not isinstance(message, dict):
            raise MethodError(
                self.name, place, "its process sent a message that is no answer", "Use the contract only.", MESSAGE
            )
        return message

    def _wait(self, place: str, watch: Stopwatch) -> None:
        """Wait until something arrives, and end a process that uses too much meanwhile."""
        while not select.select([self._connection], [], [], WATCH_SECONDS)[0]:
            if watch.over() or time.monotonic() > watch.deadline:
                raise TimedOut("deadline passed")
            usage = Usage(self._root)
            over = (
                f"{usage.resident >> 20:,} MiB of memory; {self.limits.resident >> 20:,} are allowed"
                if usage.resident > self.limits.resident
                else f"{usage.threads} threads; {self.limits.tasks} are allowed"
                if usage.threads > self.limits.tasks
                else ""
            )
            if over:
                limit = "memory limit" if usage.resident > self.limits.resident else "task limit"
                self.close()
                raise MethodError(self.name, place, f"it used {over}", "Use less, or work in parts.", limit)

    def _late(self, place: str, watch: Stopwatch) -> MethodError:
        if not watch.over():
            raise InfraError(f"the machine was too busy for {place}: {FAR:g} x {watch.limit_s:g} s passed over it")
        cause = f"it took longer than {watch.limit_s:g} s and was stopped"
        return MethodError(self.name, place, cause, "Make it faster, or raise --timeout.", "wall limit")

    def _gone(self, place: str, how: str) -> MethodError:
        self._tree.wait(5.0)
        if self._tree.broken():
            raise InfraError(self._tree.broken())
        code = self._tree.code
        return MethodError(
            self.name,
            place,
            f"its process ended (exit code {code}; {how})",
            "It may not exit or be killed.",
            "process boundary",
        )


def require_sandbox(why: str, otherwise: str = "") -> None:
    """Raise UserError where there is no sandbox; the message says how to get one."""
    if why_unavailable():
        raise UserError(f"{why}, and there is no sandbox to run it in: {why_unavailable()}{otherwise}")


def _starts(trust: bool) -> bool:
    """Whether a method that is known to start does."""
    try:
        MethodProcess(None, "no method", START_SECONDS, trust=trust).close()
    except (InfraError, OSError):
        return False
    return True


def _serve(message: dict[str, Any], access: TargetAccess | None) -> dict[str, Any]:
    """Run one declared operation for the method; its mistakes go back to it as an error."""
    try:
        name, arguments = message["call"], message["arguments"]
        if name not in OPERATIONS or not isinstance(arguments, dict):
            raise ValueError(f"operation {str(name)[:40]!r} is not offered: use {', '.join(OPERATIONS)}")
        if access is None:
            raise ValueError(f"{name} was asked for while an answer is recorded: only the given target records calls")
        which = message.get("variant")
        if name == "has_variant":
            access.variant(arguments["index"])
            return {"value": True}
        over = access if which is None else access.variants(which) if isinstance(which, list) else access.variant(which)
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
                return {"value": over.weights(arguments["names"])}
            case _:
                return {"value": over.dictionaries()}
    except Exception as error:
        # What went wrong in words, never our frames: a traceback would show the method where things lie.
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return {"error": said[:2000]}


def _layer(message: dict[str, Any]) -> str:
    """Which limit the method's process says it ran into; a label, believed for tables alone."""
    told = message.get("layer")
    return told if isinstance(told, str) and told in LAYERS else "answer check"


def _all(values: Sequence[Any], kind: type) -> None:
    for value in values:
        if not isinstance(value, kind):
            raise ValueError(f"{type(value).__name__} is no {kind.__name__}")
