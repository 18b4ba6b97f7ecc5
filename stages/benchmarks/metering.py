"""What recording, pricing and the sandbox cost: every claim of speed as a paired ratio that can be measured again."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from stages.base import paths
from stages.base.params import names
from stages.contracts.method import Interpretation
from stages.execution.answering import asked_of
from stages.interpretation.artifact import load_interpretation
from stages.interpretation.loading import built_in
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable
from stages.redteam.red_team import CONTROLS
from stages.sandbox.bubblewrap import why_unavailable
from stages.sandbox.host import MethodProcess
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.score import score_method
from stages.tasks.storage import Task, list_tasks
from stages.tracing.checking import check
from stages.tracing.program import Plan, Program, Ref, tensors_of
from stages.tracing.recording import record
from stages.tracing.running import run

__all__ = ["MeteringCost", "bench_metering"]

BATCHES = (1, 16, 64, 256)
TARGET = "digits_few_shot"
ROUNDS = 15
CONTROL = "gradient_times_input"


@dataclass(frozen=True)
class Overhead:
    """Forward passes of one batch size."""

    batch: int
    bare_ms: float
    metered: float
    """Ratio to bare: the median of paired turns, and all but the extreme ones."""
    metered_low: float
    metered_high: float


@dataclass(frozen=True)
class AnswerCost:
    """One built-in method's answer to one task."""

    task: str
    method: str
    operations: int
    record_s: float
    check_s: float
    direct_s: float
    """CPU seconds of calling ``answer`` on the data."""
    ratio: float
    """CPU time of running the recorded answer over that: the median of paired turns, and all but the extreme ones."""
    ratio_low: float
    ratio_high: float
    sandboxed_ratio: float | None
    """Wall time in the confined process, everything sent there and back, over the direct one's; None: no sandbox."""


@dataclass(frozen=True)
class MeteringCost:
    """What ``lensmith bench metering`` says."""

    overhead: list[Overhead]
    answers: list[AnswerCost]
    start_up_s: dict[str, float]
    """Wall seconds until a method's process is ready."""
    score_s: dict[str, float]
    """Wall seconds of a whole score."""


def bench_metering(progress: Callable[[str], None] = lambda said: None) -> MeteringCost:
    torch.set_num_threads(1)
    trusts = (True,) if why_unavailable() else (True, False)
    progress("forward passes")
    overhead = [_overhead(batch) for batch in BATCHES]
    answers = []
    confined = None if why_unavailable() else MethodProcess(None, "bench", 600.0)
    try:
        for family, target in list_tasks("train") + list_tasks("validation"):
            for method in names("reward", "methods"):
                progress(f"{method} on {family}.{target}")
                found = _answer(method, cached_task(family, target), confined)
                if found is not None:
                    answers.append(found)
    finally:
        if confined is not None:
            confined.close()
    progress("start-up and whole scores")
    start_up = {f"start-up {'outside' if trust else 'inside'} the sandbox": _start_up(trust) for trust in trusts}
    score = {f"score {'outside' if trust else 'inside'} the sandbox": _score(trust, progress) for trust in trusts}
    return MeteringCost(overhead, answers, start_up, score)


def _overhead(batch: int) -> Overhead:
    target = cached_target(TARGET)
    corpus = target.corpus("train").inputs
    inputs = corpus[torch.arange(batch) % len(corpus)]
    access = MeteredAccess(target, Ledger())

    def bare() -> None:
        with torch.no_grad():
            target.model(inputs)

    def metered() -> None:
        access.forward(inputs)

    ratios, first = _paired(metered, bare, max(1, 64 // batch))
    return Overhead(batch, 1e3 * first, statistics.median(ratios), ratios[1], ratios[-2])


def _paired(work: Callable[[], object], against: Callable[[], object], times: int) -> tuple[list[float], float]:
    """Sorted ratios of CPU time, and the median seconds of ``against``. The two take turns, so that a busy machine
    slows both."""
    work()
    against()
    ratios, seconds = [], []
    for _ in range(ROUNDS):
        spent = []
        for one in (work, against):
            started = time.thread_time()
            for _ in range(times):
                one()
            spent.append(max(1e-9, time.thread_time() - started) / times)
        ratios.append(spent[0] / spent[1])
        seconds.append(spent[1])
    return sorted(ratios), statistics.median(seconds)


def _answer(method: str, task: Task, confined: MethodProcess | None) -> AnswerCost | None:
    """None where the method declines."""
    target, made = cached_target(task.target_name), built_in(method)
    frozen = load_interpretation(paths.interpretation_dir(method), task.target_name)
    asked, query = asked_of(task), task.family.query(task.instances)
    started = time.thread_time()
    program = record(made, asked.question, frozen, target.spec, asked.n_variants)
    record_s = time.thread_time() - started
    if program.output is None:
        return None
    access = MeteredAccess(target, Ledger(), variants=task.instances.variants)
    inputs = {Ref("query", key): value for key, value in tensors_of(query).items()}
    inputs |= {Ref("array", key): value for key, value in frozen.arrays.items()}
    started = time.thread_time()
    plan = check(program, inputs, access, OpTable(), 1 << 30)
    check_s = time.thread_time() - started

    def direct() -> None:
        with torch.no_grad():
            made.answer(query, Interpretation(frozen.arrays, frozen.data), access)

    direct()
    quick = time.thread_time()
    direct()
    times = max(1, min(20, int(0.02 / max(1e-6, time.thread_time() - quick))))
    ratios, seconds = _paired(lambda: run(program, plan, inputs, access), direct, times)
    sandboxed = None
    if confined is not None:
        sandboxed = _confined(confined, program, plan, inputs, access) / seconds
    return AnswerCost(
        task.name, method, len(program.nodes), record_s, check_s, seconds,
        statistics.median(ratios), ratios[1], ratios[-2], sandboxed,
    )  # fmt: skip


def _confined(
    process: MethodProcess,
    program: Program,
    plan: Plan,
    inputs: dict[Ref, torch.Tensor],
    access: MeteredAccess,
) -> float:
    def once() -> float:
        started = time.perf_counter()
        process.run(program, plan, inputs, access)
        return time.perf_counter() - started

    once()
    return statistics.median(once() for _ in range(3))


def _start_up(trust: bool) -> float:
    def once() -> float:
        started = time.perf_counter()
        MethodProcess(CONTROLS / f"{CONTROL}.py", CONTROL, 60, trust=trust).close()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(3))


def _score(trust: bool, progress: Callable[[str], None]) -> float:
    def once() -> float:
        started = time.perf_counter()
        score_method(CONTROLS / f"{CONTROL}.py", trust=trust, progress=progress)
        return time.perf_counter() - started

    return min(once() for _ in range(2))
