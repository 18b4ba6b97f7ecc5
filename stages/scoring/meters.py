"""What an answer was charged, as a row."""

from stages.contracts.arms import Answered
from stages.contracts.score_result import Meters
from stages.tasks.storage import Task

__all__ = ["meters_of"]


def meters_of(task: Task, answered: Answered) -> Meters:
    n = task.instances.n
    return Meters(
        task=task.name,
        outcome=answered.status,
        flops_target=answered.target_flops * n,
        flops_own=answered.own_flops * n,
        exact=answered.unseen_flops == 0,
        flops_unseen=answered.unseen_flops * n,
    )
