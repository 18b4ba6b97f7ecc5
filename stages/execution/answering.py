"""Asking a method a task's query: validated, metered, and never able to take the run down.

Charged to an answer: the target's FLOPs and, through a fail-closed dispatch mode, every torch op of the method's own.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.contracts.arms import Answered
from stages.contracts.method import Interpretation, Method, Query
from stages.contracts.outcomes import Outcome
from stages.contracts.target import Target
from stages.errors import MethodError
from stages.execution.arms import as_rows
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import count_flops
from stages.tasks.storage import Task

__all__ = ["MAX_FEATURES", "ask_in_process", "checked"]

MAX_FEATURES = 4096
"""Widest answer per row; more is an error, not a truncation."""

FloatArray = npt.NDArray[np.float64]


def checked(answer: Any, method: str, task: Task) -> FloatArray | None:
    """The answer as (N, I, K).

    Raises:
        MethodError: it is not a finite numeric tensor of the shape the query wants.
    """
    place = f"answer to {task.family.query_kind} on {task.target_name}"
    if answer is None:
        return None
    if isinstance(answer, np.ndarray):
        answer = torch.from_numpy(answer)
    if type(answer) is not Tensor or answer.dtype is torch.bool or answer.is_complex() or answer.is_sparse:
        kind = f"{type(answer).__name__} {getattr(answer, 'dtype', '')}".strip()
        raise MethodError(method, place, f"it returned {kind}", "Return a real tensor, or None to decline.")
    try:
        rows = as_rows(answer.detach(), task.instances.n, task.truth.values.shape[1])
    except ValueError as error:
        raise MethodError(method, place, str(error), "Return one row per thing asked about.") from error
    if rows.shape[-1] > MAX_FEATURES:
        raise MethodError(method, place, f"{rows.shape[-1]} features per row", f"At most {MAX_FEATURES} are allowed.")
    if not np.isfinite(rows).all():
        share = 1 - np.isfinite(rows).mean()
        raise MethodError(method, place, f"{share:.1%} of its values are NaN or infinite", "Return finite numbers.")
    return rows


def ask_in_process(method: Method, name: str, interpretation: Interpretation, task: Task, target: Target) -> Answered:
    """Ask a reviewed method in this process. Its failure becomes a result, not an exception."""
    ledger, n = Ledger(), task.instances.n
    access = MeteredAccess(target, ledger, variants=task.instances.variants)
    query: Query = task.family.query(task.instances)
    count = count_flops()
    try:
        with torch.no_grad(), count:
            answer = method.answer(query, interpretation, access)
        rows = checked(answer, name, task)
    except Exception as error:
        reason = error.cause if isinstance(error, MethodError) else f"{type(error).__name__}: {error}"
        return Answered("failed", None, ledger.flops / n, max(0, count.flops - ledger.flops) / n, reason)
    own = max(0, count.flops - ledger.flops)
    status: Outcome = "declined" if rows is None else "ok"
    return Answered(status, rows, ledger.flops / n, own / n)
