"""Transformers over words as targets: the only file that knows ``HookedTransformer``.

An input is a row (id, present) for each of T places, float32, padded on the left. A word that is absent is as if it
were not there: nothing attends to it, and the words after it move up. The answer is read at the last place.

Shape legend: B = batch, T = places, D = d_model, H = heads, K = d_head, C = outputs.
"""

import warnings
from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

from stages.contracts.target import Component, HookSpec, Layout, Offer

__all__ = ["Architecture", "TokenModel", "token_components", "token_hooks", "token_layout", "token_rows"]

EMBEDDING = "hook_embed"


class Architecture(TypedDict):
    """Sizes of a transformer trained here; names as in ``HookedTransformerConfig``."""

    n_layers: int
    d_model: int
    n_heads: int
    d_mlp: int | None
    """Hidden ReLU units of each layer; None: attention only."""
    n_ctx: int
    d_vocab: int
    d_vocab_out: int
    normalization_type: Literal["LN", "RMS"] | None
    positional_embedding_type: Literal["standard", "rotary", "shortformer"]


class TokenModel(HookedTransformer):
    """inputs (B, T, 2) -> logits (B, C) at the last place. Hook points and weights have the names of TransformerLens.

    Its state is its weights alone: masks and tables of rotations follow from the configuration.
    """

    def __init__(self, config: HookedTransformerConfig) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it says that it will be gone in the next version
            super().__init__(config, move_to_device=False)
        for module in self.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)

    @classmethod
    def of(cls, architecture: Architecture, generator: torch.Generator) -> "TokenModel":
        """A fresh model. What is added to the residual stream starts smaller the more layers add to it, as in Radford
        et al. 2019."""
        d_head = architecture["d_model"] // architecture["n_heads"]
        rotary = architecture["positional_embedding_type"] == "rotary"
        config = HookedTransformerConfig(
            **architecture,
            d_head=d_head,
            attn_only=architecture["d_mlp"] is None,
            act_fn=None if architecture["d_mlp"] is None else "relu",
            rotary_dim=d_head if rotary else None,
            default_prepend_bos=False,
            init_weights=False,
            device="cpu",
        )
        model = cls(config)
        model.draw_weights(generator)
        return model

    def draw_weights(self, generator: torch.Generator) -> None:
        """Draw every weight anew, in the order of ``named_parameters``."""
        into_residual = (2 * self.cfg.n_layers) ** -0.5
        for name, parameter in self.named_parameters():
            kind = name.rpartition(".")[2]
            fan_in = self.cfg.d_mlp if kind == "W_out" else self.cfg.d_model
            match kind:
                case "W_E":
                    parameter.data.normal_(0.0, 0.5, generator=generator)
                case "W_pos":
                    parameter.data.normal_(0.0, 0.1, generator=generator)
                case "W_O" | "W_out":
                    parameter.data.normal_(0.0, fan_in**-0.5 * into_residual, generator=generator)
                case "w":
                    parameter.data.fill_(1.0)
                case _ if kind.startswith("W_"):
                    parameter.data.normal_(0.0, fan_in**-0.5, generator=generator)
                case _:
                    parameter.data.zero_()

    def forward(self, inputs_BT2: Tensor) -> Tensor:
        present_BT = inputs_BT2[..., 1] > 0.5
        ids_BT = torch.where(present_BT, inputs_BT2[..., 0], 0.0).long()  # what stands at an absent place says nothing
        return self._read_out(self._residual(ids_BT, present_BT.long())[:, -1:]).squeeze(1)

    def logits_everywhere(self, ids_BT: Tensor, present_BT: Tensor | None = None) -> Tensor:
        """(B, T, C) logits at every place, for training.

        Args:
            ids_BT: int64.
            present_BT: int64, 1 where a word is; None: everywhere.
        """
        return self._read_out(self._residual(ids_BT, present_BT))

    def pointwise_flops(self) -> int:
        """FLOPs of one input that are no matrix product, counted by hand at the prices of docs/prices.md.

        Norms are 7 per number (4 where no mean is taken off) and 2 per place, and an attention norms what its queries,
        keys and values read each on its own. A score of attention is 9: scaled, masked, softmax at 5, and asked whether
        it is a number. Then biases, rotations, and what is added to the residual stream.
        """
        cfg = self.cfg
        places, width, heads, per_head = cfg.n_ctx, cfg.d_model, cfg.n_heads, cfg.d_head
        norm = {None: 0, "RMS": 4 * width + 2, "LN": 7 * width + 2}[cfg.normalization_type]
        rotation = 2 * (7 * width // 2 + 2 * per_head + 4) if cfg.positional_embedding_type == "rotary" else 0
        attention = 3 * norm + 3 * width + rotation + 2 * width  # norms, biases in, rotations, bias out and sum
        mlp = 0 if cfg.attn_only or cfg.d_mlp is None else norm + 2 * cfg.d_mlp + 2 * width  # biases, ReLU, sum
        scores = 9 * heads * places**2 + places**2
        read_in = width + 4 + (0 if cfg.positional_embedding_type == "rotary" else 2 * width + 4)
        layer = places * (attention + mlp) + scores
        return int(places * read_in + cfg.n_layers * layer + norm + cfg.d_vocab_out)

    def _residual(self, ids_BT: Tensor, present_BT: Tensor | None) -> Tensor:
        out: Tensor = super().forward(ids_BT, attention_mask=present_BT, stop_at_layer=self.cfg.n_layers)
        return out

    def _read_out(self, residual: Tensor) -> Tensor:
        out: Tensor = self.unembed(residual if self.cfg.normalization_type is None else self.ln_final(residual))
        return out


def token_rows(sequences: Sequence[Sequence[int]], n_places: int) -> Tensor:
    """Ids of each sequence -> (n, T, 2) float32 inputs, padded on the left.

    Raises:
        ValueError: a sequence is empty or longer than the places there are.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    if len(lengths) and not 1 <= int(lengths.min()) <= int(lengths.max()) <= n_places:
        bad = next(int(n) for n in lengths if not 1 <= n <= n_places)
        raise ValueError(
            f"a sequence of {bad} tokens does not fit: a target of {n_places} places takes 1 to {n_places}"
        )
    out = torch.zeros(len(sequences), n_places, 2)
    present = torch.arange(n_places) >= n_places - lengths.unsqueeze(1)
    out[..., 1] = present.float()
    out[..., 0][present] = torch.tensor([float(id_) for sequence in sequences for id_ in sequence])
    return out


def token_hooks(architecture: Architecture) -> tuple[HookSpec, ...]:
    """The embedding first: it is where gradients of a target of words begin."""
    n_places, width, n_heads = architecture["n_ctx"], architecture["d_model"], architecture["n_heads"]
    d_head, d_mlp = width // n_heads, architecture["d_mlp"]
    hooks = [HookSpec(EMBEDDING, (n_places, width), width, "residual")]
    for layer in range(architecture["n_layers"]):
        block = f"blocks.{layer}"
        hooks += [
            HookSpec(f"{block}.attn.hook_v", (n_places, n_heads, d_head), d_head, "value"),
            HookSpec(f"{block}.attn.hook_pattern", (n_heads, n_places, n_places), n_places, "pattern"),
            HookSpec(f"{block}.attn.hook_z", (n_places, n_heads, d_head), d_head, "head"),
        ]
        if d_mlp is not None:
            hooks.append(HookSpec(f"{block}.mlp.hook_post", (n_places, d_mlp), d_mlp, "mlp"))
        hooks.append(HookSpec(f"{block}.hook_resid_post", (n_places, width), width, "residual"))
    return tuple(hooks)


def token_components(architecture: Architecture) -> tuple[Component, ...]:
    """Every head."""
    return tuple(
        Component(f"blocks.{layer}.attn.hook_z", 2, head)
        for layer in range(architecture["n_layers"])
        for head in range(architecture["n_heads"])
    )


def token_layout(architecture: Architecture, offers: tuple[Offer, ...] = ("tokens",)) -> Layout:
    """Every word is a segment of its own, at one place."""
    return {
        "input_shape": (architecture["n_ctx"], 2),
        "n_outputs": architecture["d_vocab_out"],
        "tokens": tuple((place,) for place in range(architecture["n_ctx"])),
        "present_channel": 1,
        "unembed": "unembed.W_U",
        "norm": None if architecture["normalization_type"] is None else "ln_final",
        "n_vocabulary": architecture["d_vocab"],
        "offers": offers,
    }
