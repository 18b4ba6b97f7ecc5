"""Asking a method a task's query: recorded, priced before it runs, checked, and never able to take the run down.

Charged to an answer: the target's FLOPs and every operation of its own, both known from the program alone.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.base.users_code import blame, file_of
from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Method, Propose, Query
from stages.contracts.outcomes import Outcome
from stages.contracts.target import Target, TargetAccess, TargetSpec
from stages.errors import MethodError
from stages.execution.arms import as_rows, rows_shape
from stages.execution.proposals import n_proposals, reached
from stages.metering.access import MeteredAccess
from stages.metering.cpu_time import calibrate
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable, UnknownOpError, count_flops
from stages.tasks.storage import Task
from stages.tracing.checking import check
from stages.tracing.program import Blank, Plan, Program, Recorded, Ref, Refused, blank, key_of, tensors_of
from stages.tracing.recording import record
from stages.tracing.running import run
from stages.tracing.values import ProgramError

__all__ = ["MAX_FEATURES", "Asked", "Runner", "answer_of", "ask_in_process", "asked_of", "checked", "recorded_here"]

MAX_FEATURES = 4096
"""Widest answer per row; more is an error, not a truncation."""
PRICES, CHECK = "op prices", "answer check"
"""Names of what holds an answer back, for tables."""

FloatArray = npt.NDArray[np.float64]


class Asked(NamedTuple):
    """A question without its data."""

    question: Query
    """Shapes in place of tensors."""
    n_variants: int
    weights: Mapping[str, tuple[int, ...]] = {}
    """Shapes of one variant's weights by name."""

    def key(self, interpretation: Interpretation) -> str:
        """Names the program that answers it."""
        shapes = f".{sorted(self.weights.items())}" if self.weights else ""
        return key_of(self.question, interpretation.arrays) + f".{self.n_variants}{shapes}"


def asked_of(task: Task, n: int | None = None) -> Asked:
    """The question of a task as it is put while the answer is recorded.

    Args:
        n: as if the task had so many instances.
    """
    instances = task.instances if n is None else task.instances.select(torch.arange(n))
    n_variants = next(iter(instances.variants.values())).shape[0] if instances.variants else 0
    weights = {name: tuple(stack.shape[1:]) for name, stack in instances.variants.items()}
    return Asked(blank(task.family.query(instances)), n_variants if n is None else min(n, n_variants), weights)


class Runner(Protocol):
    """Runs a program that was checked."""

    def __call__(
        self, program: Program, plan: Plan, inputs: Mapping[Ref, Tensor], target: TargetAccess
    ) -> Tensor | None: ...


def checked(answer: Any, method: str, task: Task, access: TargetAccess | None = None) -> FloatArray | None:
    """The answer as (N, I, K). Proposals are run, and what they reach takes their place.

    Args:
        access: where proposals are run, and charged.

    Raises:
        MethodError: it is not a finite numeric tensor of the shape the query wants.
    """
    if answer is None:
        return None
    if isinstance(answer, np.ndarray):
        answer = torch.from_numpy(answer)
    if type(answer) is not Tensor or answer.is_sparse:
        raise MethodError(
            method, _place(task), f"it returned {type(answer).__name__}", "Return a tensor, or None to decline."
        )
    query = _query(task)
    _check_shape(Blank.of(answer), method, task, None if access is None else access.spec)
    if isinstance(query, Propose) and access is not None:
        answer = reached(query, answer, access)
    rows = as_rows(answer.detach(), task.instances.n, task.truth.values.shape[1])
    if not np.isfinite(rows).all():
        share = 1 - np.isfinite(rows).mean()
        cause = f"{share:.1%} of its values are NaN or infinite"
        raise MethodError(method, _place(task), cause, "Return finite numbers.")
    return rows


def _place(task: Task) -> str:
    return f"answer to {task.family.query_kind} on {task.target_name}"


def _check_shape(answer: Blank, method: str, task: Task, spec: TargetSpec | None) -> None:
    """What can be said of an answer before it is computed."""
    dtype = getattr(torch, answer.dtype)
    if dtype is torch.bool or dtype.is_complex:
        cause = f"it returned a tensor of {answer.dtype}"
        raise MethodError(method, _place(task), cause, "Return real numbers: call .float(), or .real and .imag.")
    if spec is not None and isinstance(_query(task), Propose):
        try:
            n_proposals(answer.shape, task.instances.n, spec)
        except ValueError as error:
            raise MethodError(method, _place(task), str(error), "Return inputs, as many for every row.") from error
        return
    try:
        _, _, width = rows_shape(answer.shape, task.instances.n, task.truth.values.shape[1])
    except ValueError as error:
        raise MethodError(method, _place(task), str(error), "Return one row per thing asked about.") from error
    if width > MAX_FEATURES:
        raise MethodError(method, _place(task), f"{width} features per row", f"At most {MAX_FEATURES} are allowed.")


