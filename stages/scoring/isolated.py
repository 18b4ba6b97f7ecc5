"""The host of unreviewed code: a method's own code runs in the sandbox, once, and never sees the data.

One process interprets on every target and records every answer on shapes; what it sent is data. Each recorded answer is
priced here and run by a process that holds no method. Only an ``adaptive`` method answers in a process of its own, one
per task, and is charged by that process's CPU time.
"""

import atexit
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import Tensor

from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Represent
from stages.contracts.outcomes import Outcome
from stages.contracts.target import Target, TargetAccess, digest_of
from stages.errors import MethodError
from stages.execution.answering import Asked, answer_of, asked_of, checked
from stages.interpretation.artifact import pack
from stages.interpretation.free_phase import dictionaries_of
from stages.interpretation.settings import Config as InterpretationConfig
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import Calibration, calibrate
from stages.metering.ledger import Ledger
from stages.sandbox.host import MethodProcess
from stages.scoring.cached import cached_target
from stages.scoring.candidate import Candidate, Frozen, Source
from stages.tasks.storage import Task
from stages.tracing.program import Plan, Program, Recorded, Ref, Refused

__all__ = ["Isolated", "TargetGuard", "forget_runners"]

PROBE = 16
"""Inputs whose outputs are compared before and after."""
MAX_RESTARTS = 2
"""Of a method's process that ended over an answer while it was recorded."""
FEW = 3
"""Empty answers that are timed."""
EMPTY = """
from lensmith import Interpretation, Method


class Empty(Method):
    adaptive = True

    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        if query.labels is not None:
            target.forward(query.inputs, capture=[hook.name for hook in target.spec.hooks])
        return None
"""


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
    timeout_s: float = 120.0
    """Wall limit of one call of a method."""
    trust: bool = False
    """No sandbox: a process of its own, with the user's rights."""
    stand_ins: tuple[Target, ...] = ()
    """Targets that are interpreted in place of those of the same name."""

    def _target(self, name: str) -> Target:
        return next((one for one in self.stand_ins if one.name == name), None) or cached_target(name)

    def freeze(
        self, candidate: Candidate, targets: list[str], asked: Mapping[str, Sequence[Asked]] | None = None
    ) -> dict[str, Frozen]:
        limit, made = self.config, {}
        with contextlib.ExitStack() as open_:
            process = open_.enter_context(self._process(candidate, min(self.timeout_s, limit.max_seconds)))
            for target in targets:
                access = MeteredAccess(
                    self._target(target), Ledger(), free=True, dictionaries=partial(dictionaries_of, target)
                )
                before = process.cpu_seconds()
                value = process.interpret(access, limit.max_bytes, limit.seed)
                packed = pack(value, candidate.name, f"interpret on {target}", limit.max_bytes)
                made[target] = Frozen(*packed, process.cpu_seconds() - before, process.adaptive)
            if not process.adaptive and asked:
                process.timeout_s = self.timeout_s
                made = self._record(candidate, made, asked, process, open_)
        return made

    def _record(
        self,
        candidate: Candidate,
        made: Mapping[str, Frozen],
        asked: Mapping[str, Sequence[Asked]],
        process: MethodProcess | None,
        open_: contextlib.ExitStack,
    ) -> dict[str, Frozen]:
        """I(M) with the answers to what is asked. A process that ends over an answer is started again, a few times."""
        starts, last, done = 0, Refused("", ""), {}
        for target, frozen in made.items():
            interpretation, spec = frozen.interpretation(), self._target(target).spec
            programs: dict[str, Recorded] = dict(frozen.programs)
            for one in asked.get(target, ()):
                key = one.key(interpretation)
                if key in programs:
                    continue
                if process is None and starts == MAX_RESTARTS:
                    programs[key] = replace(
                        last, reason=f"{last.reason}; it was not tried again after {starts + 1} times"
                    )
                    continue
                try:
                    if process is None:
                        starts += 1
                        process = open_.enter_context(self._process(candidate, self.timeout_s))
                    programs[key] = process.record(one.question, one.n_variants, interpretation, spec, one.weights)
                except MethodError as error:
                    process, last = None, Refused(error.cause, error.layer)
                    programs[key] = last
            done[target] = replace(frozen, programs=programs)
        return done

    def ask(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        if frozen.adaptive:
            return self._ask_adaptive(candidate, frozen, task, target)
        asked, interpretation = asked_of(task), frozen.interpretation()
        key = asked.key(interpretation)
        if key not in frozen.programs:  # shapes that nobody foresaw
            with contextlib.ExitStack() as open_:
                made = self._record(candidate, {target.name: frozen}, {target.name: [asked]}, None, open_)
            frozen = made[target.name]
        room = self.config.max_bytes - frozen.n_bytes
        runner = _Runner(candidate.name, self.timeout_s, self.trust)
        return answer_of(frozen.programs[key], candidate.name, interpretation, task, target, runner, room)

    @contextmanager
    def _process(self, candidate: Candidate, timeout_s: float) -> Iterator[MethodProcess]:
        with (
            _file_of(candidate) as (file, shown),
            MethodProcess(file, candidate.name, timeout_s, shown=shown, trust=self.trust) as process,
        ):
            yield process

    def _ask_adaptive(self, candidate: Candidate, frozen: Frozen, task: Task, target: Target) -> Answered:
        ledger, n, place = Ledger(), task.instances.n, f"answer to {task.family.query_kind} on {target.name}"
        access = MeteredAccess(target, ledger, variants=task.instances.variants)
        query, interpretation = task.family.query(task.instances), frozen.interpretation()
        rows, reason, layer, used, served = None, "", "", 0.0, 0
        status: Outcome = "ok"
        rates = measured(self.trust)
        with TargetGuard(target) as guard:
            try:
                with self._process(candidate, self.timeout_s) as process:
                    started = process.cpu_seconds()
                    try:
                        reply = process.answer(query, interpretation, access)
                        served = reply.served_bytes
                    finally:
                        process.close()  # what it goes on doing after it answered counts too
                        used = process.usage_s - started
                rows = checked(reply.value, candidate.name, task, access)
                status = "declined" if rows is None else "ok"
            except MethodError as error:
                status, reason, layer = "failed", error.cause, error.layer
        if guard.fault():
            status, reason, layer, rows = "void", f"{place}: {guard.fault()}", "read-only target", None
        allowed = rates.allowed_s(served)
        own, unseen = rates.flops(used - allowed), rates.flops(allowed)
        return Answered(status, rows, ledger.flops / n, own / n, reason, layer, unseen / n)


@dataclass(frozen=True)
class _Runner:
    """Runs checked programs in a confined process that holds no method; one such process serves many."""

    name: str
    timeout_s: float
    trust: bool

    def __call__(
        self, program: Program, plan: Plan, inputs: Mapping[Ref, Tensor], target: TargetAccess
    ) -> Tensor | None:
        if program.output is None:
            return None
        process = _confined(self.trust)
        process.name, process.timeout_s = self.name, self.timeout_s
        try:
            answer = process.run(program, plan, inputs, target)
        except BaseException:
            _forget(self.trust)  # whatever state it is in: the next program gets a fresh one
            raise
        return answer  # type: ignore[no-any-return]


_runners: dict[bool, MethodProcess] = {}


def _confined(trust: bool) -> MethodProcess:
    if trust not in _runners:
        if not _runners:
            atexit.register(forget_runners)
        _runners[trust] = MethodProcess(None, "no method", 120.0, trust=trust)
    return _runners[trust]


def _forget(trust: bool) -> None:
    process = _runners.pop(trust, None)
    if process is not None:
        with contextlib.suppress(OSError):
            process.close()


def forget_runners() -> None:
    """End the processes that run programs; the next one starts anew."""
    for trust in list(_runners):
        _forget(trust)


@lru_cache(maxsize=2)
def measured(trust: bool) -> Calibration:
    """This machine's rate, and what an empty answer and a served byte take in a method's process."""
    rates, target = calibrate(), _smallest()
    inputs = target.corpus("train").inputs[:256]
    empty: list[tuple[float, int]] = []
    served: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory(prefix="lensmith-method-") as folder:
        file = Path(folder) / "empty.py"
        file.write_text(EMPTY, encoding="utf-8")
        for _ in range(FEW):
            for labels, into in ((None, empty), (torch.zeros(len(inputs), dtype=torch.int64), served)):
                with MethodProcess(file, "empty", 60.0, trust=trust) as process:
                    started = process.cpu_seconds()
                    reply = process.answer(Represent(inputs, labels), Interpretation(), MeteredAccess(target, Ledger()))
                    process.close()
                    into.append((process.usage_s - started, reply.served_bytes))
    empty_s = statistics.median(seconds for seconds, _ in empty)
    byte_s = max(0.0, statistics.median(seconds for seconds, _ in served) - empty_s) / max(1, served[0][1])
    return replace(rates, empty_s=empty_s, byte_s=byte_s)


def _smallest() -> Target:
    from stages.base.params import load

    targets = [cached_target(name) for name in load("interpretation", InterpretationConfig).targets]
    return min(targets, key=lambda target: sum(value.numel() for value in target.model.state_dict().values()))


@contextmanager
def _file_of(candidate: Candidate) -> Iterator[tuple[Path, str]]:
    """The file that a method's process is started with, and what its author calls it."""
    if not isinstance(candidate.what, Source):
        raise ValueError(f"{candidate.name} is an instance: only source runs isolated")
    with tempfile.TemporaryDirectory(prefix="lensmith-method-") as folder:
        file = Path(folder) / "method.py"
        file.write_text(candidate.what.text, encoding="utf-8")
        yield file, candidate.what.file
