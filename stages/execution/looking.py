"""What one look at a question costs: the least that a tight budget pays for.

A question that no method could even look at within the tight budget would ask nothing of interpretability there. So the
price of a look is counted: one forward pass and two gradients on every input that the question shows, for each variant
where it is about variants. What is shown once for all instances is looked at once.
"""

import torch
from torch import Tensor

from stages.contracts.method import Compare, Localise, Propose, Query, Represent
from stages.contracts.target import Target
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.storage import Task

__all__ = ["look_price"]

N_GRADIENTS = 2
OBJECTIVE = "margin"


def look_price(task: Task, target: Target) -> float:
    """FLOPs per instance; nothing runs."""
    query = task.family.query(task.instances)
    access = MeteredAccess(target, Ledger(), variants=task.instances.variants)
    inputs, which = _shown(query)
    once = access.quote("forward", (inputs, [], [], which))
    once += N_GRADIENTS * access.quote("gradients", (inputs, OBJECTIVE, None, [target.spec.leaf], which))
    return once / task.instances.n


def _shown(query: Query) -> tuple[Tensor, list[int] | None]:
    """The inputs that a question shows, without values, and the variants that look at all of them."""
    inputs, which = query.inputs, None
    if isinstance(query, Localise) or (isinstance(query, Represent) and query.groups):
        inputs = inputs.flatten(0, 1)
    if isinstance(query, Compare):
        which = list(query.variants)
    if isinstance(query, Propose) and query.variants:  # each looks at its own, and all cost the same
        inputs, which = inputs[:1], list(query.variants)
    return torch.empty_like(inputs, device="meta"), which
