"""A program against the price table: what it costs and how much memory it takes, exactly, before anything runs.

A program comes from a process that nobody trusts, so nothing it says of itself is used: every operation is looked up,
its arguments are rebuilt from plain data, and shapes, FLOPs and bytes are computed here, on tensors without values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from stages.contracts.target import TargetSpec
from stages.metering.op_table import OpTable, UnknownOpError
from stages.tracing import calls
from stages.tracing.program import FORWARD, GRADIENTS, MAX_NODES, WEIGHTS, Blank, Node, Plan, Program, Ref, refs
from stages.tracing.values import ProgramError, depends_on_values, fill, operation, outputs

__all__ = ["MAX_BYTES", "MAX_FLOPS", "Quotes", "check"]

MAX_FLOPS = 10**14
"""Of an answer's own operations: about twenty minutes of one core."""
MAX_BYTES = 2 << 30
"""Of all tensors that live at one moment."""
_N_ARGUMENTS = {FORWARD: 4, GRADIENTS: 5, WEIGHTS: 2}


class Quotes(Protocol):
    """Says what a call to the target costs, given arguments without values."""

    @property
    def spec(self) -> TargetSpec: ...

    @property
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def quote(self, name: str, args: tuple[Any, ...]) -> int: ...


def check(program: Program, inputs: Mapping[Ref, Tensor], target: Quotes, table: OpTable, max_constants: int) -> Plan:
    """Price a program.

    Args:
        inputs: the query's tensors and the arrays of I(M), by the references that the program has for them.
        target: says what its calls cost.
        table: op prices.
        max_constants: bytes that the constants may take.

    Raises:
        ProgramError: it may not run; says why.
    """
    try:
        _plain(program)
    except (TypeError, AttributeError) as error:
        raise ProgramError(f"a program that is none: {error}") from error
    if program.n_bytes > max_constants:
        raise ProgramError(
            f"the answer holds {program.n_bytes:,} bytes of constants; {max_constants:,} are left of I(M)"
        )
    if program.output is None:
        return Plan(0, 0, 0, (), (), None)
    with torch.no_grad(), FakeTensorMode():
        known = {ref: Blank.of(value).empty() for ref, value in inputs.items()}
        known |= {Ref("constant", index=i): Blank.of(value).empty() for i, value in enumerate(program.constants)}
        return _Walk(program, known, target, table).plan()


def _plain(program: Program) -> None:
    nodes: Any = program.nodes  # it came as data: nothing says that it is what its type says
    constants: Any = program.constants
    if not isinstance(nodes, (list, tuple)) or not isinstance(constants, (list, tuple)) or len(nodes) > MAX_NODES:
        raise ProgramError(f"operations that are none, or more than {MAX_NODES:,}")
    for node in nodes:
        if not isinstance(node, Node) or type(node.op) is not str or not isinstance(node.args, (list, tuple)):
            raise ProgramError("an operation that is none")
        if type(node.kwargs) is not dict or not all(type(key) is str for key in node.kwargs):
            raise ProgramError("an operation whose named arguments are none")
    if program.output is not None and not isinstance(program.output, Ref):
        raise ProgramError("an answer that is no tensor of the program")
    for ref in refs([[node.args, node.kwargs] for node in nodes] + [program.output]):
        if {type(ref.kind), type(ref.name)} != {str} or {type(ref.index), type(ref.item)} != {int}:
            raise ProgramError("a reference that is none")
    for constant in constants:
        if type(constant) is not Tensor or constant.layout is not torch.strided:
            raise ProgramError("a constant that is no plain tensor")


