"""A language model as M2 that works step by step: it calls tools, reads what they say, and predicts by itself (ReAct,
Yao et al. 2022, 2210.03629), as a task of Inspect, whose viewer shows every step (`inspect view`).

A sample is one task family on one target and one arm: *alone*, *with* the method's answer, or its *placebo*. The agent
is shown some instances whose answer is known and some to predict. A tool prints a small table of features of all of
them, and is charged per instance as the executor would be; what would exceed the budget is refused. Truths of the
instances to predict stay in this process: they are in no sample, no prompt and no tool, and the scorer looks them up.

What matters is logged: whether the method was *asked*, whether its answer was *read* (a further step was taken after
it), and whether the agent says that it *used* it. That is where AuditBench's tool-to-agent gap can be looked at.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stages.base.text import plain
from stages.contracts.arms import Answered, LadderStep
from stages.contracts.pay import flop_reduction, reward
from stages.contracts.record import Record
from stages.errors import UserError
from stages.execution.arms import budgets_of, shuffle_rows, split
from stages.execution.settings import ExecutorConfig
from stages.tasks.storage import Task

__all__ = ["Arm", "ReactRow", "Session", "most_usd", "run_react"]

FloatArray = npt.NDArray[np.float64]
Arm = Literal["alone", "with", "placebo"]
ARMS: tuple[Arm, ...] = ("alone", "with", "placebo")
BUDGET = "medium"
N_KNOWN, N_ASKED = 16, 8
"""Instances whose answer is shown, and instances to predict."""
MAX_COLUMNS = 6
"""Of a table: a model reads few numbers well."""
MAX_TURNS = 12
MOST_BYTES = 40_000
"""What a sample's messages do not exceed: tables are small, and turns are few."""
PROMPT = """You answer questions about a neural network that you cannot see. {question} Higher scores are better: 1 is \
perfect, 0 is as good as always saying the average. Tools give you features of every instance, known and asked; each \
call costs compute, of which you have {limit:.4g} per instance, and what you leave is worth a little. Look at how the \
features go with the known answers, then call submit with one number for each asked instance, in order.

Known answers: {known}
Asked instances: {asked}"""


@dataclass
class Session:
    """One sample: what the agent may see, what it has spent, and, out of its reach, what is true.

    Args:
        task: one item an instance.
        rungs: of the ladder.
        answer: (N, 1, K) what the method says; None: it is not offered.
        answer_flops: per instance.
    """

    task: Task
    arm: Arm
    rungs: Sequence[LadderStep]
    answer: FloatArray | None
    answer_flops: float
    seed: int
    config: ExecutorConfig
    flops: float = 0.0
    steps: list[str] = field(default_factory=list)
    used: tuple[str, ...] = ()
    predictions: FloatArray | None = None

    def __post_init__(self) -> None:
        calibration, evaluation = split(self.task, self.seed, self.config)
        self.known, self.asked = calibration[:N_KNOWN], evaluation[:N_ASKED]
        self.limit, self.amount = budgets_of(self.rungs)[BUDGET]

    def question(self) -> str:
        truth = self.task.truth.values.numpy()[:, 0]
        known = ", ".join(f"{i}: {truth[i]:.4g}" for i in self.known)
        asked = ", ".join(map(str, self.asked))
        what = f"The question: {self.task.family.title}"
        return PROMPT.format(question=what, limit=self.limit, known=known, asked=asked)

    def ladder(self, step: int) -> str:
        """The black box's features of one step, at its price."""
        if not 0 <= step < len(self.rungs):
            return f"there is no step {step}: use 0 to {len(self.rungs) - 1}"
        return self._paid(f"ladder {step}", self.rungs[step].flops, self.rungs[step].features)

    def ask_method(self) -> str:
        """What the method says, at its price."""
        if self.answer is None:
            return "the tool has no answer to this question"
        return self._paid("method", self.answer_flops, self.answer)

    def submit(self, predictions: Sequence[float], used: Sequence[str]) -> str:
        """Take the predictions; says what is wrong with them where something is."""
        values = np.asarray(predictions, dtype=np.float64)
        if values.shape != (len(self.asked),) or not np.isfinite(values).all():
            raise ValueError(f"{len(self.asked)} finite numbers are wanted, one for each of {self.asked.tolist()}")
        self.predictions, self.used = values, tuple(map(str, used))
        return json.dumps(values.tolist())

    def _paid(self, name: str, price: float, features: FloatArray) -> str:
        if self.flops + price > self.limit:
            return f"that costs {price:.4g} per instance, and {self.limit - self.flops:.4g} is left: refused"
        self.flops += price
        self.steps.append(name)
        return self._table(features)

    def _table(self, features: FloatArray) -> str:
        both = np.concatenate([self.known, self.asked])
        columns = features.reshape(features.shape[0], -1)
        # Those that vary most against their size over the instances shown: a function of features alone.
        shown = columns[both]
        order = np.argsort(-shown.std(0) / (np.abs(shown).mean(0) + 1e-9), kind="stable")[:MAX_COLUMNS]
        return "\n".join(f"{i}: {' '.join(f'{value:.4g}' for value in columns[i, order])}" for i in both)

    def score(self) -> float:
        """Of what was submitted; 0, the average's, where nothing was."""
        truth = self.task.truth.values.numpy()
        if self.predictions is None:
            return 0.0
        return float(self.task.family.score(self.predictions[:, None], truth[self.asked])[0])


