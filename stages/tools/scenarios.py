"""What kind of method was found? Size, cost and reach of every method in one table: `lensmith scenarios`.

A method that earns something may have found how the target works, or have kept answers, or only spend more. What tells
these apart: how large I(M) is, what an answer costs, whether it earns on families and kinds of question that it was not
made on, on a sister of the target with the I(M) that it has, and over a black box that is charged as much.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from joblib import delayed

from stages.base import paths
from stages.base.params import names
from stages.base.processes import process_pool
from stages.contracts.journal import CAMPAIGN
from stages.contracts.outcomes import SCORELESS, Outcome
from stages.contracts.research_rows import ScenarioRow
from stages.contracts.reward_rows import CONTROL_METHODS, TEST, TEST_PER_TASK, StatementRow, TaskRow
from stages.contracts.target import Target
from stages.errors import InfraError, MethodError
from stages.execution.results import load_arms
from stages.execution.runs import arms_of, baseline_of
from stages.interpretation.artifact import pack
from stages.interpretation.free_phase import interpret
from stages.interpretation.loading import built_in
from stages.interpretation.methods import METHODS
from stages.metering.op_table import UnknownOpError, count_flops
from stages.reward.against import judged_arms, paired
from stages.reward.inference import combined
from stages.reward.judging import Judged, judge, leaderboard_row, task_row
from stages.reward.statements import BOTH, Effect, on_these_tasks, stated
from stages.scoring.cached import cached_task, jobs
from stages.scoring.candidate import Candidate, Frozen, Host
from stages.scoring.evaluate import Evaluation, TaskName, evaluate, questions, stage_baseline
from stages.scoring.in_process import InProcess
from stages.scoring.isolated import Isolated
from stages.scoring.judge import judge_arms
from stages.scoring.proposals import contenders
from stages.scoring.score import about
from stages.scoring.settings import Settings, settings
from stages.scoring.stage import stage_frozen
from stages.scoring.table import ByTask
from stages.targets.sister import sister_of
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.secret import read_secret
from stages.tasks.storage import Task, list_tasks
from stages.tools.people import at_equal_charge, black_boxes

__all__ = ["DEFAULT_TARGETS", "scenarios"]

DEFAULT_TARGETS = ("digits_mlp",)
"""Its sister is trained in seconds, and all kinds of question are asked about it."""
ORACLE = "oracle"
Progress = Callable[[str], None]


class Home(NamedTuple):
    """A method on the targets themselves."""

    frozen: dict[str, Frozen]
    """I(M) by target."""
    judged: ByTask
    """Empty where it has no score."""
    outcome: Outcome
    reason: str


class Own(NamedTuple):
    """I(M) of a sister."""

    frozen: Frozen | None
    """None where interpret failed."""
    flops: float | None
    """Of the free phase; None where they cannot be counted."""


class OnSister(NamedTuple):
    """One method on one task about a sister."""

    method: str
    moved: Judged
    """With the I(M) of the target itself."""
    own: Judged
    """With one of the sister."""


def scenarios(
    files: Sequence[Candidate] = (),
    targets: Sequence[str] = DEFAULT_TARGETS,
    *,
    timeout_s: float = 120.0,
    trust: bool = False,
    progress: Progress = print,
) -> tuple[ScenarioRow, ...]:
    """One row for every built-in method, the best that the campaign found, and every file; the best on train and
    validation tasks first.

    Args:
        files: methods of people.
        targets: that the questions are about.
        timeout_s: wall limit of one call of a method from a file.
        trust: run files without the sandbox.

    Raises:
        UserError: the graph has not been run, no task is about a target, or it has no sister.
        InfraError: the machinery failed on a task.
    """
    chosen = settings()
    paths.require(paths.execution_dir("baseline"), "baseline")
    splits = about(targets, {split: list_tasks(split) for split in ("train", "validation")})
    tasks = [task for of in splits.values() for task in of]
    found = [one for one in contenders() if one.name not in METHODS] if CAMPAIGN.path().is_file() else []
    known = [name for name in names("reward", "methods") if name not in CONTROL_METHODS]
    every = [*(Candidate(name, built_in(name)) for name in known), *found, *files]
    for target in targets:
        progress(f"the sister of {target}")
        sister_of(target)
    home = {}
    for number, one in enumerate(every, 1):
        progress(f"{number} of {len(every)}: {one.name}")
        home[one.name] = _at_home(one, one.name in known, tasks, chosen, timeout_s, trust)
    left = [one for one in every if home[one.name].judged]
    own = {}
    for one in left:
        progress(f"the sister interpreted by {one.name}")
        own[one.name] = {target: _own(one, target, chosen, tasks, timeout_s, trust) for target in targets}
    progress(f"{len(left)} methods on {len(tasks)} tasks about sisters")
    there = process_pool(jobs())(
        delayed(_on_task)(
            [(one, home[one.name].frozen[task[1]], own[one.name][task[1]].frozen) for one in left],
            task, chosen, timeout_s, trust,
        )
        for task in tasks
    )  # fmt: skip
    on_sisters = [row for of_task in there for row in of_task]
    judged = {one.name: home[one.name].judged for one in left}
    over = {row.method: row for row in at_equal_charge(judged, black_boxes(tasks, progress)) if row.scope == "tasks"}
    oracle = leaderboard_row(ORACLE, BOTH, [_oracle(task, chosen) for task in _loaded(tasks)]).performance_gain
    origin = dict.fromkeys(known, "built in") | {one.name: "campaign" for one in found}
    rows = []
    for one in every:
        of = home[one.name]
        facts: dict[str, object] = {"method": one.name, "origin": origin.get(one.name, "file"), "oracle_gain": oracle}
        facts |= {"targets": tuple(targets), "outcome": of.outcome, "reason": of.reason}
        if of.judged:
            facts |= _sizes(list(of.frozen.values()), list(own[one.name].values()), of.judged)
            facts |= _rewards(one.name, of.judged, splits, targets) | _gain(of.judged)
            facts |= _carried(one.name, [row for row in on_sisters if row.method == one.name])
            facts |= _interval("over_black_box", over[one.name])
        else:
            facts |= _nothing()
        rows.append(ScenarioRow.model_validate(facts).rounded())
    return tuple(sorted(rows, key=lambda row: (row.gain is None, -(row.gain or 0.0), row.method)))


def _at_home(
    one: Candidate, staged: bool, tasks: Sequence[TaskName], chosen: Settings, timeout_s: float, trust: bool
) -> Home:
    """A method on the targets themselves.

    Args:
        staged: its I(M) and its arms were computed by the graph.
    """
    if staged:
        frozen = stage_frozen(one.name, sorted({target for _, target in tasks}))
        judged = {task.name: judged_arms(task, one.name, chosen.reward) for task in _loaded(tasks)}
    else:
        done: Evaluation[None] = evaluate(
            one, tasks, _host(one, chosen, timeout_s, trust), chosen.execution, placebo=False
        )
        if not done.scored or done.error is not None:
            return Home({}, {}, done.outcome, done.reason)
        frozen = dict(done.frozen)
        judged = {of.task.name: of for of in judge_arms(done.arms, tasks, chosen.reward)}
    arms = [of.arms for of in judged.values()]
    failed = next((of for of in arms if of.status == "failed"), None)
    if failed is not None:
        return Home(frozen, judged, "failed", failed.reason)
    return Home(frozen, judged, "declined" if {of.status for of in arms} == {"declined"} else "ok", "")


def _host(one: Candidate, chosen: Settings, timeout_s: float, trust: bool, *sisters: Target) -> Host:
    if one.reviewed:
        return InProcess(chosen.interpretation)
    return Isolated(chosen.interpretation, timeout_s, trust, sisters)


def _loaded(tasks: Sequence[TaskName]) -> list[Task]:
    return [cached_task(*task) for task in tasks]


@lru_cache(maxsize=4)
def _sister(target: str) -> Target:
    return sister_of(target)


def _own(
    one: Candidate, target: str, chosen: Settings, tasks: Sequence[TaskName], timeout_s: float, trust: bool
) -> Own:
    """I(M) of the sister, with the dictionaries of the target: none is trained on a sister."""
    config, sister = chosen.interpretation, _sister(target)
    try:
        if not one.reviewed:
            host = Isolated(config, timeout_s, trust, (sister,))
            return Own(
                host.freeze(one, [target], questions([task for task in tasks if task[1] == target]))[target], None
            )
        count = count_flops()
        try:
            with count:
                made = interpret(one.method(), one.name, sister, config)
            flops: float | None = float(count.flops)
        except MethodError as error:
            if not isinstance(error.__cause__, UnknownOpError):  # free code may use what has no price
                raise
            made, flops = interpret(one.method(), one.name, sister, config), None
        return Own(Frozen(*pack(made, one.name, f"interpret on the sister of {target}", config.max_bytes)), flops)
    except MethodError:
        return Own(None, None)


def _on_task(
    methods: Sequence[tuple[Candidate, Frozen, Frozen | None]],
    name: TaskName,
    chosen: Settings,
    timeout_s: float,
    trust: bool,
) -> list[OnSister]:
    """All methods on one family about the sister; empty where it cannot be posed there.

    Args:
        methods: each with the I(M) of the target and that of the sister.
    """
    torch.set_num_threads(1)
    known, sister = cached_task(*name), _sister(name[1])
    try:
        made = make(known.family, sister, known.split, known.instances.n, 0, "sister", read_secret())
    except (RuntimeError, ValueError):
        return []
    if float(made.truth.values.std()) < 1e-6:
        return []  # its truth does not vary
    task = Task(known.family, name[1], known.split, made.instances.public(), made.truth)
    baseline = baseline_of(task, sister, chosen.execution)
    rows = []
    for one, *each in methods:
        host, judged = _host(one, chosen, timeout_s, trust, sister), []
        for of in each:
            if of is None:
                continue
            answered = host.ask(one, of, task, sister)
            if answered.status == "infra":
                raise InfraError(f"{one.name} on {task.name} of the sister: {answered.reason}; run it again")
            if answered.status in SCORELESS:
                continue
            arms = arms_of(task, baseline, answered, chosen.execution, placebo=False)
            judged.append(judge(task, baseline, arms, chosen.reward))
        if len(judged) == 2:
            rows.append(OnSister(one.name, *judged))
    return rows


def _oracle(task: Task, chosen: Settings) -> Judged:
    arms = load_arms(paths.execution_dir("baseline") / ORACLE, task.name)
    return judge(task, stage_baseline(task.name), arms, chosen.reward)


def _sizes(frozen: Sequence[Frozen], own: Sequence[Own], judged: ByTask) -> dict[str, object]:
    answered = [one for one in judged.values() if one.arms.status == "ok"]
    costs = [one.arms.target_flops + one.arms.own_flops for one in answered]
    tight = [next(row for row in one.by_budget if row.budget == "tight").flops_budget for one in answered]
    shares = [cost / budget for cost, budget in zip(costs, tight, strict=True)]
    spent = [one.flops for one in own]
    return {
        "bytes": sum(one.n_bytes for one in frozen),
        "interpret_flops": None if None in spent else float(sum(flops or 0.0 for flops in spent)),
        "answer_flops": sum(costs) / len(costs) if costs else None,
        "answer_share": sum(shares) / len(shares) if shares else None,
    }


def _gain(judged: ByTask) -> dict[str, object]:
    found = combined([one.estimate(one.assisted_score - one.baseline_score) for one in judged.values()])
    low, high = found.interval()
    return {"gain": found.value, "gain_low": low, "gain_high": high}


def _rewards(
    method: str, judged: ByTask, splits: dict[str, list[TaskName]], targets: Sequence[str]
) -> dict[str, object]:
    """Reward where the method may have been chosen, and where it was not."""
    rows = [task_row(method, one) for one in judged.values()]
    asked = {family(name).query_kind for name, _ in list_tasks("train")}
    groups = {split: [row for row in rows if row.split == split] for split in splits}
    groups["new_kinds"] = [row for row in groups["validation"] if row.kind not in asked]
    groups["sealed"] = []
    if TEST_PER_TASK.path().is_file() and all(row.status != "void" for row in TEST.load()):
        groups["sealed"] = [row for row in TEST_PER_TASK.load() if row.method == method and row.target in targets]
    found: dict[str, object] = {}
    for name, of in groups.items():
        found |= {f"n_{name}": len(of)} | _interval(name, _over(of, name))
    return found


def _carried(method: str, mine: Sequence[OnSister]) -> dict[str, object]:
    effects: list[Effect] = [paired(method, one.moved, "own", one.own) for one in mine]
    difference = next((row for row in stated(effects, BOTH) if row.scope == "tasks"), None)
    moved, own = ([task_row(method, getattr(one, which)) for one in mine] for which in ("moved", "own"))
    found: dict[str, object] = {"n_sister": len(mine)}
    for name, row in (("sister", _over(moved, BOTH)), ("own", _over(own, BOTH)), ("carried", difference)):
        found |= _interval(name, row)
    return found


def _over(rows: Sequence[TaskRow], split: str) -> StatementRow | None:
    return on_these_tasks(rows, split) if rows else None


def _interval(name: str, row: StatementRow | None) -> dict[str, object]:
    if row is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: row.value, f"{name}_low": row.low, f"{name}_high": row.high}


def _nothing() -> dict[str, object]:
    """The numbers of a method that has none."""
    found: dict[str, object] = {"bytes": 0, "interpret_flops": None, "answer_flops": None, "answer_share": None}
    for name in ScenarioRow.ESTIMATES:
        found |= _interval(name, None)
    return found | {f"n_{name}": 0 for name in ("train", "validation", "new_kinds", "sealed", "sister")}
