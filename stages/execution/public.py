"""What the executor knows for nothing, whoever helps it: what the question itself holds, and raw outputs once paid for.

Without it an answer that only hands on the inputs, or the outputs that the black box has bought anyway, would earn
something: rungs of a family's ladder give summaries, and no summary is all there is.

Shape legend: N = instances, I = items, K = features.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stages.contracts.method import Attribute, Compare, Localise, Propose, Query, Represent, Steer
from stages.contracts.target import Target
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.storage import Task

__all__ = ["plain_outputs", "public_features"]

FloatArray = npt.NDArray[np.float64]


def public_features(task: Task) -> FloatArray | None:
    """(N, I, K) what the question says of each item; None where it says nothing that differs between instances."""
    query, n, items = task.family.query(task.instances), task.instances.n, task.truth.values.shape[1]
    match query:
        case Represent():
            whole = [query.inputs.flatten(1), *([] if query.labels is None else [query.labels.double().view(n, -1)])]
            return _spread(torch.cat(whole, dim=-1), items)
        case Attribute():
            widths = {len(segment) for segment in query.segments}
            if len(query.segments) != items or len(widths) != 1:
                return _spread(query.inputs.flatten(1), items)
            parts = query.inputs[:, torch.tensor([list(segment) for segment in query.segments])].flatten(2)
            labels = [column.unsqueeze(1).expand(n, items, 1) for column in _as_column(query.labels)]
            instead = [] if query.replacements is None else [query.replacements.flatten(2)]
            return _array(torch.cat([parts, *instead, *labels], dim=-1))
        case Localise():
            # Inputs say the same of every component, and there are many: what is left is which label it is about. (What
            # each component is like on average, the calibrator knows from the labels it is given.)
            return _spread(query.labels.double().mean(1, keepdim=True), items)
        case Steer():
            return _spread(torch.cat([query.directions.flatten(1), *_as_column(query.labels)], dim=-1), items)
        case Propose():
            return _spread(torch.cat([query.inputs.flatten(1), *_as_column(query.labels)], dim=-1), items)
        case Compare():
            return None


def plain_outputs(task: Task, target: Target) -> tuple[FloatArray | None, float]:
    """(N, I, C) the target's outputs on the inputs of the question, and what they cost per instance: a rung that has
    paid for as many forward passes has seen them. None where the question holds no inputs of its own."""
    query, items = task.family.query(task.instances), task.truth.values.shape[1]
    inputs = _inputs(query)
    if inputs is None:
        return None, 0.0
    ledger = Ledger()
    sets = isinstance(query, Localise) or (isinstance(query, Represent) and query.groups)
    outputs = MeteredAccess(target, ledger).forward(inputs.flatten(0, 1) if sets else inputs).outputs
    if sets:
        outputs = outputs.view(*inputs.shape[:2], -1).mean(1)
    return _spread(outputs, items), ledger.flops / task.instances.n


def _inputs(query: Query) -> Tensor | None:
    plain = isinstance(query, (Represent, Attribute, Localise)) or (isinstance(query, Propose) and not query.variants)
    return query.inputs if plain else None


def _as_column(labels: Tensor | None) -> list[Tensor]:
    return [] if labels is None else [labels.double().reshape(-1, 1)]


def _spread(whole: Tensor, items: int) -> FloatArray:
    """The same features for every item of an instance."""
    return _array(whole.unsqueeze(1).expand(-1, items, -1))


def _array(values: Tensor) -> FloatArray:
    # In float32 wherever they are read, so that what was chosen by them is chosen again.
    return np.ascontiguousarray(values.to(torch.float32).double().numpy())
