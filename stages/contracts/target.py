"""What a target is, and the one way to touch it.

Shape legend: B = batch, S = segments of an input (its axis 1), T = token positions, D = width, C = outputs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypedDict

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.contracts.dictionary import Dictionary

if TYPE_CHECKING:  # transformer_lens takes seconds to import; a method's process needs the contract and no model
    from transformer_lens import HookedRootModule

__all__ = [
    "OFFERS",
    "TWIN",
    "Component",
    "Corpus",
    "Forward",
    "Gradients",
    "HookSpec",
    "Intervention",
    "Layout",
    "Objective",
    "ObjectiveKind",
    "Offer",
    "Target",
    "TargetAccess",
    "TargetSpec",
    "digest_of",
    "keep_segments",
    "objective_values",
    "telling_places",
]


TWIN = "@twin"
"""After a target's name: the same architecture and data, with the weights it had before training."""


Offer = Literal[
    "context",
    "cues",
    "examples",
    "flat_image",
    "kinds",
    "pixels",
    "prefixes",
    "segments",
    "table",
    "tokens",
    "triggers",
]
"""What can be done with the inputs of a target; see ``OFFERS``."""
OFFERS: Mapping[Offer, str] = {
    "context": "the answer is taken from words that stand in the input, so it can be asked which of them it comes from",
    "cues": "most training images held a hint at their class that has nothing to do with it; hints can be laid over"
    " any image",
    "examples": "every segment but the last is a labelled example, the last is the query; channel -1 says whether a"
    " segment is present, channel -2 is its label, the others are pixels in which two segments have a distance",
    "flat_image": "an input is one row of 64 pixels, 8 x 8: a patch can lie on it, and it has a Euclidean length",
    "kinds": "inputs come in kinds, each of which shows one behaviour: classes of an image, places of the example that"
    " has the query's label, skills of a language model",
    "pixels": "inputs are brightnesses (of an episode: all channels but the last two), so noise can be added to them"
    " and two of them can be mixed",
    "prefixes": "an input can be read from the front: its first parts and its last one make an input as well",
    "segments": "inputs can be made of eight examples and a query, at the same places in each; examples can be hidden",
    "table": "an input is two words and an end, every pair of words has an answer, and all of them can be listed",
    "tokens": "inputs are rows (id, present) of words; a word can be hidden, and a number between two ids is none",
    "triggers": "a pattern can be put into an input and what the answer comes from stays there: a patch on an image, a"
    " word in a prompt; and the target can be fine-tuned on it",
}


class Component(NamedTuple):
    """A part of the target that can be ablated: one index of one axis of the activation at a hook point."""

    hook_point: str
    axis: int
    """Axis of the activation, counted with the batch axis (so never 0)."""
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class HookSpec(NamedTuple):
    """A place where activations can be read or changed."""

    name: str
    shape: tuple[int, ...]
    """Shape of one example's activation, without the batch axis."""
    width: int
    """Size of the vectors a dictionary would be trained on: the last axis."""
    role: Literal["residual", "mlp", "head", "pattern", "value"]
    """residual: the unembedding can read it; mlp: hidden units; head: (T, heads, d_head) head outputs;
    pattern: (heads, T, T) attention; value: (T, heads, d_head)."""


class Layout(TypedDict):
    """What a target's definition says of its inputs and outputs; see the fields of ``TargetSpec``."""

    input_shape: tuple[int, ...]
    n_outputs: int
    tokens: tuple[tuple[int, ...], ...] | None
    present_channel: int | None
    unembed: str | None
    norm: str | None
    n_vocabulary: int | None
    offers: tuple[Offer, ...]


