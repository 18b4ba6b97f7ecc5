"""`lensmith bench truth`: how long a family's truth takes, beside a loop that asks one question at a time.

The loop is the family's own code on one instance after the other, with as few inputs a pass as the family can be told:
one, where it passes inputs on in pieces. Where it does not, a pass holds what one instance asks together, so the loop
is faster than one forward pass for each question would be; the table says how many inputs a pass had. Families about
variants are left out: their work is in making the variants, and a planted truth takes no time at all.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from stages.base.params import load
from stages.benchmarks.dictionaries import dense_peak
from stages.contracts.target import Target
from stages.contracts.task import Instances, TaskFamily
from stages.metering.op_table import count_flops
from stages.targets.storage import load_target
from stages.tasks.black_box import CHUNK
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import pool_of, stream
from stages.tasks.secret import read_secret
from stages.tasks.stage import Config, settings_of

__all__ = ["TruthTime", "bench_truth", "median_ratio"]

N_TOGETHER, N_ALONE = 60, 3
MOST_TOGETHER = 0.3
"""Of the stage's instances: enough for full batches."""


@dataclass(frozen=True)
class TruthTime:
    """One family on one target; times are CPU milliseconds per instance on one thread."""

    family: str
    target: str
    n: int
    ms: float
    loop_ms: float
    inputs_per_pass: float
    loop_inputs_per_pass: float
    flops: float
    """Per instance."""
    bound_ms: float
    """What these FLOPs take at the speed of a large dense product here."""

    @property
    def ratio(self) -> float:
        return self.loop_ms / self.ms

    @property
    def share_of_peak(self) -> float:
        return self.bound_ms / self.ms


def bench_truth(
    progress: Callable[[str], None] = lambda said: None, families: Sequence[str] | None = None
) -> list[TruthTime]:
    """Families, by default all, on their targets; variants and planted truths left out."""
    config, key = load("tasks", Config), read_secret()
    torch.set_num_threads(1)
    peak, rows = dense_peak(), []
    for name in families or FAMILIES.names():
        made, settings = family(name), settings_of(config, name)
        for target_name in settings.targets:
            progress(f"{name} on {target_name}")
            target = pool_of(load_target(target_name), settings.split, key)
            of_stage = settings.n_on(made, target.spec, config.n_instances)
            n = max(N_ALONE, min(N_TOGETHER, round(MOST_TOGETHER * of_stage)))
            instances = made.generate(target, stream(key, "bench", name, target_name), n)
            if not instances.variants:
                row = _timed(made, target, instances, peak)
                rows += [row] if row.flops else []
    return rows


def median_ratio(rows: list[TruthTime]) -> float:
    """Of rows whose loop has one input a pass."""
    rows = [row for row in rows if row.loop_inputs_per_pass < 1.5]
    return statistics.median(row.ratio for row in rows)


def _timed(made: TaskFamily, target: Target, instances: Instances, peak: float) -> TruthTime:
    def truth(of: Instances) -> float:
        """CPU seconds."""
        started = time.process_time()
        made.ground_truth(target, of, torch.Generator().manual_seed(0))
        return time.process_time() - started

    n = instances.n
    with count_flops() as counted, _passes(target) as together:
        truth(instances)
    seconds = min(truth(instances) for _ in range(2))
    alone = [instances.select(torch.tensor([i])) for i in range(min(N_ALONE, n))]
    with _one_at_a_time(), _passes(target) as single:
        loop = sum(truth(one) for one in alone) / len(alone)
    flops = counted.flops / n
    return TruthTime(
        family=made.name,
        target=target.name,
        n=n,
        ms=1e3 * seconds / n,
        loop_ms=1e3 * loop,
        inputs_per_pass=statistics.mean(together or [0]),
        loop_inputs_per_pass=statistics.mean(single or [0]),
        flops=flops,
        bound_ms=1e3 * flops / peak,
    )


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Every module of the tasks that has the number of inputs a pass has it set to 1."""
    ours = [module for name, module in sys.modules.items() if name.startswith("stages.tasks.")]
    there: list[Any] = [module for module in ours if hasattr(module, "CHUNK")]
    for module in there:
        module.CHUNK = 1
    try:
        yield
    finally:
        for module in there:
            module.CHUNK = CHUNK


@contextmanager
def _passes(target: Target) -> Iterator[list[int]]:
    """Inputs of every forward pass."""
    sizes: list[int] = []
    handle = target.model.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    try:
        yield sizes
    finally:
        handle.remove()