class ReactRow(Record):
    """One task: an agent without the method, with it, and with its placebo."""

    task: str
    """Family and target."""
    alone: float
    """Score without the method."""
    with_method: float
    """Score with it."""
    placebo: float
    """Score with its answers dealt to other instances."""
    reward: float
    """Of the method: gain + lambda x compute saved, at a medium budget. One sample: no interval."""
    asked: bool
    """The agent asked the method."""
    read: bool
    """It took a further step after the answer."""
    used: bool
    """It says that its predictions rest on it."""
    submitted: bool
    """It submitted in all arms."""
    tokens: int
    """Over the three arms."""
    reason: str
    """Why an arm submitted nothing, where that is known."""


def most_usd(prices: Mapping[str, Decimal], n_tasks: int, max_tokens: int) -> Decimal:
    """The most that the agent may cost: every turn of every sample with the longest messages and the longest answer."""
    if not prices:
        return Decimal(0)
    dearest = max(prices["input"], prices["cache_read"], prices["cache_write"])
    turn = MOST_BYTES * dearest + max_tokens * prices["output"]
    return n_tasks * len(ARMS) * MAX_TURNS * turn / 1_000_000


def run_react(
    model: Any,
    posed: Iterable[tuple[Task, Sequence[LadderStep], Answered]],
    config: ExecutorConfig,
    folder: Path,
    max_tokens: int = 2_000,
    tell: Callable[[str], object] = print,
) -> list[ReactRow]:
    """Let a model answer with and without a method.

    Args:
        model: as Inspect's ``get_model`` gives it.
        posed: tasks of one item an instance, the rungs of their ladder, and what the method answered.
        folder: where logs go, for `inspect view --log-dir`.

    Raises:
        UserError: Inspect is not installed, or a task has several items.
    """
    from stages.asking.provider import installed

    installed()
    from inspect_ai import eval as evaluated

    rows = []
    for task, rungs, answered in posed:
        if task.truth.values.shape[1] != 1:
            raise UserError(f"{task.name} has {task.truth.values.shape[1]} items an instance: an agent answers one")
        sessions = {arm: _session(task, arm, rungs, answered, config) for arm in ARMS}
        logs = evaluated(
            [_inspect_task(session) for session in sessions.values()],
            model=model,
            log_dir=str(folder),
            display="none",
            max_tasks=1,
            max_retries=0,
            fail_on_error=False,
            message_limit=2 * MAX_TURNS,
            max_tokens=max_tokens,
        )
        tokens = sum(usage.total_tokens for log in logs for usage in (log.stats.model_usage or {}).values())
        rows.append(_row(sessions, config, tokens, _reason(logs)))
        tell(f"{task.name}: alone {rows[-1].alone:+.3f}, with the method {rows[-1].with_method:+.3f}")
    return rows