def recorded_here(method: Method, asked: Asked, interpretation: Interpretation, spec: TargetSpec) -> Recorded:
    """A reviewed method's answer, recorded in this process. Its failure becomes a result, not an exception."""
    try:
        return record(method, asked.question, interpretation, spec, asked.n_variants, asked.weights)
    except Exception as error:
        return Refused(blame(error, file_of(method)), CHECK)


def answer_of(
    recorded: Recorded,
    name: str,
    interpretation: Interpretation,
    task: Task,
    target: Target,
    runner: Runner = run,
    max_constants: int = 1 << 30,
) -> Answered:
    """Price a recorded answer, then run it. A method's failure becomes a result, not an exception.

    Args:
        runner: where it runs; here unless one is given.
        max_constants: bytes that the program may hold beside I(M).
    """
    if isinstance(recorded, Refused):
        return Answered("failed", None, 0.0, 0.0, recorded.reason, recorded.layer)
    ledger, n = Ledger(), task.instances.n
    access = MeteredAccess(target, ledger, variants=task.instances.variants)
    inputs: dict[Ref, Tensor] = {Ref("query", key): value for key, value in tensors_of(_query(task)).items()}
    inputs |= {Ref("array", key): value for key, value in interpretation.arrays.items()}
    try:
        plan = check(recorded, inputs, access, OpTable(), max_constants)
        if plan.output is not None:
            _check_shape(plan.output, name, task, access.spec)
    except (ProgramError, UnknownOpError) as error:
        return Answered("failed", None, 0.0, 0.0, str(error), PRICES)
    except MethodError as error:
        return Answered("failed", None, 0.0, 0.0, _told(error), CHECK)
    status: Outcome = "ok"
    rows, reason, layer = None, "", ""
    try:
        rows = checked(runner(recorded, plan, inputs, access), name, task, access)
        status = "declined" if rows is None else "ok"
    except MethodError as error:
        status, reason, layer = "failed", _told(error), error.layer
    except ValueError as error:
        status, reason, layer = "failed", str(error), CHECK
    spent = max(plan.target_flops, ledger.flops)  # priced in full before it ran, whatever came of it
    return Answered(status, rows, spent / n, plan.own_flops / n, reason, layer)


def _query(task: Task) -> Query:
    return task.family.query(task.instances)


def _told(error: MethodError) -> str:
    return f"{error.cause}. {error.remedy}" if error.remedy else error.cause


def ask_in_process(method: Method, name: str, interpretation: Interpretation, task: Task, target: Target) -> Answered:
    """Ask a reviewed method in this process."""
    if method.adaptive:
        return _adaptive_here(method, name, interpretation, task, target)
    recorded = recorded_here(method, asked_of(task), interpretation, target.spec)
    return answer_of(recorded, name, interpretation, task, target)


def _adaptive_here(method: Method, name: str, interpretation: Interpretation, task: Task, target: Target) -> Answered:
    """A reviewed method that needs values, in this process: its torch operations are counted, and all its CPU time
    could have computed something that was not."""
    ledger, n = Ledger(), task.instances.n
    access = MeteredAccess(target, ledger, variants=task.instances.variants)
    count, rows, reason = count_flops(), None, ""
    status: Outcome = "ok"
    started, used, own = time.process_time(), 0.0, None
    try:
        with torch.no_grad(), count:
            answer = method.answer(_query(task), interpretation, access)
        used, own = time.process_time() - started, max(0, count.flops - ledger.flops)
        rows = checked(answer, name, task, access)
        status = "declined" if rows is None else "ok"
    except MethodError as error:
        status, reason = "failed", _told(error)
    except Exception as error:
        status, reason = "failed", blame(error, file_of(method))
    if own is None:  # it failed on the way
        used, own = time.process_time() - started, max(0, count.flops - ledger.flops)
    return Answered(status, rows, ledger.flops / n, own / n, reason, "", calibrate().flops(used) / n)
