"""Running a checked program on the data."""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.contracts.target import TargetAccess
from stages.tracing import calls
from stages.tracing.program import FORWARD, GRADIENTS, WEIGHTS, Plan, Program, Ref
from stages.tracing.values import fill, operation, outputs

__all__ = ["run"]

_UNFILLED = frozenset("empty empty_like empty_permuted empty_strided new_empty new_empty_strided".split())
"""Operations whose result is whatever was in memory; here it is 0, so that nothing is told and every run is the
same."""


def run(program: Program, plan: Plan, inputs: Mapping[Ref, Tensor], target: TargetAccess) -> Tensor | None:
    """The answer.

    Args:
        program: one that ``checking.check`` let pass.
        plan: what the check said of it.
        inputs: the query's tensors and the arrays of I(M).
        target: where its calls go.

    Raises:
        ValueError: an operation failed, such as an index beyond its axis.
    """
    if program.output is None:
        return None
    known = dict(inputs) | {Ref("constant", index=i): value for i, value in enumerate(program.constants)}
    items: dict[int, int] = {}
    with torch.no_grad():
        for index, node in enumerate(program.nodes):
            args = [fill(arg, known) for arg in node.args]
            if node.op in (FORWARD, GRADIENTS, WEIGHTS):
                made = calls.call(target, node.op.removeprefix("target."), args)
            else:
                op = operation(node.op)
                kwargs = {key: fill(value, known) for key, value in node.kwargs.items()}
                try:
                    made = outputs(op(*args, **kwargs))
                except Exception as error:
                    what = " ".join(str(error).split())[:300]
                    raise ValueError(f"operation {index} of the answer, {node.op}: {what}") from error
                if op._opname in _UNFILLED:
                    for value in made:
                        value.zero_()
            if tuple(tuple(value.shape) for value in made) != plan.shapes[index]:
                raise ValueError(f"operation {index} of the answer, {node.op}, made another shape than the one priced")
            for item, value in enumerate(made):
                known[Ref("node", index=index, item=item)] = value
            items[index] = len(made)
            for gone in plan.dead[index]:
                for item in range(items[gone]):
                    known.pop(Ref("node", index=gone, item=item), None)
        return known[program.output]
