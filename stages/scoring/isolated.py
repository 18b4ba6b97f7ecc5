"""The host of unreviewed code: interpret and every answer run in processes of their own, which end with it.

The three meters meet here: the target's ledger, which lives in this process; what the method's process says it
computed (the method meter); and that process's CPU time, read from outside (the CPU meter).
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from stages.contracts.arms import Answered
from stages.contracts.outcomes import Outcome
from stages.contracts.target import Target, digest_of
from stages.dictionaries.storage import load_dictionaries
from stages.errors import MethodError
from stages.execution.answering import checked
from stages.interpretation.artifact import pack
from stages.interpretation.settings import Config as InterpretationConfig
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import Calibration, Unexplained
from stages.metering.ledger import Ledger
from stages.sandbox.host import MethodProcess, Reply
from stages.sandbox.limits import CPU, METER
from stages.scoring.cached import cached_target
from stages.scoring.candidate import Candidate, Frozen, Source
from stages.tasks.storage import Task

__all__ = ["Isolated", "TargetGuard"]

PROBE = 16
"""Inputs whose outputs are compared before and after."""


class TargetGuard:
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

    def __enter__(self) -> "TargetGuard":
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


@dataclass(frozen=True)
class Isolated:
    """See ``Host``."""

    config: InterpretationConfig
    """Limits of the free phase."""
    rates: Calibration
    """What CPU time explains on this machine."""
    timeout_s: float = 120.0
    """Wall limit of one call of a method."""
    trust: bool = False
    """No sandbox: a process of its own, with the user's rights."""

    def freeze(self, candidate: Candidate, targets: list[str]) -> dict[str, Frozen]:
        limit, made = self.config, {}
        timeout = min(self.timeout_s, limit.max_seconds)
        with (
            _file_of(candidate) as source,
            MethodProcess(source, candidate.name, timeout, trust=self.trust) as process,
        ):
            for target in targets:
                access = MeteredAccess(
                    cached_target(target), Ledger(), free=True, dictionaries=partial(load_dictionaries, target)
                )
                before = process.cpu_seconds()
                value = process.interpret(access, limit.max_bytes, limit.seed)
                packed = pack(value, candidate.name, f"interpret on {target}", limit.max_bytes)
                made[target] = Frozen(*packed, process.cpu_seconds() - before)
        return made

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        ledger, n, place = Ledger(), task.instances.n, f"answer to {task.family.query_kind} on {target.name}"
        access = MeteredAccess(target, ledger, variants=task.instances.variants)
        query, interpretation = task.family.query(task.instances), frozen.interpretation()
        reply: Reply | None = None
        rows, reason, layer, used = None, "", "", 0.0
        status: Outcome = "ok"
        with TargetGuard(target) as guard:
            try:
                with (
                    _file_of(candidate) as source,
                    MethodProcess(source, candidate.name, self.timeout_s, trust=self.trust) as process,
                ):
                    started = process.cpu_seconds()
                    try:
                        reply = process.answer(query, interpretation, access)
                        used = reply.cpu_s
                    finally:
                        process.close()
                        used = max(used, process.usage_s - started)
                rows = checked(reply.value, candidate.name, task)
                status = "declined" if rows is None else "ok"
            except MethodError as error:
                status, reason, layer = "failed", error.cause, error.layer
        own, ops, calls = (reply.own_flops, reply.own_ops, reply.calls) if reply else (0, 0, ledger.calls)
        spent = Unexplained.of(used, calls, ops, ledger.flops, own, self.rates)
        faults = [
            (guard.fault(), "read-only target"),
            (f"its meter was tampered with: {reply.tampered}" if reply and reply.tampered else "", METER),
            (spent.void if status != "failed" else "", CPU),
        ]
        for fault, where in faults:
            if fault:
                status, reason, layer, rows = "void", f"{place}: {fault}", where, None
                break
        meters = {
            "flops_a": ledger.flops,
            "flops_b": own,
            "flops_c": spent.flops,
            "cpu_s": used,
            "cpu_allowed_s": spent.allowed_s,
            "calls": calls,
            "ops": ops,
            "charged_flops": spent.charge,
        }
        # What CPU time says beyond the counted FLOPs is charged to the method's own account.
        return Answered(status, rows, ledger.flops / n, (spent.charge - ledger.flops) / n, reason, layer, meters)


@contextmanager
def _file_of(candidate: Candidate) -> Iterator[Path]:
    """The file that a method's process is started with."""
    if not isinstance(candidate.what, Source):
        raise ValueError(f"{candidate.name} is an instance: only source runs isolated")
    with tempfile.TemporaryDirectory(prefix="lensmith-method-") as folder:
        file = Path(folder) / "method.py"
        file.write_text(candidate.what.text, encoding="utf-8")
        yield file