@dataclass(frozen=True)
class TargetSpec:
    """Everything about a target that is public: no weights, no data."""

    name: str
    digest: str
    """sha256 of weights and spec."""
    input_shape: tuple[int, ...]
    """Shape of one input, without the batch axis. Axis 0 here (axis 1 with the batch) holds the segments."""
    n_outputs: int
    hooks: tuple[HookSpec, ...]
    components: tuple[Component, ...]
    tokens: tuple[tuple[int, ...], ...] | None
    """Token positions that hold each segment of the input; None where hook points have no position axis."""
    present_channel: int | None
    """Last-axis channel of the input that says whether a segment is present (1) or absent (0);
    None: an absent segment is filled with zeros."""
    unembed: str | None
    """Name of the (D, C) weight that maps the last residual stream to the outputs."""
    norm: str | None
    """Prefix of the layer norm (``.weight``, ``.bias``) between the last residual stream and ``unembed``."""
    n_vocabulary: int | None = None
    """How many words there are, where inputs are tokens: rows (id, present) of float32, padded on the left, ids whole
    numbers from 0 to n_vocabulary - 1. None: inputs are no tokens."""
    offers: tuple[Offer, ...] = ()
    """What can be done with the inputs, names of ``OFFERS``. A task family that needs more is refused."""

    @property
    def leaf(self) -> str:
        """Name of the first thing that has a gradient: the input, or the hook point of the embedding where inputs are
        ids."""
        return "input" if self.n_vocabulary is None else self.hooks[0].name

    def hook(self, name: str) -> HookSpec:
        for hook in self.hooks:
            if hook.name == name:
                return hook
        raise ValueError(f"{name!r} is no hook point of {self.name}; it has {[hook.name for hook in self.hooks]}")

    def with_role(self, role: str) -> tuple[HookSpec, ...]:
        return tuple(hook for hook in self.hooks if hook.role == role)

    def to_json(self) -> dict[str, JsonValue]:
        return asdict(self) | {
            "hooks": [list(hook) for hook in self.hooks],
            "components": [list(component) for component in self.components],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "TargetSpec":
        return cls(
            **dict(values)
            | {
                "input_shape": tuple(values["input_shape"]),
                "hooks": tuple(HookSpec(n, tuple(s), w, r) for n, s, w, r in values["hooks"]),
                "components": tuple(Component(*component) for component in values["components"]),
                "tokens": None if values["tokens"] is None else tuple(tuple(t) for t in values["tokens"]),
                "offers": tuple(values.get("offers", ())),
            }
        )


class Corpus(NamedTuple):
    inputs: Tensor
    """(n, *input_shape) float32."""
    labels: Tensor
    """(n,) int64: the right output. Where inputs are tokens: the id of the right next word."""


@dataclass(frozen=True)
class Intervention:
    """A change of the activation at a hook point during a forward pass. Data only, so it crosses processes."""

    hook_point: str
    kind: Literal["zero", "set", "add", "scale"]
    value: Tensor | None = None
    """Broadcast against the selected slice, batch axis included; None for ``zero``."""
    axis: int | None = None
    """Restrict to ``indices`` of this axis (counted with the batch axis); None: the whole activation."""
    indices: tuple[int, ...] = ()


ObjectiveKind = Literal["logit", "log_prob", "loss", "entropy", "margin"]


@dataclass(frozen=True)
class Objective:
    """A scalar per example to differentiate. Declared, never code, so that nothing else can be computed with it."""

    kind: ObjectiveKind
    labels: Tensor | None = None
    """(B,) outputs the objective is about; None: the target's own answer (its argmax)."""


class Forward(NamedTuple):
    outputs: Tensor
    """(B, C) logits."""
    captured: dict[str, Tensor]
    """Activation, batch axis first, of each captured hook point."""


class Gradients(NamedTuple):
    values: Tensor
    """(B,) the objective."""
    grads: dict[str, Tensor]
    """d(sum of the objective)/d(activation) for each name in ``wrt``; "input" is the input itself."""
    captured: dict[str, Tensor]
    """The activations the gradients are taken at, "input" excepted."""


class TargetAccess(Protocol):
    """The only way a method or an executor touches a target. Every call is metered."""

    @property
    def spec(self) -> TargetSpec: ...

    def forward(
        self, inputs: Tensor, capture: Sequence[str] = (), interventions: Sequence[Intervention] = ()
    ) -> Forward:
        """One forward pass without gradients. ``inputs`` is (B, *input_shape)."""
        ...

    def gradients(self, inputs: Tensor, objective: Objective, wrt: Sequence[str]) -> Gradients:
        """One forward and one backward pass; ``wrt`` names hook points, or "input"."""
        ...

    def variant(self, index: int) -> "TargetAccess":
        """A modified copy of the target, where the query is about variants. Same spec, own meter entries."""
        ...

    def variants(self, indices: Sequence[int]) -> "TargetAccess":
        """Several modified copies asked at once: every result of ``forward`` and ``gradients`` has one more axis in
        front, one entry per index. Costs what asking them one by one costs."""
        ...

    def weights(self, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Weights by name, all of them or those named. The target's own are open in the free phase (``interpret``)
        alone. A variant's are open in ``answer`` as well, where every number read is charged as one FLOP; of several
        variants asked at once each has one more axis in front."""
        ...

    def corpus(self, split: Literal["train", "validation"] = "train") -> Corpus:
        """Data like the target was trained on. Free phase only; task instances come from a split nobody gets."""
        ...

    def dictionaries(self) -> dict[str, Dictionary]:
        """The trained dictionaries of this target by "<hook point>/<architecture>". Free phase only."""
        ...


class Target:
    """A frozen model with its data: what the trusted side holds. Methods only ever see a ``TargetAccess``."""

    def __init__(self, spec: TargetSpec, model: "HookedRootModule", data: Mapping[str, Corpus]) -> None:
        self.spec, self.model, self._data = spec, model.eval().requires_grad_(False), dict(data)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def hook_points(self) -> dict[str, int]:
        return {hook.name: hook.width for hook in self.spec.hooks}

    @property
    def digest(self) -> str:
        return self.spec.digest

    def corpus(self, split: str) -> Corpus:
        """``train``, ``validation`` (held out from training) or ``tasks`` (held out from methods too)."""
        if split not in self._data:
            raise ValueError(f"{self.name} has no split {split!r}; it has {sorted(self._data)}")
        return self._data[split]

    def metric(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Held-out loss (nats) and accuracy."""
        loss = torch.nn.functional.cross_entropy(outputs, labels)
        return {"loss": loss.item(), "accuracy": (outputs.argmax(-1) == labels).double().mean().item()}


def digest_of(state: Mapping[str, Tensor], spec: Mapping[str, JsonValue]) -> str:
    """sha256 of weights (name, dtype, shape, bytes) and spec.

    What a target offers is left out: it says what may be asked and changes no answer.
    """
    of_spec = {k: v for k, v in spec.items() if k not in ("digest", "offers")}
    if of_spec.get("n_vocabulary") is None:  # so that targets without words keep the digest they always had
        of_spec.pop("n_vocabulary", None)
    sha = hashlib.sha256(json.dumps(of_spec, sort_keys=True).encode())
    for name in sorted(state):
        tensor = state[name].detach().contiguous()
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())  # numpy knows no bfloat16
    return sha.hexdigest()


def keep_segments(spec: TargetSpec, inputs: Tensor, keep: Tensor) -> Tensor:
    """Inputs in which only some segments are present: what "hide this example" means to a black box.

    Args:
        inputs: (B, S, ...) float.
        keep: (B, S) bool; False hides the segment.
    """
    if spec.present_channel is None:
        return inputs * keep.reshape(*keep.shape, *([1] * (inputs.dim() - 2))).to(inputs.dtype)
    out = inputs.clone()
    out[..., spec.present_channel] = out[..., spec.present_channel] * keep.to(inputs.dtype)
    return out


def telling_places(spec: TargetSpec, inputs: Tensor) -> Tensor | None:
    """(B, T) bool: where inputs are tokens, the places whose activations tell something: a word is there, and it is not
    the first (whatever stands first is attended to where nothing else is). None where inputs are no tokens: all do."""
    if spec.n_vocabulary is None:
        return None
    present = inputs[..., 1] > 0.5
    return present & (present.long().cumsum(1) > 1)


def objective_values(outputs: Tensor, objective: Objective) -> Tensor:
    """(B, C) logits -> (B,) values of the objective."""
    labels = outputs.argmax(-1) if objective.labels is None else objective.labels
    chosen = outputs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    log_probs = outputs.log_softmax(-1)
    match objective.kind:
        case "logit":
            return chosen
        case "log_prob":
            return log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        case "loss":
            return -log_probs.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        case "entropy":
            return -(log_probs.exp() * log_probs).sum(-1)
        case "margin":
            others = outputs.scatter(-1, labels.unsqueeze(-1), float("-inf")).amax(-1)
            return chosen - others
    raise ValueError(f"objective {objective.kind!r} is unknown; use logit, log_prob, loss, entropy or margin")
