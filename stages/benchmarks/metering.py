"""What metering and the sandbox cost: every claim of speed as a paired ratio that can be measured again."""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stages.base import paths
from stages.contracts.method import Interpretation, Represent
from stages.interpretation.artifact import load_interpretation, pack
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import calibrate
from stages.metering.ledger import Ledger
from stages.redteam.red_team import CONTROLS
from stages.sandbox.bubblewrap import why_unavailable
from stages.sandbox.host import MethodProcess
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.isolated import Isolated
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


def bench_metering(progress: Callable[[str], None] = lambda said: None) -> dict[str, Any]:
    """Returns:
    {"overhead": rows per batch size, "start_up": seconds, "score": inside against outside, "layers": FLOPs of the
    built-in methods by layer, "calibration"}.
    """
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


def _overhead(batch: int, trusts: tuple[bool, ...]) -> dict[str, Any]:
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
    row: dict[str, Any] = {"batch": batch, "bare_ms": 1e3 * statistics.median(times["bare"])}
    ratios = sorted(m / b for m, b in zip(times["metered"], times["bare"], strict=True))
    row |= {"metered": statistics.median(ratios), "metered_low": ratios[1], "metered_high": ratios[-2]}
    for trust in trusts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "client.py"
            path.write_text(CLIENT % (ROUNDS + 1), encoding="utf-8")
            with MethodProcess(path, "client", 120, trust=trust) as process:
                reply = process.answer(Represent(inputs), Interpretation(), MeteredAccess(target, Ledger()))
        across = float(reply.value[1:].median())
        row["across" if trust else "across_sandboxed"] = across / statistics.median(times["bare"])
    return row


def _start_up(trust: bool) -> float:
    def once() -> float:
        started = time.perf_counter()
        MethodProcess("nothing", "nothing", 60, trust=trust).close()
        return time.perf_counter() - started

    return statistics.median(once() for _ in range(3))


def _score(trusts: tuple[bool, ...], progress: Callable[[str], None]) -> dict[str, Any]:
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


def _layers(rates: Any, trust: bool) -> list[dict[str, Any]]:
    chosen, methods = settings()
    rows = []
    tasks = [task for split in ("train", "validation") for task in list_tasks(split)]
    for name in methods:
        for family, target in tasks:
            task, limit = cached_task(family, target), chosen.interpretation.max_bytes
            made = load_interpretation(paths.interpretation_dir(name), target)
            frozen = Frozen(*pack(made, name, "interpret", limit))
            host = Isolated(chosen.interpretation, rates, 60.0, trust)
            answered = host.ask(Candidate(name, name), frozen, task, cached_target(target))
            rows.append({"method": name, "outcome": answered.status, "task": task.name, **answered.meters})
    return rows
