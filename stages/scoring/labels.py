"""Sample complexity: what a method is worth to an agent that has 10, 20, 40 or 80 labelled instances.

Every arm runs anew for each number; baselines stay in the store of arms, so cut short and begun again it goes on. The
placebo is left out. A task gives at most 40% of its instances as labels, so small tasks stay at that.
With fewer labels more instances are evaluated, which makes an interval narrower, not the reward
larger.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial

from joblib import delayed

from stages.base.processes import process_pool
from stages.contracts.arms import Baseline
from stages.contracts.research_rows import LabelsRow
from stages.errors import InfraError, UserError
from stages.execution.runs import baseline_of
from stages.execution.settings import ExecutorConfig
from stages.interpretation.loading import built_in
from stages.reward.inference import combined
from stages.reward.judging import Judged, judge
from stages.scoring.cached import cached_target, cached_task, jobs
from stages.scoring.candidate import Candidate
from stages.scoring.evaluate import Evaluation, evaluate
from stages.scoring.in_process import InProcess
from stages.scoring.settings import settings
from stages.scoring.stage import stage_frozen
from stages.tasks.storage import Split, list_tasks

__all__ = ["labels_rows", "sample_complexity"]

FEWEST, MOST_SHARE = 10, 0.4
"""What the executor accepts: see ``n_calibration``."""
Progress = Callable[[str], None]


@cache
def _baseline(name: str, config: ExecutorConfig) -> Baseline:
    family, _, target = name.partition(".")
    return baseline_of(cached_task(family, target), cached_target(target), config)


def sample_complexity(
    methods: Sequence[str], numbers: Sequence[int], split: Split = "validation", progress: Progress = print
) -> tuple[LabelsRow, ...]:
    """Rows of built-in methods at each number of labels, the fewest labels first.

    Args:
        methods: names of built-in methods whose I(M) has been made.
        numbers: of labels.
        split: train or validation.

    Raises:
        UserError: an unknown method or split, a number that the executor or the largest task does not allow, or no
            task in the split.
        InfraError: the machinery failed on a task.
    """
    if split == "test":
        raise UserError("the test split is opened by the sealed test alone: use train or validation")
    tasks = list_tasks(split)
    if not tasks:
        raise UserError(f"there are no {split} tasks: make them with `lensmith run`")
    most = max(int(MOST_SHARE * cached_task(*task).instances.n) for task in tasks)
    wrong = [n for n in numbers if not FEWEST <= n <= most]
    if wrong or not numbers:
        raise UserError(
            f"{wrong[0] if wrong else 'no number'} of labels cannot be had: give numbers from {FEWEST} to {most}"
            f" ({MOST_SHARE:.0%} of the largest {split} task)"
        )
    chosen = settings()
    targets = sorted({target for _, target in tasks})
    frozen = {name: stage_frozen(name, targets) for name in methods}
    rows = []
    for n in sorted(set(numbers)):
        config = chosen.execution.model_copy(update={"n_calibration": n})
        baseline = partial(_baseline, config=config)
        with process_pool(jobs()) as pool:
            progress(f"{n} labels: the agent alone on {len(tasks)} tasks")
            pool(delayed(_baseline)(f"{family}.{target}", config) for family, target in tasks)
            for name in methods:
                progress(f"{n} labels: {name}")
                done: Evaluation[None] = evaluate(
                    Candidate(name, built_in(name)), tasks, InProcess(), config,
                    pool=pool, frozen=frozen[name], baseline=baseline, placebo=False,
                )  # fmt: skip
                if not done.scored:
                    raise InfraError(f"{name} with {n} labels: {done.reason}; run it again")
                judged = [
                    judge(cached_task(*task), baseline(arms), done.arms[arms], chosen.reward)
                    for task in tasks
                    for arms in [f"{task[0]}.{task[1]}"]
                ]
                rows.append(labels_rows(name, split, n, judged))
    return tuple(rows)


def labels_rows(method: str, split: str, n: int, judged: Sequence[Judged]) -> LabelsRow:
    """One row: means over tasks, with the error that instances and seeds leave."""
    ends: dict[str, float] = {}
    for name, of in (("reward", "reward"), ("baseline", "baseline_score"), ("assisted", "assisted_score")):
        found = combined([one.estimate(getattr(one, of)) for one in judged])
        low, high = found.interval()
        ends |= {name: found.value, f"{name}_low": low, f"{name}_high": high}
    n_seeds = len({result.seed for result in judged[0].arms.assisted})
    return LabelsRow(method=method, split=split, labels=n, n_tasks=len(judged), n_seeds=n_seeds, **ends).rounded()
