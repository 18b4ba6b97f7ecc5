"""``lensmith score``: a method of the user's own, on train and validation tasks, next to the built-in ones.

A file's code runs in a process of its own, with a time limit, and never sees an instance: its answers are recorded on
shapes, priced, and run here. Target, labels and scoring stay here.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stages import tracking
from stages.base import paths
from stages.base.processes import process_pool
from stages.base.text import safe_name
from stages.contracts.measurement_rows import FreshRow, NullRow
from stages.contracts.method import Method
from stages.contracts.method_file import method_name
from stages.contracts.reward_rows import LEADERBOARD, STATEMENTS, TRAIN, LeaderboardRow, StatementRow
from stages.contracts.score_result import ScoreResult
from stages.errors import InfraError, MethodError, UserError
from stages.interpretation.methods import METHODS
from stages.reward.against import over_built_in
from stages.reward.judging import Judged, leaderboard_row, task_row
from stages.reward.statements import BOTH, MAX_UNSEEN, adjusted, statements
from stages.scoring.cached import cached_task, jobs
from stages.scoring.candidate import Candidate, Host, Source
from stages.scoring.evaluate import Evaluation, evaluate, questions
from stages.scoring.fresh import fresh_gap, n_fresh
from stages.scoring.in_process import InProcess
from stages.scoring.isolated import Isolated
from stages.scoring.judge import judge_arms
from stages.scoring.meters import meters_of
from stages.scoring.null import null_rows
from stages.scoring.settings import settings
from stages.tasks.storage import list_tasks

__all__ = ["about", "built_in_rows", "candidate_of", "score_method", "verdict_text"]

Progress = Callable[[str], None]


def score_method(
    method: Path | str | Method | type[Method],
    *,
    timeout_s: float = 120.0,
    trust: bool = False,
    only: Sequence[tuple[str, str]] | None = None,
    targets: Sequence[str] | None = None,
    fresh: bool = True,
    null: bool = False,
    rival: str | None = None,
    progress: Progress = print,
) -> ScoreResult:
    """Score a method beside the built-in ones.

    Args:
        method: a file, which runs in the sandbox; or a class or instance of your own session, which runs in this
            session with your rights.
        timeout_s: wall limit of one call of a method from a file.
        trust: run a file without the sandbox, in a process of its own.
        only: (family, target) of the tasks; None: all of train and validation.
        targets: score on the tasks about these targets alone, without the built-in methods, whose rows are over all.
        fresh: compare with instances that are drawn now, from a secret seed.
        rival: a built-in method it is compared with, task by task.
        null: score it on untrained twins of the targets as well.
        progress: told what is being done.

    Raises:
        UserError: the graph has not been run, or there is no sandbox and no ``trust``.
        MethodError: the file does not import, or interpret fails. (Failing to answer is a result, not an error.)
        InfraError: no method starts here, or a worker process was killed. (On a single task it is a result.)
    """
    candidate = candidate_of(method)
    chosen = settings()
    splits = {
        split: [task for task in list_tasks(split) if only is None or task in only] for split in ("train", "validation")
    }
    if targets is not None:
        splits = about(targets, splits)
    tasks = [*splits["train"], *splits["validation"]]
    paths.require(paths.execution_dir("baseline"), "baseline")
    host: Host = InProcess(chosen.interpretation)
    if not candidate.reviewed:
        host = Isolated(chosen.interpretation, timeout_s, trust)
    name = candidate.name if candidate.name not in METHODS else f"{candidate.name}_of_yours"
    progress("interpret, and record the answers" if not candidate.reviewed else "interpret")
    try:
        asked = None if candidate.reviewed else questions(tasks, n_fresh if fresh else None)
        frozen = host.freeze(candidate, sorted({target for _, target in tasks}), asked)
    except OSError as error:
        raise InfraError(f"no process for the method could be made ({error}): run it again") from error
    progress(f"answers, assisted and placebo arms on {len(tasks)} tasks")
    with process_pool(jobs()) as pool:
        done: Evaluation[FreshRow] = evaluate(
            candidate, tasks, host, chosen.execution, pool=pool, frozen=frozen, extra=fresh_gap if fresh else None
        )
        twins: tuple[NullRow, ...] = ()
        if null and done.scored:
            progress("its null: the same questions about untrained twins of the targets")
            twins = null_rows([Candidate(name, candidate.what)], host, splits, chosen, pool)
    if not done.results:
        raise InfraError(f"{done.reason}: run it again")
    judged: dict[str, list[Judged]] = {}
    if done.scored:
        judged = {split: judge_arms(done.arms, members, chosen.reward) for split, members in splits.items() if members}
    compared: tuple[StatementRow, ...] = ()
    if rival is not None and judged:
        everywhere = BOTH if len(judged) > 1 else next(iter(judged))
        compared = over_built_in(name, [j for of in judged.values() for j in of], rival, everywhere)
    per_task = [task_row(name, j) for split in judged for j in judged[split]]
    parts = [(split, [row for row in per_task if row.split == split]) for split in judged]
    if len(parts) > 1:
        parts.append((BOTH, per_task))
    said = _beside_built_in([row for split, of in parts for row in statements(of, split)], targets is not None)
    here = {(row.split, row.method): row for row in said if row.scope == "tasks"}
    mine = [leaderboard_row(name, split, judged[split], here[split, name]) for split in judged]
    rows = [*mine, *(built_in_rows(here) if targets is None else ())]
    with tracking.stage_run(f"score {name}", {"method": name}) as log:
        log.tag({"lensmith.kind": "score", "outcome": done.outcome})
        log({f"{row.split}/reward": row.reward_mean for row in mine})
    rows.sort(key=lambda row: (row.split, -row.reward_mean, row.method))
    meters = [meters_of(cached_task(*task), one.answered) for task, one in zip(tasks, done.results, strict=True)]
    of_mine = [row for row in said if mine and (row.method, row.split) == (name, mine[-1].split)]
    text = f"{name} is {done.outcome}, which is no score: {done.reason}."
    if done.outcome != "void":
        text += " That is not the method's fault: run it again."
    return ScoreResult(
        method=name,
        outcome=done.outcome,
        reason=done.reason,
        layer=done.layer,
        verdict=mine[-1].verdict if mine else done.outcome,
        verdict_text=verdict_text(of_mine, mine[-1], judged[mine[-1].split]) if mine else text,
        rows=tuple(rows),
        statements=said,
        against=compared,
        per_task=tuple(per_task),
        fresh_gap=tuple(one.extra for one in done.results if one.extra is not None),
        null=twins,
        meters=tuple(meters),
        interpret_bytes=done.n_bytes,
        interpret_cpu_s=round(sum(one.cpu_s for one in frozen.values()), 3),
    )


def candidate_of(method: Path | str | Method | type[Method]) -> Candidate:
    """What a user gives as a method, as a candidate.

    Raises:
        UserError: it is no file and no method.
        MethodError: its class cannot be constructed.
    """
    if isinstance(method, type):
        if not issubclass(method, Method):
            raise UserError(f"{method.__name__} is no subclass of Method: `from lensmith import Method`")
        name = method.__name__
        try:
            method = method()
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            remedy = "A method must be constructible without arguments."
            raise MethodError(name, "construction", cause, remedy) from error
    if isinstance(method, Method):
        return Candidate(method_name(method), method)
    path = Path(method)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a Python file with one subclass of Method")
    return Candidate(safe_name(path.stem), Source.of(path))


def about(targets: Sequence[str], splits: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, list[tuple[str, str]]]:
    """The tasks about these targets.

    Raises:
        UserError: no task is about one of them; says which there are.
    """
    known = sorted({target for tasks in splits.values() for _, target in tasks})
    unknown = [name for name in targets if name not in known]
    if unknown:
        raise UserError(f"no train or validation task is about the target {unknown[0]!r}: take {', '.join(known)}")
    return {split: [task for task in tasks if task[1] in targets] for split, tasks in splits.items()}


def built_in_rows(here: Mapping[tuple[str, str], StatementRow]) -> list[LeaderboardRow]:
    """Rows of the built-in methods on both splits, with the verdicts of this table; none where they have not been
    scored."""
    rows = [row for file in (TRAIN, LEADERBOARD) if file.path().is_file() for row in file.load()]
    verdicts = {key: row.verdict for key, row in here.items()}
    return [row.model_copy(update={"verdict": verdicts.get((row.split, row.method), row.verdict)}) for row in rows]


def _beside_built_in(mine: Sequence[StatementRow], alone: bool) -> tuple[StatementRow, ...]:
    """What is said of the method and of the built-in ones, corrected as one table.

    A table from which a reader takes the best is corrected for all its methods, the reader's own included.
    """
    others = () if alone or not STATEMENTS.path().is_file() else STATEMENTS.load()
    return adjusted([*mine, *others])


def verdict_text(said: Sequence[StatementRow], row: LeaderboardRow, judged: Sequence[Judged]) -> str:
    """The three sentences about the validation tasks, and what a reader should know beside them.

    Args:
        said: what may be said of the method, on this split.
        row: its row.
        judged: its tasks.
    """
    text = " ".join(f"{one.sentence[0].upper()}{one.sentence[1:]}." for one in said)
    text += f" The noise floor is {row.noise_floor:.3f}, n = {row.n_tasks} tasks x {row.n_seeds} seeds."
    as_well = row.placebo_reward >= row.reward_mean - row.noise_floor
    text += (
        f" Its placebo, the same answers in shuffled order, {'did as well' if as_well else 'did not do as well'}"
        f" ({row.placebo_reward:+.3f} [{row.placebo_low:+.3f}, {row.placebo_high:+.3f}])."
    )
    if as_well and row.verdict == "better":
        text += " So what helped is not what the answers say."
    if row.unseen_share > 0:
        text += (
            f" It is adaptive, so it is charged by CPU time, and up to {row.unseen_share:.0%} of a tight budget could"
            " go unseen" + ("; it is not called better for that." if row.unseen_share > MAX_UNSEEN else ".")
        )
    failed = [f"{j.task.name} ({j.arms.reason})" for j in judged if j.arms.status == "failed"]
    if failed:
        text += f" It failed on {'; '.join(failed)}, and pays for that in full."
    declined = [j.task.name for j in judged if j.arms.status == "declined"]
    if declined:
        text += f" It declined {', '.join(declined)}."
    return text
