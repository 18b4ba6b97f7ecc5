"""What metering and the sandbox cost: every claim of speed as a paired ratio that can be measured again."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Required, TypedDict

import torch

from stages.base import paths
from stages.base.params import names
from stages.contracts.method import Interpretation, Represent
from stages.contracts.score_result import Meters
from stages.interpretation.artifact import load_interpretation, pack
from stages.interpretation.methods import METHODS
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import Calibration, calibrate
from stages.metering.ledger import Ledger
from stages.redteam.red_team import CONTROLS
from stages.sandbox.bubblewrap import why_unavailable
from stages.sandbox.host import MethodProcess
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen, Source
from stages.scoring.isolated import Isolated
from stages.scoring.meters import meters_of
from stages.scoring.score import score_method
from stages.scoring.settings import settings
from stages.tasks.storage import list_tasks

__all__ = ["bench_metering"]

BATCHES = (1, 16, 64, 256)
TARGET = "digits_few_shot"
ROUNDS = 15
CLIENT = """
import time

import torch

from stages.interpretation import Interpretation, Method


class Client(Method):
    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        times = []
        for _ in range(%d):
            started = time.perf_counter()
            target.forward(query.inputs)
            times.append(time.perf_counter() - started)
        return torch.tensor(times)
"""


class Overhead(TypedDict, total=False):
    """Forward passes of one batch size: what metering and a process between cost."""

    batch: Required[int]
    bare_ms: Required[float]
    metered: Required[float]
    """Ratio to bare: the median of paired turns, and all but the extreme ones."""
    metered_low: Required[float]
    metered_high: Required[float]
    across: float
    """Ratio to bare from another process, and from the sandbox where there is one."""
    across_sandboxed: float


class MethodMeters(Meters):
    """What the meters counted of one built-in method on one task."""

    method: str
    """Its name."""


class MeteringCost(TypedDict):
    """What ``lensmith bench metering`` says."""

    overhead: list[Overhead]
    start_up_s: dict[str, float]
    score: dict[str, float]
    """Seconds of a whole score inside and outside the sandbox, and their ratio."""
    layers: list[MethodMeters]
    """FLOPs of each built-in method on each task, by meter."""
    calibration: dict[str, float]


def bench_metering(progress: Callable[[str], None] = lambda said: None) -> MeteringCost:
    """Paired ratios of what metering and the sandbox cost."""
    torch.set_num_threads(1)
    trusts = (True,) if why_unavailable() else (True, False)
    progress("forward passes")
    overhead = [_overhead(batch, trusts) for batch in BATCHES]
    progress("start-up")
    start_up = {("outside" if trust else "inside"): _start_up(trust) for trust in trusts}
    progress("whole scores")
    score = _score(trusts, progress)
    progress("FLOPs by layer")
    rates = calibrate()
    return {
        "overhead": overhead,
        "start_up_s": start_up,
        "score": score,
        "layers": _layers(rates, trusts[-1]),
        "calibration": rates.facts(),
    }


def _overhead(batch: int, trusts: tuple[bool, ...]) -> Overhead:
    target = cached_target(TARGET)
    corpus = target.corpus("train").inputs
    inputs = corpus[torch.arange(batch) % len(corpus)]
    access = MeteredAccess(target, Ledger())

    def bare() -> None:
        with torch.no_grad():
            target.model(inputs)

    def metered() -> None:
        access.forward(inputs)

    times: dict[str, list[float]] = {"bare": [], "metered": []}
    for work in (bare, metered):
        work()
    for _ in range(ROUNDS):
        # Paired: the two take turns, so that a busy machine slows both.
        for name, work in (("bare", bare), ("metered", metered)):
            started = time.perf_counter()
            for _ in range(max(1, 64 // batch)):
                work()
            times[name].append((time.perf_counter() - started) / max(1, 64 // batch))
    ratios = sorted(m / b for m, b in zip(times["metered"], times["bare"], strict=True))
    row: Overhead = {
        "batch": batch,
        "bare_ms": 1e3 * statistics.median(times["bare"]),
        "metered": statistics.median(ratios),
        "metered_low": ratios[1],
        "metered_high": ratios[-2],
    }
    for trust in trusts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "client.py"
            path.write_text(CLIENT % (ROUNDS + 1), encoding="utf-8")
            with MethodProcess(path, "client", 120, trust=trust) as process:
                reply = process.answer(Represent(inputs), Interpretation(), MeteredAccess(target, Ledger()))
        across = float(reply.value[1:].median())
        ratio = across / statistics.median(times["bare"])
        if trust:
            row["across"] = ratio
        else:
            row["across_sandboxed"] = ratio
    return row


def _start_up(trust: bool) -> float:
    def once() -> float:
        started = time.perf_counter()
        MethodProcess("nothing", "nothing", 60, trust=trust).close()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(3))


def _score(trusts: tuple[bool, ...], progress: Callable[[str], None]) -> dict[str, float]:
    walls: dict[str, list[float]] = {}
    for _ in range(2):
        for trust in trusts:
            started = time.perf_counter()
            score_method(CONTROLS / "gradient_times_input.py", trust=trust, progress=progress)
            walls.setdefault("outside" if trust else "inside", []).append(time.perf_counter() - started)
    best = {name: min(found) for name, found in walls.items()}
    return {f"{name}_s": value for name, value in best.items()} | (
        {"ratio": best["inside"] / best["outside"]} if len(best) == 2 else {}
    )


def _layers(rates: Calibration, trust: bool) -> list[MethodMeters]:
    chosen, methods = settings(), names("reward", "methods")
    rows = []
    tasks = [task for split in ("train", "validation") for task in list_tasks(split)]
    for name in methods:
        candidate = Candidate(name, Source.of(METHODS.folder / f"{name}.py"))
        for family, target in tasks:
            task, limit = cached_task(family, target), chosen.interpretation.max_bytes
            made = load_interpretation(paths.interpretation_dir(name), target)
            frozen = Frozen(*pack(made, name, "interpret", limit))
            host = Isolated(chosen.interpretation, rates, 60.0, trust)
            answered = host.ask(candidate, frozen, task, cached_target(target))
            rows.append(MethodMeters(method=name, **dict(meters_of(task.name, answered))))
    return rows
