"""A target, its prices, and a way to check a list of operations."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor

from stages.contracts.target import Target
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable
from stages.tracing.checking import Plan, check
from stages.tracing.program import Node, Program, Ref

X = Ref("query", "inputs")
Checked = Callable[..., Plan]


def at(index: int, item: int = 0) -> Ref:
    return Ref("node", index=index, item=item)


def op(name: str, *args: object, **kwargs: object) -> Node:
    return Node(name if "." in name else f"aten.{name}.default", args, kwargs)


@pytest.fixture
def checked(mlp: Target) -> Checked:
    """Checks operations whose last result, or ``output``, is the answer; the query holds four inputs."""

    def run(
        nodes: Sequence[Node],
        output: Ref | None = None,
        constants: Sequence[Tensor] = (),
        given: Mapping[Ref, Tensor] | None = None,
        cap: int = 10**6,
    ) -> Plan:
        inputs = {X: mlp.corpus("train").inputs[:4]} if given is None else given
        program = Program(tuple(nodes), output or at(len(nodes) - 1), tuple(constants))
        stack = {name: torch.stack([value, value * 0.5]) for name, value in mlp.model.state_dict().items()}
        return check(program, inputs, MeteredAccess(mlp, Ledger(), variants=stack), OpTable(), cap)

    return run
