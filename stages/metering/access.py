"""In-process ``TargetAccess``: validates each declared operation, runs it on the frozen model, charges its price.

A forward's cost depends on shapes alone, so each (operation, shapes) is priced once, under the counting mode, and
looked up afterwards: metering adds a dictionary look-up to a call.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

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
        self._prices: dict[Any, int] = {}

    @property
    def spec(self) -> TargetSpec:
        return self._target.spec

    @property
    def ledger(self) -> Ledger:
        return self._ledger

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        inputs = self._check(inputs, capture, interventions)
        captured: dict[str, Tensor] = {}
        hooks: list[tuple[str, Any]] = [(i.hook_point, _intervene(i)) for i in interventions]
        hooks += [(name, _keep(captured, name)) for name in capture]
        key = ("forward", inputs.shape, tuple(_signature(i) for i in interventions))
        with torch.no_grad():
            outputs = self._priced(key, lambda: self._run(inputs, hooks))
        return Forward(outputs, captured)

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        names = [name for name in wrt if name != "input"]
        inputs = self._check(inputs, names, ())
        if objective.labels is not None and objective.labels.shape != inputs.shape[:1]:
            raise ValueError(
                f"objective.labels has shape {tuple(objective.labels.shape)}; it needs one label per input:"
                f" ({inputs.shape[0]},)"
            )
        if not wrt:
            raise ValueError('wrt is empty: name hook points, or "input"')
        captured: dict[str, Tensor] = {}
        leaf = inputs.detach().requires_grad_(True)
        box: dict[str, Tensor] = {}

        def compute() -> tuple[Tensor, ...]:
            captured.clear()
            outputs = self._run(leaf, [(name, _keep(captured, name, detach=False)) for name in names])
            box["values"] = objective_values(outputs, objective)
            sources = [leaf if name == "input" else captured[name] for name in wrt]
            grads = torch.autograd.grad(box["values"].sum(), sources, allow_unused=True)
            return tuple(torch.zeros_like(s) if g is None else g for g, s in zip(grads, sources, strict=True))

        key = ("gradients", inputs.shape, objective.kind, objective.labels is None, tuple(wrt))
        with torch.enable_grad():
            grads = self._priced(key, compute)
        return Gradients(
            box["values"].detach(),
            {name: grad.detach() for name, grad in zip(wrt, grads, strict=True)},
            {name: value.detach() for name, value in captured.items()},
        )

    def variant(self, index: int) -> TargetAccess:
        n = next(iter(self._variants.values())).shape[0] if self._variants else 0
        if not 0 <= index < n:
            raise ValueError(f"variant {index} does not exist: this query has {n} variants, numbered from 0")
        access = MeteredAccess(self._target, self._ledger, table=self._table)
        access._weights = {name: stack[index] for name, stack in self._variants.items()}
        access._prices = self._prices
        return access

    def weights(self) -> dict[str, Tensor]:
        self._open("weights()")
        return {name: value.clone() for name, value in self._target.model.state_dict().items()}

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
            raise PhaseError(f"{what} is open in interpret() only: put what answer() needs into the Interpretation")

    def _run(self, inputs: Tensor, hooks: list[tuple[str, Any]]) -> Tensor:
        model = self._target.model
        if not hooks and self._weights is None:
            return model(inputs)  # type: ignore[no-any-return]
        with model.hooks(fwd_hooks=hooks):
            if self._weights is None:
                return model(inputs)  # type: ignore[no-any-return]
            return functional_call(model, self._weights, (inputs,))  # type: ignore[no-any-return]

    def _priced(self, key: Any, compute: Callable[[], Any]) -> Any:
        if key not in self._prices:
            with count_flops(self._table) as count:
                result = compute()
            self._prices[key] = count.flops
            self._ledger.charge(count.flops)
            return result
        # Charged before it runs: work that fails half way was still asked for.
        self._ledger.charge(self._prices[key])
        return compute()

    def _check(self, inputs: Any, capture: Sequence[str], interventions: Sequence[Intervention]) -> Tensor:
        spec = self.spec
        if not isinstance(inputs, Tensor) or inputs.dim() == 0 or tuple(inputs.shape[1:]) != spec.input_shape:
            found = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ValueError(f"inputs have shape {found}; {spec.name} takes (batch, {str(spec.input_shape)[1:]}")
        for name in (*capture, *(i.hook_point for i in interventions)):
            spec.hook(name)
        for i in interventions:
            _validate(i, (inputs.shape[0], *spec.hook(i.hook_point).shape))
        return inputs.detach().to(torch.float32)


def _validate(intervention: Intervention, shape: tuple[int, ...]) -> None:
    i = intervention
    if i.kind not in ("zero", "set", "add", "scale"):
        raise ValueError(f"intervention kind {i.kind!r} is unknown: use zero, set, add or scale")
    if (i.value is None) != (i.kind == "zero"):
        raise ValueError(
            f"intervention {i.kind!r} on {i.hook_point}: `value` belongs to set, add and scale, not to zero"
        )
    if i.axis is not None:
        if not 1 <= i.axis < len(shape):
            raise ValueError(f"axis {i.axis} of {i.hook_point}: its activations have axes 1 to {len(shape) - 1}")
        if not i.indices or not all(0 <= index < shape[i.axis] for index in i.indices):
            raise ValueError(f"indices {i.indices} of axis {i.axis} of {i.hook_point}: use 0 to {shape[i.axis] - 1}")


def _intervene(intervention: Intervention) -> Callable[[Tensor, Any], Tensor]:
    i = intervention
    value = torch.zeros(()) if i.value is None else i.value  # None for "zero" alone: ``_validate`` saw to it

    def hook(activation: Tensor, hook: Any) -> Tensor:
        out = activation.clone()
        part = out if i.axis is None else out.index_select(i.axis, torch.tensor(i.indices))
        match i.kind:
            case "zero":
                new = torch.zeros_like(part)
            case "set":
                new = value.to(part.dtype).expand_as(part)
            case "add":
                new = part + value
            case "scale":
                new = part * value
        return new if i.axis is None else out.index_copy(i.axis, torch.tensor(i.indices), new)

    return hook


def _keep(into: dict[str, Tensor], name: str, *, detach: bool = True) -> Callable[[Tensor, Any], None]:
    def hook(activation: Tensor, hook: Any) -> None:
        into[name] = activation.detach().clone() if detach else activation

    return hook


def _signature(intervention: Intervention) -> tuple[Any, ...]:
    i = intervention
    return (i.hook_point, i.kind, None if i.value is None else tuple(i.value.shape), i.axis, len(i.indices))
