"""Method files of examples/, loaded as users load theirs, and small targets of every sort to ask about."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stages.contracts.method import Budget, Interpretation, Method, Query
from stages.contracts.method_file import from_file
from stages.contracts.target import Target
from stages.interpretation.artifact import pack, unpack
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable
from stages.tracing.checking import check
from stages.tracing.program import Ref, blank, tensors_of
from stages.tracing.recording import record
from stages.tracing.running import run
from tests.conftest import make_target
from tests.toy import ROOT

EXAMPLES = ROOT / "examples"
SORTS = ("digits_mlp", "small_cnn", "digits_few_shot", "context_lm", "grokked_addition")


class Asked(NamedTuple):
    """What came of a question: the answer that was recorded, priced and run, and what it was charged."""

    answer: Tensor | None
    target_flops: float
    own_flops: float


def method_of(folder: str, name: str) -> Method:
    return from_file(EXAMPLES / folder / f"{name}.py")


def module_of(method: Method) -> Any:
    import sys

    return sys.modules[type(method).__module__]


_made: dict[tuple[str, str], Interpretation] = {}


def interpreted(method: Method, target: Target) -> Interpretation:
    """I(M), as it is kept; computed once for a file and a target."""
    key = type(method).__module__ + method.name, target.digest
    if key not in _made:
        _made[key] = interpreted_anew(method, target)
    return _made[key]


def interpreted_anew(method: Method, target: Target) -> Interpretation:
    access = MeteredAccess(target, Ledger(), free=True, dictionaries=dict)
    return unpack(*pack(method.interpret(access, Budget(60, 10**8, 0)), "m", "here", 10**8))


def stack_of(target: Target, size: float = 0.05) -> dict[str, Tensor]:
    """Two variants: the target, and one with a little noise on every weight."""
    generator = torch.Generator().manual_seed(1)
    state = {name: value for name, value in target.model.state_dict().items() if value.is_floating_point()}
    return {n: torch.stack([v, v + size * torch.randn(v.shape, generator=generator)]) for n, v in state.items()}


def ask(method: Method, made: Interpretation, target: Target, query: Query) -> Asked:
    """Record an answer on shapes, price it, run it: as the host does."""
    stack = stack_of(target)
    weights = {name: tuple(value.shape[1:]) for name, value in stack.items()}
    program = record(method, blank(query), made, target.spec, 2, weights)
    access = MeteredAccess(target, Ledger(), variants=stack)
    inputs: dict[Ref, Tensor] = {Ref("query", key): value for key, value in tensors_of(query).items()}
    inputs |= {Ref("array", key): value for key, value in made.arrays.items()}
    plan = check(program, inputs, access, OpTable(), 10**8)
    return Asked(run(program, plan, inputs, access), plan.target_flops, plan.own_flops)


@pytest.fixture(scope="session")
def sorts(mlp: Target, few_shot: Target) -> Callable[[str], Target]:
    """Targets by name; those beside ``mlp`` and ``few_shot`` are not trained."""
    made = {"digits_mlp": mlp, "digits_few_shot": few_shot}

    def of(name: str) -> Target:
        if name not in made:
            made[name] = make_target(name, steps=0, n=80)
        return made[name]

    return of