def _session(task: Task, arm: Arm, rungs: Sequence[LadderStep], answered: Answered, config: ExecutorConfig) -> Session:
    rows = answered.rows if answered.status == "ok" and arm != "alone" else None
    if rows is not None and arm == "placebo":
        rows = shuffle_rows(rows, task.name, 0)
    return Session(task, arm, rungs, rows, answered.flops, 0, config)


def _reason(logs: Sequence[Any]) -> str:
    """What the first sample that failed says, on one line."""
    for log in logs:
        if log.error is not None:
            return plain(log.error.message, 300)
        for sample in log.samples or []:
            if sample.error is not None:
                return plain(sample.error.message, 300)
            if sample.limit is not None:
                return f"stopped at the limit of {2 * MAX_TURNS} messages"
    return ""


def _row(sessions: Mapping[Arm, Session], config: ExecutorConfig, tokens: int, reason: str) -> ReactRow:
    alone, assisted, placebo = (sessions[arm] for arm in ARMS)
    both = assisted.predictions is not None and alone.predictions is not None
    # Who gives up early has saved nothing: it has not answered.
    saved = flop_reduction(assisted.flops, alone.flops, assisted.amount, config.pay.form) if both else 0.0
    gain = np.array(assisted.score() - alone.score())
    paid = reward(gain, np.array(saved), config.pay.flop_weight, config.pay.margin)
    asked = "method" in assisted.steps
    return ReactRow(
        task=alone.task.name,
        alone=alone.score(),
        with_method=assisted.score(),
        placebo=placebo.score(),
        reward=float(paid),
        asked=asked,
        read=asked and (assisted.steps[-1] != "method" or assisted.predictions is not None),
        used="method" in assisted.used,
        submitted=all(one.predictions is not None for one in sessions.values()),
        tokens=tokens,
        reason=reason,
    ).rounded()


def _inspect_task(session: Session) -> Any:
    """The sample as Inspect runs it. Its tools see the session alone; the truth is in neither."""
    from inspect_ai import Task as InspectTask
    from inspect_ai.agent import AgentPrompt, AgentSubmit, react
    from inspect_ai.dataset import Sample
    from inspect_ai.scorer import Score, mean, scorer

    tools = _tools(session)

    @scorer(metrics=[mean()], name="explained")  # type: ignore[untyped-decorator, unused-ignore]
    def explained() -> Any:
        async def score(state: Any, target: Any) -> Any:
            return Score(value=session.score(), metadata={"steps": session.steps, "flops": session.flops})

        return score

    named = session.task.name.replace(".", "_")
    return InspectTask(
        name=f"{named}_{session.arm}",
        dataset=[Sample(id=f"{named}_{session.arm}", input=session.question())],
        solver=react(
            prompt=AgentPrompt(handoff_prompt=None),
            tools=tools[:-1],
            submit=AgentSubmit(tool=tools[-1], keep_in_messages=True),
        ),
        scorer=explained(),
    )


def _tools(session: Session) -> list[Any]:
    from inspect_ai.tool import ToolError, tool

    @tool  # type: ignore[untyped-decorator, unused-ignore]
    def ladder() -> Any:
        async def execute(step: int) -> str:
            """Black-box features of every instance. Higher steps say more and cost more.

            Args:
                step: which step of the ladder, from 0.
            """
            return session.ladder(step)

        return execute

    @tool  # type: ignore[untyped-decorator, unused-ignore]
    def ask_method() -> Any:
        async def execute() -> str:
            """What an interpretability tool says of every instance."""
            return session.ask_method()

        return execute

    @tool  # type: ignore[untyped-decorator, unused-ignore]
    def submit() -> Any:
        async def execute(predictions: list[float], used: list[str]) -> str:
            """Submit the predictions. This ends the task.

            Args:
                predictions: one number for each asked instance, in their order.
                used: what they rest on, such as "ladder 0" or "method".
            """
            try:
                return session.submit(predictions, used)
            except ValueError as error:
                raise ToolError(str(error)) from None

        return execute

    offered = [ladder(), *([ask_method()] if session.arm != "alone" else [])]
    return [*offered, submit()]
