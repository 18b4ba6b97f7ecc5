"""What may be asked of a target: the same checks wherever a call is made, recorded or run."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from stages.contracts.target import Intervention, Objective, TargetSpec

__all__ = ["check_call", "check_names", "check_objective", "check_tokens", "closed"]

KINDS = ("zero", "set", "add", "scale")


def closed(what: str) -> str:
    """What is said of a thing that only the free phase may ask for."""
    beside = "; a variant's weights, target.variant(i).weights(), are open in answer() too" * what.startswith("weights")
    return f"{what} is open in interpret() only: put what answer() needs into the Interpretation{beside}"


def check_names(names: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """Names of the weights that are read: all of them where none are named. Raise ValueError for others, and for one
    that is named twice."""
    if names is None:
        return list(known)
    asked = [str(name) for name in names]
    for name in asked:
        if name not in known:
            raise ValueError(f"weight {name[:60]!r} does not exist; the variant has {', '.join(known)}")
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"weights({asked}): name at least one, and each once")
    return asked


def check_call(spec: TargetSpec, inputs: Any, capture: Sequence[str], interventions: Sequence[Intervention]) -> None:
    """Raise ValueError unless the target takes these inputs, hook points and interventions."""
    if not isinstance(inputs, Tensor) or inputs.dim() == 0 or tuple(inputs.shape[1:]) != spec.input_shape:
        found = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        raise ValueError(f"inputs have shape {found}; {spec.name} takes (batch, {str(spec.input_shape)[1:]}")
    for name in (*capture, *(i.hook_point for i in interventions)):
        spec.hook(name)
    for i in interventions:
        _check_intervention(i, (inputs.shape[0], *spec.hook(i.hook_point).shape))


def check_tokens(spec: TargetSpec, inputs: Tensor) -> None:
    """Raise ValueError unless every present token is a word: looks at values, so it is for inputs that have some.

    Ids of absent tokens may be anything. Targets whose inputs are no tokens take every value.
    """
    if spec.n_vocabulary is None or inputs.numel() == 0:
        return
    ids, present = inputs[..., 0].detach(), inputs[..., 1].detach()
    if not bool(((present == 0) | (present == 1)).all()):
        value = present[(present != 0) & (present != 1)][0].item()
        raise ValueError(
            f"a token has presence {value:g}: channel 1 is 1 (present) or 0 (absent); keep_segments sets it"
        )
    if not bool(present[:, -1].all()):
        row = int((present[:, -1] == 0).nonzero()[0])
        raise ValueError(
            f"the last token of input {row} is absent: the answer is read there, so pad on the left and keep the last"
        )
    wrong = (present == 1) & ~((ids >= 0) & (ids < spec.n_vocabulary) & (ids == ids.round()))
    if bool(wrong.any()):
        row, place = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"token {place} of input {row} has id {ids[row, place].item():g}: ids of {spec.name} are whole numbers from"
            f" 0 to {spec.n_vocabulary - 1}; to change what a word means to the target, set {spec.leaf!r} instead"
        )


def check_objective(spec: TargetSpec, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> None:
    """Raise ValueError unless the objective fits the inputs and there is something to differentiate by."""
    if objective.labels is not None and objective.labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"objective.labels has shape {tuple(objective.labels.shape)}; it needs one label per input:"
            f" ({inputs.shape[0]},)"
        )
    if not wrt:
        raise ValueError(f'wrt is empty: name hook points, or "{spec.leaf}"')
    if "input" in wrt and spec.leaf != "input":
        raise ValueError(
            f'wrt "input": an input of {spec.name} is a row of word ids, which have no gradient; use wrt'
            f' "{spec.leaf}", the embedding of the words'
        )


def _check_intervention(intervention: Intervention, shape: tuple[int, ...]) -> None:
    i = intervention
    if i.kind not in KINDS:
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
