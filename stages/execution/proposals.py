"""What becomes of proposals: the agent runs them on the target, which is charged, and learns from what they reach.

A method that is asked for inputs answers with inputs. Nobody can fit a model on those, so M2 tries them: every proposal
is one more forward pass of the target, or of the variant that its row is about, at the same price as any other.

Shape legend: n = rows, p = proposals of a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from stages.contracts.method import Propose
from stages.contracts.target import Objective, TargetAccess, TargetSpec, objective_values
from stages.tasks.black_box import CHUNK

__all__ = ["MAX_PROPOSALS", "n_proposals", "reached"]

MAX_PROPOSALS = 64
"""For one row: whoever wants to try more asks the target itself."""


def n_proposals(shape: Sequence[int], n: int, spec: TargetSpec) -> int:
    """How many inputs an answer of this shape proposes for each of n rows.

    Raises:
        ValueError: it is none, or too many.
    """
    found, single = tuple(shape), (n, *spec.input_shape)
    if found == single:
        return 1
    if len(found) == len(single) + 1 and (found[0], *found[2:]) == single and 1 <= found[1] <= MAX_PROPOSALS:
        return found[1]
    inside = ", ".join(map(str, spec.input_shape))
    raise ValueError(f"it has shape {found}, the query wants ({n}, {inside}), or ({n}, p, {inside}) with p up to 64")


def reached(query: Propose, answer: Tensor, access: TargetAccess) -> Tensor:
    """(n, p): how much of the objective each proposal reaches, the largest first.

    Args:
        answer: (n, *input_shape) or (n, p, *input_shape).
        access: where the proposals are run; it charges for them.

    Raises:
        ValueError: the shape is wrong, or the target does not take an input.
    """
    n = len(query.labels)
    p = n_proposals(answer.shape, n, access.spec)
    inputs = answer.detach().to(torch.float32).reshape(n, p, *access.spec.input_shape)
    if query.variants:
        over = [access.variant(index) for index in query.variants]
        outputs = torch.cat([one.forward(rows).outputs for one, rows in zip(over, inputs, strict=True)])
    else:
        outputs = torch.cat([access.forward(part).outputs for part in torch.split(inputs.flatten(0, 1), CHUNK)])
    objective = Objective(query.objective, query.labels.repeat_interleave(p))
    return objective_values(outputs, objective).view(n, p).sort(dim=-1, descending=True).values
