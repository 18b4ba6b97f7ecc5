"""A method in the hands of another M2: one that chooses by a policy (a script, a language model) instead of the rule.

The tool-to-agent gap (AuditBench): a tool can be worth something to who knows how to use it, and nothing to the agent
that has it. So every task has two rewards side by side, the rule's and the agent's, and says how often the method's
answer was offered, promised something, and was bought. The placebo arm is the same agent with the answers dealt to
other rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from stages.base import paths
from stages.base.registry import classes_of
from stages.base.users_code import given_by_the_user, users_module
from stages.contracts.arms import ArmResult
from stages.contracts.outcomes import SCORELESS
from stages.contracts.record import Ends, Record
from stages.contracts.reward_rows import StatementRow, TaskRow
from stages.errors import InfraError, UserError
from stages.execution.policies import AlwaysUse, Menu, Policy
from stages.execution.runs import arms_by, arms_of
from stages.reward.judging import Judged, judge, task_row
from stages.reward.statements import statements
from stages.scoring.cached import cached_target, cached_task
from stages.scoring.candidate import Candidate, Frozen, Host
from stages.scoring.evaluate import TaskName, questions, stage_baseline
from stages.scoring.isolated import Isolated
from stages.scoring.score import about, candidate_of
from stages.scoring.settings import Settings, settings
from stages.tasks.storage import list_tasks

__all__ = ["AgentRow", "AgentScore", "Watched", "policy_named", "score_by", "score_under"]

WORTH = 0.02
"""An answer promises something where its best offer is so much above the best without it."""


class AgentRow(Record):
    """One task: what a method is worth to the rule and to another M2."""

    ESTIMATES: ClassVar[Ends] = {name: (name, f"{name}_low", f"{name}_high") for name in ("rule", "agent", "placebo")}

    task: str
    """Family and target."""
    split: str
    """Of the family."""
    kind: str
    """Of question."""
    status: str
    """Of the method's answer."""
    rule: float
    """Reward with the executor's own rule."""
    rule_low: float
    """Lower end of its 95% interval."""
    rule_high: float
    """Upper end of its 95% interval."""
    agent: float
    """Reward with this M2 in both arms."""
    agent_low: float
    """Lower end of its 95% interval."""
    agent_high: float
    """Upper end of its 95% interval."""
    placebo: float
    """Reward of the same M2 with the answers in shuffled order."""
    placebo_low: float
    """Lower end of its 95% interval."""
    placebo_high: float
    """Upper end of its 95% interval."""
    noise_floor: float
    """See the leaderboard."""
    offered: float
    """Share of choices (seeds and budgets) in which the answer could be paid for."""
    promised: float
    """Share in which it promised at least .02 more score than anything without it."""
    used: float
    """Share in which this M2 bought it."""
    used_by_rule: float
    """Share in which the rule bought it."""


class AgentScore(Record):
    """One method with another M2, on all tasks."""

    method: str
    """Name of the method."""
    executor: str
    """Name of the M2."""
    rows: tuple[AgentRow, ...]
    """One a task."""
    per_task: tuple[TaskRow, ...]
    """With this M2."""
    statements: tuple[StatementRow, ...]
    """What may be said of the method with this M2."""


