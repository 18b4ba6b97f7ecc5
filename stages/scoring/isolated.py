"""A method nobody has reviewed, from file to answers: interpret, freeze, answer, each in a process of its own.

The three meters meet here. (a) is the ledger of the target, which lives in this process; (b) is what the method's
process says it computed; (c) is that process's CPU time, read from outside. A result is ``ok``, ``declined``,
``failed`` (the method's fault: the baseline's score at best, and what it used is charged), ``void`` (tampering, or a
broken postcondition: no score at all) or ``infra`` (the machinery's fault: no score either, and nothing is learned).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from stages.contracts.target import Target, digest_of
from stages.dictionaries.storage import load_dictionaries
from stages.errors import MethodError
from stages.execution.answering import Answered, checked
from stages.interpretation.artifact import pack, unpack
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import Calibration, Unexplained
from stages.metering.ledger import Ledger
from stages.sandbox.host import MethodProcess, Reply
from stages.scoring.settings import Settings, cached_target
from stages.tasks.storage import Task

__all__ = ["Apart", "Frozen", "Outcome", "answer_apart", "interpret_apart", "layer_of", "unchanged"]

Outcome = Literal["ok", "declined", "failed", "void", "infra"]
PROBE = 16
"""Inputs whose outputs are compared before and after."""


@dataclass(frozen=True)
class Frozen:
    """I(M) on one target: data only."""

    arrays: bytes
    text: bytes
    seconds: float

    @property
    def n_bytes(self) -> int:
        return len(self.arrays) + len(self.text)


@dataclass(frozen=True)
class Apart:
    """What came of one query to a method in its own process."""

    outcome: Outcome
    reason: str
    answered: Answered
    layer: str
    """What stopped or caught it; empty where nothing did."""
    facts: dict[str, Any]
    """FLOPs by layer (a), (b), (c), CPU seconds, calls; for side files and MLflow, since (c) varies from run to run."""

    @classmethod
    def infra(cls, task: str, error: BaseException) -> "Apart":
        """A failure of the machinery, in its own words."""
        reason = f"the machinery failed on {task}: {type(error).__name__}: {' '.join(str(error).split())}"[:500]
        return cls("infra", reason, Answered("failed", None, 0.0, 0.0, reason), "infra", {"task": task})


class unchanged:  # (used like a function: `with unchanged(target) as fault:`)
    """Checks that a target is the same after a ``with`` block: weights by digest, behaviour on a probe.

    ``fault()`` says what changed; empty: nothing.
    """

    def __init__(self, target: Target) -> None:
        self._target, self._found = target, ""

    def _look(self) -> tuple[str, torch.Tensor]:
        model = self._target.model
        with torch.no_grad():
            outputs = model(self._target.corpus("train").inputs[:PROBE])
        return digest_of(dict(model.state_dict()), self._target.spec.to_json()), outputs

    def __enter__(self) -> "unchanged":
        self._digest, self._outputs = self._look()
        if self._digest != self._target.digest:
            self._found = "the target's weights are not those of its digest"
        return self

    def __exit__(self, *error: object) -> None:
        digest, outputs = self._look()
        if digest != self._digest:
            self._found = "the target's weights changed while the method ran"
        elif not torch.equal(outputs, self._outputs):
            self._found = "the target's outputs on a probe changed while the method ran"

    def fault(self) -> str:
        return self._found


def interpret_apart(
    source: str | Path, name: str, targets: Sequence[str], chosen: Settings, timeout_s: float, trust: bool
) -> dict[str, Frozen]:
    """I(M) on every target as validated bytes, from one process that ends with it.

    Raises:
        MethodError: the method failed; says where and how.
    """
    limit, made = chosen.interpretation, {}
    with MethodProcess(source, name, min(timeout_s, limit.max_seconds), trust=trust) as process:
        for target in targets:
            access = MeteredAccess(
                cached_target(target), Ledger(), free=True, dictionaries=partial(load_dictionaries, target)
            )
            before = process.cpu_seconds()
            value = process.interpret(access, limit.max_bytes, limit.seed)
            arrays, text = pack(value, name, f"interpret on {target}", limit.max_bytes)
            made[target] = Frozen(arrays, text, process.cpu_seconds() - before)
    return made


def answer_apart(
    source: str | Path,
    name: str,
    frozen: Frozen,
    task: Task,
    target: Target,
    timeout_s: float,
    trust: bool,
    rates: Calibration,
) -> Apart:
    """The answer to one task's query, from a fresh process that has the frozen I(M) and nothing else."""
    ledger, n, place = Ledger(), task.instances.n, f"answer to {task.family.query_kind} on {target.name}"
    access = MeteredAccess(target, ledger, variants=task.instances.variants)
    reply: Reply | None = None
    rows, status, reason, layer = None, "ok", "", ""
    used = 0.0
    with unchanged(target) as check:
        try:
            with MethodProcess(source, name, timeout_s, trust=trust) as process:
                started = process.cpu_seconds()
                try:
                    reply = process.answer(
                        task.family.query(task.instances), unpack(frozen.arrays, frozen.text), access
                    )
                    used = reply.cpu_s
                finally:
                    process.close()
                    used = max(used, process.usage_s - started)
            rows = checked(reply.value, name, task)
            status = "declined" if rows is None else "ok"
        except MethodError as error:
            status, reason, layer = "failed", error.cause, layer_of(error.cause)
    own, ops, calls = (reply.own_flops, reply.own_ops, reply.calls) if reply else (0, 0, ledger.calls)
    spent = Unexplained.of(used, calls, ops, ledger.flops, own, rates)
    faults = [
        (check.fault(), "read-only target"),
        (f"its meter was tampered with: {reply.tampered}" if reply and reply.tampered else "", "meter (b)"),
        (spent.void if status != "failed" else "", "meter (c)"),
    ]
    for fault, where in faults:
        if fault:
            status, reason, layer, rows = "void", f"{place}: {fault}", where, None
            break
    # What CPU time says beyond the counted FLOPs is charged to the method's own account.
    answered = Answered(
        "failed" if status == "void" else status,  # type: ignore[arg-type]
        rows,
        ledger.flops / n,
        (spent.charge - ledger.flops) / n,
        reason,
    )
    facts = {
        "task": task.name,
        "flops_a": ledger.flops,
        "flops_b": own,
        "flops_c": spent.flops,
        "cpu_s": used,
        "cpu_allowed_s": spent.allowed_s,
        "calls": calls,
        "ops": ops,
        "charged_flops": spent.charge,
    }
    return Apart(status, reason, answered, layer, facts)  # type: ignore[arg-type]


_LAYERS = (
    ("longer than", "wall limit"),
    ("of memory", "memory limit"),
    ("MemoryError", "memory limit"),
    ("can't allocate", "memory limit"),
    ("threads", "task limit"),
    ("new thread", "task limit"),
    ("its process ended", "process boundary"),
    ("no price", "meter (b)"),
    ("switch the meter off", "meter (b)"),
    ("while it answers", "meter (b)"),
    ("count", "meter (b)"),
    ("sent", "message format"),
    ("message", "message format"),
    ("open in interpret", "target access"),
    ("not offered", "target access"),
    ("Permission", "sandbox"),
    ("No space", "sandbox"),
    ("File too large", "sandbox"),
    ("FileNotFound", "sandbox"),
    ("Read-only", "sandbox"),
    ("OSError", "sandbox"),
)


def layer_of(cause: str) -> str:
    """Which wall a failure ran into, from its words."""
    return next((layer for words, layer in _LAYERS if words in cause), "answer check")
