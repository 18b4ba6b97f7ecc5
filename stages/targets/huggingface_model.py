"""Any causal language model of Hugging Face's transformers as a target of words.

Hook points are put on the modules where every decoder has them: the residual stream after each layer, the units that
an MLP's last matrix reads, the head outputs that an attention's last matrix reads. They have TransformerLens's names.
Whether a model does what a target of words must do is tried when it is read: a word that is hidden has to be as good as
one that is not there.

Shape legend: B = batch, T = places, D = width, H = heads, K = width of a head, F = units of an MLP, C = words.
"""

import inspect
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint
from transformers import PreTrainedModel

from stages.contracts.target import Component, HookSpec, Layout
from stages.errors import UserError

__all__ = ["HuggingFaceModel"]

LAST_MATRIX = (
    "o_proj", "out_proj", "c_proj", "down_proj", "dense", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo", "out_lin",
)  # fmt: skip
"""What the matrices that write into the residual stream are called."""
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Hidden and dropped words may differ by this, as a share of the largest difference that the words make."""


class _Block(nn.Module):
    """The hook points of one layer; the layer itself stays where it is."""

    def __init__(self, heads: bool, units: bool) -> None:
        super().__init__()
        self.attn, self.mlp = nn.Module(), nn.Module()
        if heads:
            self.attn.hook_z = HookPoint()
        if units:
            self.mlp.hook_post = HookPoint()
        self.hook_resid_post = HookPoint()


class HuggingFaceModel(HookedRootModule):
    """inputs (B, T, 2) of (id, present) -> logits (B, C) at the last place.

    Args:
        model: a causal language model, in evaluation mode and with eager attention.
        n_places: T.

    Raises:
        UserError: its layers are not found; says what is missing.
    """

    def __init__(self, model: PreTrainedModel, n_places: int) -> None:
        super().__init__()
        self.model, self._n_places = model, n_places
        self.eval()
        self._takes = set(inspect.signature(model.forward).parameters)
        config = model.config.get_text_config(decoder=True)
        self._width, self._n_layers, self._n_heads = config.hidden_size, config.num_hidden_layers, _heads(config)
        self._n_words = _rows(model.get_input_embeddings())
        self.hook_embed = HookPoint()
        model.get_input_embeddings().register_forward_hook(lambda _module, _args, out: self.hook_embed(out))
        layers = _layers(model, self._n_layers)
        self._units: list[int | None] = []
        self._head_widths: list[int | None] = []
        blocks = []
        for layer in layers:
            attention, mlp = (
                _last_matrix(layer, ("attn", "attention")),
                _last_matrix(layer, ("mlp", "feed", "ffn", "fc2")),
            )
            inside = None if attention is None else _reads(attention)
            width = inside // self._n_heads if inside and inside % self._n_heads == 0 else None
            self._head_widths.append(width)
            self._units.append(None if mlp is None else _reads(mlp))
            block = _Block(width is not None, mlp is not None)
            if attention is not None and width is not None:
                attention.register_forward_pre_hook(partial(_by_head, block.attn.hook_z, self._n_heads))
            if mlp is not None:
                mlp.register_forward_pre_hook(partial(_before, block.mlp.hook_post))
            layer.register_forward_hook(partial(_after, block.hook_resid_post))
            blocks.append(block)
        self.blocks = nn.ModuleList(blocks)
        self.setup()

    def forward(self, inputs_BT2: Tensor) -> Tensor:
        present_BT = inputs_BT2[..., 1] > 0.5
        ids_BT = torch.where(present_BT, inputs_BT2[..., 0], 0.0).long()
        device = next(self.model.parameters()).device
        if device.type == "cuda":  # the only place that moves inputs there and outputs back
            return self.logits(ids_BT.to(device), present_BT.long().to(device)).cpu()
        return self.logits(ids_BT, present_BT.long())

    def logits(self, ids_BT: Tensor, present_BT: Tensor) -> Tensor:
        """(B, C) at the last place. Positions are counted over the words that are present."""
        given: dict[str, Any] = {"attention_mask": present_BT}
        if "position_ids" in self._takes:
            given["position_ids"] = (present_BT.cumsum(-1) - 1).clamp(min=0)
        if "use_cache" in self._takes:
            given["use_cache"] = False
        if "logits_to_keep" in self._takes:
            given["logits_to_keep"] = 1
        out: Tensor = self.model(ids_BT, **given).logits[:, -1]
        return out

    def check(self) -> None:
        """Try on random words that hiding words equals dropping them, and which hook points are passed once, as wide as
        they should be; those of heads and of units that are not (an expert that was not chosen) are left out.

        Raises:
            UserError: an input is longer than what the model was made for, hidden words are not dropped, or a layer is
                not passed; says by how much, or which.
        """
        longest = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if longest and self._n_places > longest:
            raise UserError(
                f"n_places is {self._n_places}, and this model was made for at most {longest} words: lower n_places in"
                " params/targets.yaml"
            )
        places, generator = min(self._n_places, 12), torch.Generator().manual_seed(0)
        ids = torch.randint(self._n_words, (2, places), generator=generator)
        present = torch.ones(2, places, dtype=torch.int64)
        present[:, places // 3 : places // 2] = 0
        passed: list[tuple[str, tuple[int, ...]]] = []

        def pass_by(value: Tensor, hook: HookPoint) -> Tensor:
            passed.append((str(hook.name), tuple(value.shape)))
            return value

        names = [spec.name for spec in self.hook_specs()]
        ids, present = ids.to(self.model.device), present.to(self.model.device)
        with torch.no_grad():
            with self.hooks(fwd_hooks=[(name, pass_by) for name in names]):
                hidden = self.logits(ids, present)
            dropped = self.logits(ids[:, present[0] == 1], present[:, present[0] == 1])
            full = self.logits(ids, torch.ones_like(present))
        off, apart = float((hidden - dropped).abs().max()), float((full - dropped).abs().max())
        kind = type(self.model).__name__
        allowed = TOLERANCE[self.model.dtype] * max(apart, 1e-3)
        if not off <= allowed:
            raise UserError(
                f"{kind} cannot be a target of words: hidden words still change its logits by up to {off:.2g}, where"
                f" {allowed:.2g} is allowed; it has no attention mask that drops them"
            )
        for spec in self.hook_specs():
            seen = [shape for name, shape in passed if name == spec.name]
            if seen != [(2, places, *spec.shape[1:])]:
                if spec.role == "residual":
                    raise UserError(
                        f"{kind} passes {spec.name} with {seen or 'nothing'}, not once with (batch, places,"
                        f" {spec.width}): its layers are not called one by one, so they cannot be hooked"
                    )
                at = int(spec.name.split(".")[1])
                (self._head_widths if spec.role == "head" else self._units)[at] = None

    def hook_specs(self) -> tuple[HookSpec, ...]:
        """Its hook points, the embedding first: that is where gradients begin."""
        places, width = self._n_places, self._width
        found = [HookSpec("hook_embed", (places, width), width, "residual")]
        for i, (head, units) in enumerate(zip(self._head_widths, self._units, strict=True)):
            if head is not None:
                found.append(HookSpec(f"blocks.{i}.attn.hook_z", (places, self._n_heads, head), head, "head"))
            if units is not None:
                found.append(HookSpec(f"blocks.{i}.mlp.hook_post", (places, units), units, "mlp"))
            found.append(HookSpec(f"blocks.{i}.hook_resid_post", (places, width), width, "residual"))
        return tuple(found)

    def components(self) -> tuple[Component, ...]:
        """Every head of every layer whose heads are found."""
        return tuple(
            Component(f"blocks.{i}.attn.hook_z", 2, head)
            for i, width in enumerate(self._head_widths)
            if width is not None
            for head in range(self._n_heads)
        )

    def layout(self) -> Layout:
        """Every word is a segment of its own."""
        unembed: nn.Module | None = self.model.get_output_embeddings()
        name = next((key for key, module in self.named_modules() if module is unembed), None)
        return {
            "input_shape": (self._n_places, 2),
            "n_outputs": self._n_words if unembed is None else _rows(unembed),
            "tokens": tuple((place,) for place in range(self._n_places)),
            "present_channel": 1,
            "unembed": None if name is None else f"{name}.weight",
            "norm": None,
            "n_vocabulary": self._n_words,
            "offers": ("context", "segments", "tokens"),
        }


def _heads(config: Any) -> int:
    """Of the queries; 1 where nothing is said, as in a model that keeps a state instead of attending."""
    return int(getattr(config, "num_attention_heads", 1) or 1)


def _layers(model: PreTrainedModel, n_layers: int) -> nn.ModuleList:
    """The list of the decoder's layers: of all lists of as many modules, the one with most weights."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of {n_layers} layers, as its configuration says: it cannot be hooked"
        )
    return max(lists, key=lambda one: sum(weight.numel() for weight in one.parameters()))