class Watched:
    """A policy, and the menus it was given."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy = policy.name, policy
        self.menus: list[tuple[Menu, dict[str, int]]] = []

    def choose(self, menu: Menu) -> dict[str, int]:
        choice = dict(self._policy.choose(menu))
        self.menus.append((menu, choice))
        return choice


def policy_named(name: str) -> Policy:
    """A policy by name, or of a file of the user's own: the one class in it with a method ``choose``.

    Raises:
        UserError: no such policy; or the file does not import, or has none or several; names file and line.
    """
    if name == AlwaysUse.name:
        return AlwaysUse()
    path = Path(name)
    if path.suffix != ".py":
        raise UserError(
            f"no M2 is called {name!r}: use rule, always, llm, react, or a FILE.py whose class has choose(menu)"
        )
    if not path.is_file():
        raise UserError(f"{path} is not a file: give one with a class that has a method choose(menu)")
    found = classes_of(users_module(path), lambda cls: callable(getattr(cls, "choose", None)))
    if len(found) != 1:
        listed = ", ".join(cls.__name__ for cls in found) or "none"
        raise UserError(f"{path} defines {listed}: give a file with one class that has a method choose(menu)")
    with given_by_the_user(f"{found[0].__name__}() fails"):
        policy: Policy = found[0]()
    policy.name = getattr(policy, "name", path.stem)
    return policy


def score_by(
    policy: Policy,
    method: Path,
    *,
    targets: Sequence[str] | None = None,
    timeout_s: float = 120.0,
    trust: bool = False,
    progress: Callable[[str], None] = print,
) -> AgentScore:
    """Score a method file with another M2, on the train and validation tasks.

    Args:
        targets: on the tasks about these alone.
        timeout_s: wall limit of one call of the method.
        trust: run the file without the sandbox.

    Raises:
        UserError: the graph has not been run, there is no such target, or no sandbox.
        MethodError: the file does not import, or interpret fails.
        InfraError: a task has no score; says why.
        ValueError: the policy chose what is not on the menu.
    """
    paths.require(paths.execution_dir("baseline"), "baseline")
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    tasks = [task for of in (splits if targets is None else about(targets, splits)).values() for task in of]
    chosen, candidate = settings(), candidate_of(method)
    host = Isolated(chosen.interpretation, timeout_s, trust)
    progress("interpret, and record the answers")
    frozen = host.freeze(candidate, sorted({target for _, target in tasks}), questions(tasks))
    return score_under(policy, candidate, frozen, tasks, host, chosen, progress)


def score_under(
    policy: Policy,
    candidate: Candidate,
    frozen: Mapping[str, Frozen],
    tasks: Sequence[TaskName],
    host: Host,
    chosen: Settings,
    progress: Callable[[str], None] = print,
) -> AgentScore:
    """Score a method with an M2 that chooses by ``policy``, task by task.

    Raises:
        InfraError: a task has no score; says why.
        ValueError: the policy chose what is not on the menu.
    """
    rows, of_agent = [], []
    for number, (family, target) in enumerate(tasks, 1):
        task, model = cached_task(family, target), cached_target(target)
        answered = host.ask(candidate, frozen[target], task, model)
        if answered.status in SCORELESS:
            raise InfraError(f"no score: {task.name}: {answered.reason}")
        baseline, watched = stage_baseline(task.name), Watched(policy)
        by_rule = judge(task, baseline, arms_of(task, baseline, answered, chosen.execution), chosen.reward)
        own, arms = arms_by(watched, task, baseline, answered, chosen.execution)
        by_agent = judge(task, own, arms, chosen.reward)
        rows.append(_row(by_rule, by_agent, watched))
        of_agent.append(task_row(candidate.name, by_agent))
        progress(f"{number} of {len(tasks)} tasks: {task.name}: rule {rows[-1].rule:+.3f}, agent {rows[-1].agent:+.3f}")
    said = [row for split in dict.fromkeys(row.split for row in of_agent) for row in _said(of_agent, split)]
    return AgentScore(
        method=candidate.name,
        executor=policy.name,
        rows=tuple(rows),
        per_task=tuple(of_agent),
        statements=tuple(said),
    )


def _said(rows: Sequence[TaskRow], split: str) -> tuple[StatementRow, ...]:
    return statements([row for row in rows if row.split == split], split)


def _row(by_rule: Judged, by_agent: Judged, watched: Watched) -> AgentRow:
    rule, agent = task_row("rule", by_rule), task_row("agent", by_agent)
    with_answer = list(_menus_with_answer(watched))
    return AgentRow(
        task=agent.task,
        split=agent.split,
        kind=agent.kind,
        status=agent.status,
        rule=rule.reward_mean,
        rule_low=rule.reward_low,
        rule_high=rule.reward_high,
        agent=agent.reward_mean,
        agent_low=agent.reward_low,
        agent_high=agent.reward_high,
        placebo=agent.placebo_reward_mean,
        placebo_low=agent.placebo_reward_low,
        placebo_high=agent.placebo_reward_high,
        noise_floor=agent.noise_floor,
        offered=_share(offered for offered, _ in with_answer),
        promised=_share(promised for _, promised in with_answer),
        used=_used(by_agent.arms.assisted),
        used_by_rule=_used(by_rule.arms.assisted),
    ).rounded()


def _menus_with_answer(watched: Watched) -> Iterator[tuple[bool, bool]]:
    """(the answer could be paid for, it promised something) for each budget of each menu of the assisted arm."""
    # Of each seed: the menu of the baseline arm, of the assisted one, of the placebo.
    for menu, _ in watched.menus[1::3]:
        for limit, _ in menu.budgets.values():
            within = [one for one in menu.offers if one.flops <= limit]
            best = {
                used: max((one.score for one in within if one.answer is used), default=-np.inf)
                for used in (True, False)
            }
            yield any(one.answer for one in within), best[True] >= best[False] + WORTH


def _share(values: Iterator[bool]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else 0.0


def _used(results: Sequence[ArmResult]) -> float:
    return float(np.mean([result.used_answer for result in results]))
