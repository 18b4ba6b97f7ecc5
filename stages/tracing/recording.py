"""A method's answer, written down while it is computed on tensors that have shapes and no values.

This runs beside the method, so nothing here is believed: ``checking`` looks at what comes out of it.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from stages.contracts.checks import check_names, closed
from stages.contracts.method import Interpretation, Method, Query
from stages.contracts.target import Forward, Gradients, Intervention, Objective, TargetSpec
from stages.tracing import calls
from stages.tracing.calls import Which
from stages.tracing.program import FORWARD, GRADIENTS, MAX_NODES, WEIGHTS, Blank, Node, Program, Ref, Static
from stages.tracing.values import depends_on_values, outputs

__all__ = ["NeedsValues", "record"]

VALUES = (
    "An answer is recorded on shapes before anybody sees the data, so Python cannot look at values: use torch.where,"
    " topk, gather or a product with a mask; put numbers that Python needs into Interpretation.data; or say"
    " `adaptive = True` in the class, and the method's rows are marked as metered within bounds only."
)
GRADIENT = (
    "Gradients of the target come from target.gradients(inputs, objective, wrt): autograd does not reach through"
    " target.forward."
)
_ASKS_FOR_VALUES = frozenset(
    "numpy item tolist __array__ __bool__ __int__ __float__ __index__ __complex__ is_nonzero nonzero unique"
    " unique_consecutive masked_select equal allclose __contains__".split()
)
_STATICS = {
    torch.dtype: "dtype",
    torch.layout: "layout",
    torch.memory_format: "memory_format",
}
_BOOKKEEPING = ("prim.", "profiler.")


class NeedsValues(TypeError):
    """The method's Python asked for values while its answer was recorded."""


