"""In-process ``TargetAccess``: validates each declared operation, charges its price, runs it on the frozen model.

A call's cost depends on shapes alone, so each (operation, shapes) is priced once, on tensors that have shapes and no
values, and looked up afterwards: nothing runs before it is priced, and metering adds a dictionary look-up to a call.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from math import prod
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import _disable_current_modes

from stages.contracts.checks import check_call, check_names, check_objective, check_tokens, closed
from stages.contracts.dictionary import Dictionary
from stages.contracts.target import (
    Corpus,
    Forward,
    Gradients,
    Intervention,
    Objective,
    Target,
    TargetAccess,
    TargetSpec,
    objective_values,
)
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable, count_flops

__all__ = ["MeteredAccess", "PhaseError"]

_PRICES: WeakKeyDictionary[Target, dict[Any, int]] = WeakKeyDictionary()
"""FLOPs of calls to each target, by kind and shapes: a price is found once."""
DictionarySource = Callable[[], dict[str, Dictionary]]


class PhaseError(ValueError):
    """Weights, corpus or dictionaries were asked for outside the free phase."""


class MeteredAccess:
    """See ``TargetAccess``.

    Args:
        target: the model and its data.
        ledger: where calls are charged.
        free: whether this is the free phase, in which weights, corpus and dictionaries are open.
        variants: stacked weights of modified copies (first axis = variant).
        dictionaries: reads the target's trained dictionaries; None where there are none.
        table: op prices; None: the project's own.
    """

    def __init__(
        self,
        target: Target,
        ledger: Ledger,
        *,
        free: bool = False,
        variants: Mapping[str, Tensor] | None = None,
        dictionaries: DictionarySource | None = None,
        table: OpTable | None = None,
    ) -> None:
        self._target, self._ledger, self._free = target, ledger, free
        self._variants, self._dictionaries, self._table = dict(variants or {}), dictionaries, table or OpTable()
        self._weights: dict[str, Tensor] | None = None
        self._prices: dict[Any, int] = {} if table else _PRICES.setdefault(target, {})

    @property
    def spec(self) -> TargetSpec:
        return self._target.spec

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        check_call(self.spec, inputs, capture, interventions)
        with _disable_current_modes():  # looking at ids is nobody's computation
            check_tokens(self.spec, inputs)
        self._ledger.charge(self._forward_price(inputs, interventions))
        return self._forward(inputs, capture, interventions)

    def _forward(self, inputs: Tensor, capture: Sequence[str], interventions: Sequence[Intervention]) -> Forward:
        captured: dict[str, Tensor] = {}
        hooks: list[tuple[str, Any]] = [(i.hook_point, _intervene(i)) for i in interventions]
        hooks += [(name, _keep(captured, name)) for name in capture]
        with torch.no_grad():
            outputs = self._run(inputs.detach().to(torch.float32), hooks)
        return Forward(outputs, {name: captured[name] for name in capture})  # as asked for, not as they came by

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        check_call(self.spec, inputs, [name for name in wrt if name != "input"], ())
        check_objective(self.spec, inputs, objective, wrt)
        with _disable_current_modes():  # looking at ids is nobody's computation
            check_tokens(self.spec, inputs)
        self._ledger.charge(self._gradients_price(inputs, objective, wrt))
        return self._gradients(inputs, objective, wrt)

    def _gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        captured: dict[str, Tensor] = {}
        leaf = inputs.detach().to(torch.float32).requires_grad_(self.spec.leaf == "input")
        names = [name for name in wrt if name != "input"]
        with torch.enable_grad():
            outputs = self._run(leaf, [(name, _differentiate(captured, name)) for name in names])
            values = objective_values(outputs, objective)
            sources = [leaf if name == "input" else captured[name] for name in wrt]
            found = torch.autograd.grad(values.sum(), sources, allow_unused=True)
        unused = [name for name, grad in zip(wrt, found, strict=True) if grad is None]
        if unused:
            raise ValueError(
                f"wrt {unused[0]!r}: the outputs of {self.spec.name} do not depend on it, so there is no gradient;"
                " leave it out"
            )
        return Gradients(
            values.detach(),
            {name: _result(grad) for name, grad in zip(wrt, found, strict=True)},
            {name: _result(captured[name]) for name in names},
        )

    def quote(self, name: str, args: tuple[Any, ...]) -> int:
        """FLOPs of a call that is laid out as in ``stages.tracing.calls``; its tensors need no values.

        Raises:
            ValueError: there is no such variant.
        """
        which = args[-1]
        indices = which if isinstance(which, list) else [] if which is None else [which]
        for index in indices:
            self._check_variant(index)
        over = self
        if indices:  # all cost the same
            with _disable_current_modes():  # the weights are there, whatever the arguments are
                over = self.variant(indices[0])
        times = len(which) if isinstance(which, list) else 1
        if name == "weights":
            if which is None:
                raise PhaseError(closed("weights()"))
            return times * over._reading_price(check_names(args[0], list(self.weight_shapes)))
        if name == "forward":
            inputs, _, changes, _ = args
            found = [Intervention(point, kind, value, axis, tuple(at)) for point, kind, value, axis, at in changes]
            return times * over._forward_price(inputs, found)
        inputs, kind, labels, wrt, _ = args
        return times * over._gradients_price(inputs, Objective(kind, labels), wrt)

    def _forward_price(self, inputs: Tensor, interventions: Sequence[Intervention]) -> int:
        key = ("forward", inputs.shape, inputs.dtype, tuple(_signature(i) for i in interventions))
        return self._price(key, lambda: self._forward(_like(inputs), (), [_blank(i) for i in interventions]))

    def _gradients_price(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> int:
        labels = objective.labels
        key = ("gradients", inputs.shape, inputs.dtype, objective.kind, labels is None, tuple(wrt))

        def compute() -> object:
            blank = Objective(objective.kind, None if labels is None else _like(labels))
            return self._gradients(_like(inputs), blank, wrt)

        return self._price(key, compute)

    def _price(self, key: Any, compute: Callable[[], object]) -> int:
        """What a call costs, found on tensors without values: before it runs, and the same on every machine."""
        key = (key, self._weights is None)
        if key not in self._prices:
            with (
                _disable_current_modes(),
                FakeTensorMode(allow_non_fake_inputs=True),
                count_flops(self._table) as count,
            ):
                compute()
            self._prices[key] = count.flops
        return self._prices[key]

    def _check_variant(self, index: int) -> None:
        n = next(iter(self._variants.values())).shape[0] if self._variants else 0
        if not 0 <= index < n:
            raise ValueError(f"variant {index} does not exist: this query has {n} variants, numbered from 0")

    def variant(self, index: int) -> "MeteredAccess":
        self._check_variant(index)
        access = MeteredAccess(self._target, self._ledger, table=self._table)
        access._weights = {name: stack[index] for name, stack in self._variants.items()}
        access._prices = self._prices
        return access

    def variants(self, indices: Sequence[int]) -> TargetAccess:
        return Stacked(self.spec, [self.variant(index) for index in indices])

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of a variant's weights by name: of what was changed or could have been. Empty without variants."""
        if self._weights is not None:
            return {name: tuple(value.shape) for name, value in self._weights.items()}
        return {name: tuple(stack.shape[1:]) for name, stack in self._variants.items()}

    def weights(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        if self._weights is None:
            self._open("weights()")
            state = self._target.model.state_dict()
            return {name: state[name].clone() for name in check_names(names, list(state))}
        asked = check_names(names, list(self._weights))
        if not self._free:
            self._ledger.charge(self._reading_price(asked))
        # A product and no copy, so that whoever counts operations counts what was charged.
        return {name: _result(self._weights[name]) * 1.0 for name in asked}

    def _reading_price(self, names: Sequence[str]) -> int:
        """One FLOP for every number: whoever reads it can compute nothing with it for less."""
        shapes = self.weight_shapes
        return sum(prod(shapes[name]) for name in names)

    def corpus(self, split: Literal["train", "validation"] = "train") -> Corpus:
        self._open("corpus()")
        if split not in ("train", "validation"):
            raise PhaseError(f"split {split!r} is not open to methods: use train or validation")
        corpus = self._target.corpus(split)
        return Corpus(corpus.inputs.clone(), corpus.labels.clone())

    def dictionaries(self) -> dict[str, Dictionary]:
        self._open("dictionaries()")
        return self._dictionaries() if self._dictionaries else {}

    def _open(self, what: str) -> None:
        if not self._free:
            raise PhaseError(closed(what))

    def _run(self, inputs: Tensor, hooks: list[tuple[str, Any]]) -> Tensor:
        model = self._target.model
        with model.hooks(fwd_hooks=hooks) if hooks else nullcontext():
            outputs: Tensor
            if self._weights is None:
                outputs = model(inputs)
            else:
                outputs = functional_call(model, self._weights, (inputs,))
        return outputs.to(device="cpu", dtype=torch.float32)  # wherever and in whatever the target computes


def _intervene(intervention: Intervention) -> Callable[[Tensor, Any], Tensor]:
    i = intervention
    value = torch.zeros(()) if i.value is None else i.value  # None for "zero" alone: ``check_call`` saw to it

    def hook(activation: Tensor, hook: Any) -> Tensor:
        out, given = activation.clone(), value.to(activation.device)
        where = None if i.axis is None else torch.tensor(i.indices, device=activation.device)
        part = out if where is None or i.axis is None else out.index_select(i.axis, where)
        match i.kind:
            case "zero":
                new = torch.zeros_like(part)
            case "set":
                new = given.to(part.dtype).expand_as(part)
            case "add":
                new = part + given.to(part.dtype)
            case "scale":
                new = part * given.to(part.dtype)
        return new if where is None or i.axis is None else out.index_copy(i.axis, where, new)

    return hook


def _keep(into: dict[str, Tensor], name: str) -> Callable[[Tensor, Any], None]:
    def hook(activation: Tensor, hook: Any) -> None:
        into[name] = activation.detach().clone().to(device="cpu", dtype=torch.float32)

    return hook


def _result(found: Tensor) -> Tensor:
    """As methods get it: on the CPU and in float32, wherever and in whatever the target computes."""
    return found.detach().to(device="cpu", dtype=torch.float32)


def _differentiate(into: dict[str, Tensor], name: str) -> Callable[[Tensor, Any], Tensor]:
    """A hook after which the activation has a gradient. Where nothing before it has one (frozen weights, ids) it is
    where differentiation starts; otherwise it stays what it is, so that a hook point before it keeps its own."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        into[name] = activation if activation.requires_grad else activation.detach().requires_grad_(True)
        return into[name]

    return hook


def _signature(intervention: Intervention) -> tuple[Any, ...]:
    i = intervention
    return (i.hook_point, i.kind, None if i.value is None else tuple(i.value.shape), i.axis, len(i.indices))


def _like(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and dtype, made under whatever mode is on."""
    return torch.empty(tuple(tensor.shape), dtype=tensor.dtype)


def _blank(intervention: Intervention) -> Intervention:
    value = intervention.value
    return intervention if value is None else replace(intervention, value=_like(value))


class Stacked:
    """Several variants asked at once: every result has their axis in front."""

    def __init__(self, spec: TargetSpec, each: Sequence[TargetAccess]) -> None:
        if not each:
            raise ValueError("variants([]): name at least one")
        self.spec, self._each = spec, list(each)

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        found = [one.forward(inputs, capture, interventions) for one in self._each]
        captured = {name: torch.stack([one.captured[name] for one in found]) for name in capture}
        return Forward(torch.stack([one.outputs for one in found]), captured)

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        found = [one.gradients(inputs, objective, wrt) for one in self._each]
        return Gradients(
            torch.stack([one.values for one in found]),
            {name: torch.stack([one.grads[name] for one in found]) for name in found[0].grads},
            {name: torch.stack([one.captured[name] for one in found]) for name in found[0].captured},
        )

    def variant(self, index: int) -> TargetAccess:
        raise ValueError("a variant has no variants")

    def variants(self, indices: Sequence[int]) -> TargetAccess:
        raise ValueError("a variant has no variants")

    def weights(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        found = [one.weights(names) for one in self._each]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def corpus(self, split: Literal["train", "validation"] = "train") -> Corpus:
        raise PhaseError(closed("corpus()"))

    def dictionaries(self) -> dict[str, Dictionary]:
        raise PhaseError(closed("dictionaries()"))