def _same_shapes_whatever_the_values(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse an operation whose result, or its shape, depends on values. It is told by its tags: what torch makes of
    such a one on tensors without values depends on what else the process has imported."""
    if depends_on_values(op, args, kwargs):
        raise ProgramError(f"{op} depends on values: use a mask, torch.where, topk or gather")


class _Walk:
    def __init__(self, program: Program, known: dict[Ref, Tensor], target: Quotes, table: OpTable) -> None:
        self._program, self._known, self._target, self._table = program, known, target, table
        self._own = self._called = self._bytes = self._peak = 0
        self._shapes: list[tuple[tuple[int, ...], ...]] = []
        self._ours = {_storage(value) for value in known.values()}
        self._made: dict[int, int] = {}
        """Bytes of each storage that operations made and that lives."""

    def plan(self) -> Plan:
        dead = _dead(self._program)
        items: dict[int, int] = {}
        for index, node in enumerate(self._program.nodes):
            try:
                made = self._call(node) if node.op in _N_ARGUMENTS else self._compute(node)
            except (ProgramError, UnknownOpError):
                raise
            except Exception as error:
                what = " ".join(str(error).split())[:300]
                raise ProgramError(f"{node.op} cannot be computed: {type(error).__name__}: {what}") from error
            for item, value in enumerate(made):
                self._known[Ref("node", index=index, item=item)] = value
            self._shapes.append(tuple(tuple(value.shape) for value in made))
            self._live(made)
            if self._own > MAX_FLOPS:
                raise ProgramError(f"its own operations cost more than {MAX_FLOPS:.0e} FLOPs")
            items[index] = len(made)
            for gone in dead[index]:
                for item in range(items[gone]):
                    self._known.pop(Ref("node", index=gone, item=item), None)
            if dead[index]:
                self._forget()
        output = self._program.output
        assert output is not None
        answer = fill(output, self._known)
        return Plan(self._called, self._own, self._peak, tuple(self._shapes), dead, Blank.of(answer))

    def _call(self, node: Node) -> list[Tensor]:
        args = tuple(fill(arg, self._known) for arg in node.args)
        name = node.op.removeprefix("target.")
        if len(args) != _N_ARGUMENTS[node.op] or node.kwargs:
            raise ProgramError(f"{node.op} with {len(args)} arguments")
        if node.op == WEIGHTS:
            shapes = calls.weight_shapes_of(self._target.weight_shapes, args)
        else:
            shapes = calls.shapes_of(self._target.spec, name, args)
        self._called += self._target.quote(name, args)
        return [torch.empty(shape) for shape in shapes]

    def _compute(self, node: Node) -> list[Tensor]:
        op = operation(node.op)
        price = self._table.price(op)
        args = [fill(arg, self._known) for arg in node.args]
        kwargs = {key: fill(value, self._known) for key, value in node.kwargs.items()}
        for position, argument in enumerate(op._schema.arguments):
            if argument.name == "dropout_p" and (
                args[position] if position < len(args) else kwargs.get("dropout_p", 0)
            ):
                raise ProgramError(f"{node.op} drops values at random: give dropout_p=0")
            if argument.alias_info is not None and argument.alias_info.is_write:
                written = args[position] if position < len(args) else kwargs.get(argument.name)
                for tensor in outputs(written):
                    if _storage(tensor) in self._ours:
                        raise ProgramError(
                            f"{node.op} would change the query, I(M) or a constant in place: clone it first"
                        )
        _same_shapes_whatever_the_values(op, args, kwargs)
        out = op(*args, **kwargs)
        made = outputs(out)
        if any(value.layout is not torch.strided or value.is_quantized for value in made):
            raise ProgramError(f"{node.op} makes a sparse or quantised tensor: use dense ones")
        self._own += price(args, kwargs, out)
        return made

    def _live(self, made: list[Tensor]) -> None:
        for value in made:
            key = _storage(value)
            if key not in self._ours and key not in self._made:
                self._made[key] = value.untyped_storage().nbytes()
                self._bytes += self._made[key]
        self._peak = max(self._peak, self._bytes)
        if self._bytes > MAX_BYTES:
            raise ProgramError(f"its tensors take {self._bytes:,} bytes at once; {MAX_BYTES:,} are allowed")

    def _forget(self) -> None:
        alive = {_storage(value) for value in self._known.values()}
        for key in [key for key in self._made if key not in alive]:
            self._bytes -= self._made.pop(key)


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _dead(program: Program) -> tuple[tuple[int, ...], ...]:
    """After each operation, the operations whose results are not needed any more."""
    last = {index: index for index in range(len(program.nodes))}
    for index, node in enumerate(program.nodes):
        for ref in refs([node.args, node.kwargs]):
            if ref.kind == "node" and ref.index in last:
                last[ref.index] = index
    for ref in refs(program.output):
        if ref.kind == "node" and ref.index in last:
            last[ref.index] = len(program.nodes)
    gone: list[list[int]] = [[] for _ in program.nodes]
    for index, when in last.items():
        if when < len(gone):
            gone[when].append(index)
    return tuple(tuple(of) for of in gone)