class _Values(TorchFunctionMode):
    """Refuses, at the line that asks, whatever would turn a tensor without values into a Python number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in _ASKS_FOR_VALUES and any(_unknown(arg) for arg in args):
            raise NeedsValues(f"{name.strip('_')} asks for the values of a tensor. {VALUES}")
        return func(*args, **(kwargs or {}))


def _unknown(value: Any) -> bool:
    # A tensor that Python itself made from numbers keeps them.
    return isinstance(value, FakeTensor) and value.constant is None


class _Recorder(TorchDispatchMode):
    """Writes down every operation; below it stands the fake mode, which knows shapes alone."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.nodes: list[Node] = []
        self.constants: list[Tensor] = []
        self._refs: dict[int, Ref] = {}
        self._kept: list[Tensor] = []  # an id is an identity only as long as the tensor lives
        self._constants: dict[int, Ref] = {}
        self._lock = threading.RLock()
        self.paused = False
        """Operations are ours and not the answer's."""

    def know(self, tensor: Tensor, ref: Ref) -> None:
        self._refs[id(tensor)] = ref
        self._kept.append(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with self._lock:
            if torch.Tag.nondeterministic_seeded in func.tags and not outputs([args, list(kwargs.values())]):
                with _disable_current_modes():  # random numbers that hang on no data: a constant
                    return func(*args, **kwargs)
            if not self.paused and depends_on_values(func, args, kwargs) and any(map(_unknown, outputs(list(args)))):
                raise NeedsValues(f"{func}: what it computes depends on values. {VALUES}")
            out = func(*args, **kwargs)
            if not self.paused and not str(func).startswith(_BOOKKEEPING) and outputs(out):
                self.add(str(func), args, kwargs, out)
            return out

    def add(self, op: str, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        if len(self.nodes) >= MAX_NODES:
            raise ValueError(
                f"the answer takes more than {MAX_NODES:,} operations: a loop over items unrolls, so put the items on a"
                " batch axis (target.variants, index_select)"
            )
        described = Node(op, tuple(self.value(arg) for arg in args), {k: self.value(v) for k, v in kwargs.items()})
        index = len(self.nodes)
        self.nodes.append(described)
        for item, tensor in enumerate(outputs(out)):
            if id(tensor) not in self._refs:  # an operation in place returns what it was given
                self.know(tensor, Ref("node", index=index, item=item))

    def value(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.ref(value)
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.value(one) for one in value]
        if isinstance(value, torch.device):
            return Static("device", value.type)
        for kind, name in _STATICS.items():
            if isinstance(value, kind):
                return Static(name, str(value).removeprefix("torch."))
        raise ValueError(f"a {type(value).__name__} cannot stand in an answer: use tensors and numbers")

    def ref(self, tensor: Tensor) -> Ref:
        if id(tensor) in self._refs:
            return self._refs[id(tensor)]
        if isinstance(tensor, FakeTensor):
            raise ValueError("a tensor was computed where it cannot be recorded, such as in another thread")
        if type(tensor) not in (Tensor, torch.nn.Parameter):
            raise ValueError(f"a {type(tensor).__name__} is no plain tensor")
        if id(tensor) not in self._constants:
            self._constants[id(tensor)] = Ref("constant", index=len(self.constants))
            self._kept.append(tensor)
            with _disable_current_modes():
                self.constants.append(tensor.detach().clone().contiguous())
        return self._constants[id(tensor)]


class _RecordedTarget:
    """``TargetAccess`` whose calls are written down."""

    def __init__(
        self,
        spec: TargetSpec,
        recorder: _Recorder,
        n_variants: int,
        weights: Mapping[str, Sequence[int]],
        which: Which = None,
    ) -> None:
        self._spec, self._recorder, self._n_variants, self._which = spec, recorder, n_variants, which
        self._weights = weights

    @property
    def spec(self) -> TargetSpec:
        return self._spec

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        args = calls.forward_args(inputs, capture, interventions, self._which)
        return calls.forward_result(args, self._call("forward", FORWARD, args))

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        args = calls.gradients_args(inputs, objective, wrt, self._which)
        return calls.gradients_result(args, self._call("gradients", GRADIENTS, args))

    def _call(self, name: str, op: str, args: tuple[Any, ...]) -> list[Tensor]:
        weights = name == "weights"
        shapes = calls.weight_shapes_of(self._weights, args) if weights else calls.shapes_of(self._spec, name, args)
        self._recorder.paused = True
        out = [torch.empty(shape) for shape in shapes]
        self._recorder.paused = False
        self._recorder.add(op, args, {}, out)
        return out

    def variant(self, index: int) -> "_RecordedTarget":
        return self._variants(int(index), [int(index)])

    def variants(self, indices: Sequence[int]) -> "_RecordedTarget":
        chosen = [int(index) for index in indices]
        return self._variants(chosen, chosen)

    def _variants(self, which: Which, indices: Sequence[int]) -> "_RecordedTarget":
        if self._which is not None:
            raise ValueError("a variant has no variants")
        for index in indices:
            if not 0 <= index < self._n_variants:
                raise ValueError(
                    f"variant {index} does not exist: this query has {self._n_variants} variants, numbered from 0"
                )
        return _RecordedTarget(self._spec, self._recorder, self._n_variants, self._weights, which)

    def weights(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        if self._which is None:
            return self._closed("weights()")  # type: ignore[no-any-return]
        asked = check_names(names, list(self._weights))
        return dict(zip(asked, self._call("weights", WEIGHTS, (asked, self._which)), strict=True))

    def corpus(self, split: str = "train") -> Any:
        return self._closed("corpus()")

    def dictionaries(self) -> Any:
        return self._closed("dictionaries()")

    def _closed(self, what: str) -> Any:
        raise ValueError(closed(what))


@contextmanager
def _in_every_thread(fake: FakeTensorMode, recorder: _Recorder) -> Iterator[None]:
    """Modes are per thread: threads that start inside get the same ones."""
    run = threading.Thread.run

    def recorded(self: threading.Thread) -> None:
        with torch.no_grad(), fake, recorder, _Values():
            run(self)

    threading.Thread.run = recorded  # type: ignore[method-assign]
    try:
        yield
    finally:
        threading.Thread.run = run  # type: ignore[method-assign]


def record(
    method: Method,
    question: Query,
    interpretation: Interpretation,
    spec: TargetSpec,
    n_variants: int,
    weights: Mapping[str, Sequence[int]] | None = None,
) -> Program:
    """The program of one answer.

    Args:
        question: a blank query: shapes in place of tensors.
        interpretation: I(M), of which the method sees the JSON data, and shapes in place of the arrays.
        n_variants: modified copies of the target that there are.
        weights: shapes of one copy's weights by name.

    Raises:
        NeedsValues: the method's Python asked for values.
        Exception: whatever the method raised.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    names = [field.name for field in fields(question) if isinstance(getattr(question, field.name), Blank)]
    recorder = _Recorder()
    with torch.no_grad(), fake:
        asked = {name: getattr(question, name).empty() for name in names}
        arrays = {name: Blank.of(value).empty() for name, value in interpretation.arrays.items()}
        for name, tensor in asked.items():
            recorder.know(tensor, Ref("query", name))
        for name, tensor in arrays.items():
            recorder.know(tensor, Ref("array", name))
        target = _RecordedTarget(spec, recorder, n_variants, weights or {})
        try:
            with _in_every_thread(fake, recorder), recorder, _Values():
                answer: Any = method.answer(
                    replace(question, **asked), Interpretation(arrays, interpretation.data), target
                )
        except (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode) as error:
            raise NeedsValues(f"{type(error).__name__}: what it computes depends on values. {VALUES}") from error
        except RuntimeError as error:
            if "does not require grad" in str(error):
                raise ValueError(GRADIENT) from error
            raise
        if isinstance(answer, np.ndarray):
            with _disable_current_modes():  # it holds values: a constant
                answer = torch.from_numpy(np.array(answer))
        if answer is None:
            return Program((), None)
        if not isinstance(answer, Tensor):
            raise TypeError(f"it returned {type(answer).__name__}: return a tensor, or None to decline")
        output = recorder.ref(answer)
        return Program(tuple(recorder.nodes), output, tuple(recorder.constants))
