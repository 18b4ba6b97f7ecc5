"""What a sandboxed proposal of a campaign costs, phase by phase, and what a start costs cold and from the warm parent.

Programs are drawn from the grammar, as ``lensmith research --researcher programs`` draws its first ones, and go through
what a campaign does with them. Nothing that an earlier campaign left is read; then the same programs are tried again,
which is what behavioural duplicates cost.
"""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stages.base import paths
from stages.contracts.arms import MethodArms
from stages.execution.runs import arms_of
from stages.redteam.red_team import CONTROLS
from stages.research.programs.emitting import source_of
from stages.research.programs.grammar import Uniform, draw
from stages.reward.judging import judge
from stages.sandbox.host import MethodProcess, require_sandbox
from stages.sandbox.starting import forks
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate
from stages.scoring.evaluate import questions, stage_baseline
from stages.scoring.isolated import Isolated, forget_runners
from stages.scoring.settings import Settings, settings
from stages.tasks.storage import list_tasks

__all__ = ["NIGHT_S", "PHASES", "ProposalCost", "ResearchCost", "StartCost", "bench_research"]

PHASES = ("interpret and record", "price and run", "arms", "judge")
NIGHT_S = 8 * 3600
N_STARTS = 5
CONTROL = "gradient_times_input"


@dataclass(frozen=True)
class StartCost:
    """One start of a method's process, medians."""

    wall_s: float
    cpu_s: float
    """Of the process tree, and of the parent while it forks."""


@dataclass(frozen=True)
class ProposalCost:
    """One program on all train and validation tasks."""

    wall_s: dict[str, float]
    """By phase."""
    cpu_s: dict[str, float]
    """By phase, of this process; of a method's own process under ``method``."""

    @property
    def total_cpu_s(self) -> float:
        return sum(self.cpu_s.values())


@dataclass(frozen=True)
class ResearchCost:
    """What ``lensmith bench research`` says."""

    n_tasks: int
    cold: StartCost
    warm: StartCost | None
    """None: nothing is forked on this machine."""
    first: list[ProposalCost]
    again: list[ProposalCost]
    """The same programs when their arms are known."""


def bench_research(n: int = 8, progress: Callable[[str], None] = lambda said: None) -> ResearchCost:
    """Time the phases of ``n`` programs, one process, one after the other.

    Raises:
        UserError: there is no sandbox here, or no tasks were made.
    """
    require_sandbox("programs are source, and source runs nowhere else")
    progress("starts")
    starts: dict[bool, list[StartCost]] = {True: [], False: []}
    _start(cold=False)  # the parent itself is started
    for _ in range(N_STARTS):
        for cold in starts:
            starts[cold].append(_start(cold=cold))
    tasks = [*list_tasks("train"), *list_tasks("validation")]
    chosen = settings()
    made = [Candidate(f"program-{i}", source_of(draw(Uniform(random.Random(f"bench {i}"))))) for i in range(n)]
    rounds: list[list[ProposalCost]] = []
    with tempfile.TemporaryDirectory(prefix="lensmith-bench-") as folder, _nothing_known(Path(folder)):
        _proposal(made[0], tasks[:1], chosen)  # targets, the process that runs programs
        for name in ("first", "again"):
            costs = []
            for i, candidate in enumerate(made):
                progress(f"{name}: program {i + 1}/{n}")
                costs.append(_proposal(candidate, tasks, chosen))
            rounds.append(costs)
    forget_runners()
    return ResearchCost(len(tasks), _median(starts[True]), _median(starts[False]) if forks() else None, *rounds)


def _start(*, cold: bool) -> StartCost:
    parent, began = forks(), time.perf_counter()
    with MethodProcess(CONTROLS / f"{CONTROL}.py", CONTROL, 60, cold=cold) as process:
        wall = time.perf_counter() - began
    return StartCost(wall, process.usage_s + forks() - parent)


def _median(of: list[StartCost]) -> StartCost:
    return StartCost(statistics.median(one.wall_s for one in of), statistics.median(one.cpu_s for one in of))


@contextmanager
def _nothing_known(folder: Path) -> Iterator[None]:
    known = paths.arms_store
    paths.arms_store = lambda: folder
    try:
        yield
    finally:
        paths.arms_store = known


def _proposal(candidate: Candidate, tasks: list[tuple[str, str]], chosen: Settings) -> ProposalCost:
    host, wall, cpu = Isolated(chosen.interpretation), dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began, used = time.perf_counter(), time.process_time()
        yield
        wall[name] += time.perf_counter() - began
        cpu[name] += time.process_time() - used

    with phase(PHASES[0]):
        frozen = host.freeze(candidate, sorted({target for _, target in tasks}), questions(tasks))
    cpu["method"] = sum(one.cpu_s for one in frozen.values())
    for family, target in tasks:
        task, baseline = cached_task(family, target), stage_baseline(f"{family}.{target}")
        with phase(PHASES[1]):
            answered = host.ask(candidate, frozen[target], task, cached_target(target))
        with phase(PHASES[2]):
            arms: MethodArms = arms_of(task, baseline, answered, chosen.execution)
        with phase(PHASES[3]):
            judge(task, baseline, arms, chosen.reward)
    return ProposalCost(wall, cpu)