def _last_matrix(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The matrix by which a part of a layer (whose class or name says so) writes into the residual stream."""
    for name, part in layer.named_children():
        said = f"{name} {type(part).__name__}".lower()
        if any(one in said for one in names) and "norm" not in said:
            found: list[nn.Module] = [
                of
                for key, of in part.named_modules()
                if (key.rpartition(".")[2] or name) in LAST_MATRIX and _is_matrix(of)
            ]
            if found:
                return found[-1]
    return None


def _rows(module: nn.Module) -> int:
    return int(module.state_dict()["weight"].shape[0])


def _is_matrix(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 2


def _reads(matrix: nn.Module) -> int:
    """Width of what a matrix reads: transformers' Conv1D has its weight the other way round."""
    shape = tuple(matrix.state_dict()["weight"].shape)
    return int(shape[0] if type(matrix).__name__ == "Conv1D" else shape[1])


def _before(point: HookPoint, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (point(args[0]), *args[1:])


def _by_head(point: HookPoint, n_heads: int, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    flat = args[0]
    return (point(flat.unflatten(-1, (n_heads, -1))).flatten(-2), *args[1:])


def _after(point: HookPoint, _module: nn.Module, _args: tuple[Any, ...], out: Any) -> Any:
    return (point(out[0]), *out[1:]) if isinstance(out, tuple) else point(out)
