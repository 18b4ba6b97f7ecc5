"""An in-context learner on real images: a two-layer causal transformer that reads a labelling off eight examples.

Shape legend: B = batch, S = rows of an episode (9), T = tokens (17: image, label, ..., query image), D = d_model (64),
H = heads (4), K = d_head (16), M = d_mlp (256), C = labels (4).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.contracts.target import Component, Corpus, HookSpec, Layout
from stages.targets.definition import train_loop
from stages.targets.few_shot_data import (
    N_LABELS,
    N_SHOTS,
    PIXELS,
    digit_splits,
    disguised,
    draw_episodes,
    episode_labels,
)

__all__ = ["DigitsFewShot", "FewShotTransformer"]

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, D_MLP = 2, 64, 4, 16, 256
N_TOKENS = 2 * N_SHOTS + 1
BATCH = 64


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_Q = nn.Linear(D_MODEL, N_HEADS * D_HEAD)
        self.W_K = nn.Linear(D_MODEL, N_HEADS * D_HEAD)
        self.W_V = nn.Linear(D_MODEL, N_HEADS * D_HEAD)
        self.W_O = nn.Linear(N_HEADS * D_HEAD, D_MODEL)
        self.hook_v = HookPoint()  # [batch, pos, head_index, d_head]
        self.hook_pattern = HookPoint()  # [batch, head_index, query_pos, key_pos]
        self.hook_z = HookPoint()  # [batch, pos, head_index, d_head]

    def forward(self, x_BTD: Tensor, allowed_BTT: Tensor) -> Tensor:
        batch, tokens, _ = x_BTD.shape
        q_BHTK = self.W_Q(x_BTD).view(batch, tokens, N_HEADS, D_HEAD).transpose(1, 2)
        k_BHTK = self.W_K(x_BTD).view(batch, tokens, N_HEADS, D_HEAD).transpose(1, 2)
        v_BTHK = self.hook_v(self.W_V(x_BTD).view(batch, tokens, N_HEADS, D_HEAD))
        scores = q_BHTK @ k_BHTK.transpose(-1, -2) * D_HEAD**-0.5
        scores = scores.masked_fill(~allowed_BTT.unsqueeze(1), -1e9)
        pattern_BHTT = self.hook_pattern(scores.softmax(-1))
        z_BTHK = self.hook_z((pattern_BHTT @ v_BTHK.transpose(1, 2)).transpose(1, 2))
        return self.W_O(z_BTHK.flatten(2))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.W_in = nn.Linear(D_MODEL, D_MLP)
        self.W_out = nn.Linear(D_MLP, D_MODEL)
        self.hook_post = HookPoint()  # [batch, pos, d_mlp]

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.W_out(self.hook_post(F.relu(self.W_in(x_BTD))))  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(D_MODEL), nn.LayerNorm(D_MODEL)
        self.attn, self.mlp = Attention(), Mlp()
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]

    def forward(self, x_BTD: Tensor, allowed_BTT: Tensor) -> Tensor:
        x_BTD = x_BTD + self.attn(self.ln1(x_BTD), allowed_BTT)
        return self.hook_resid_post(x_BTD + self.mlp(self.ln2(x_BTD)))  # type: ignore[no-any-return]


class FewShotTransformer(HookedRootModule):
    """inputs (B, 9, 66) -> logits (B, 4) of the query's label."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_image = nn.Linear(PIXELS, D_MODEL)
        self.embed_label = nn.Parameter(torch.zeros(N_LABELS, D_MODEL))
        self.pos_embed = nn.Parameter(torch.zeros(N_TOKENS, D_MODEL))
        self.hook_embed = HookPoint()  # [batch, pos, d_model]
        self.blocks = nn.ModuleList(Block() for _ in range(N_LAYERS))
        self.ln_final = nn.LayerNorm(D_MODEL)
        self.unembed = nn.Linear(D_MODEL, N_LABELS)
        causal = torch.ones(N_TOKENS, N_TOKENS, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        self.register_buffer("diagonal", torch.eye(N_TOKENS, dtype=torch.bool), persistent=False)
        self.setup()

    def logits_everywhere(self, inputs_BSX: Tensor) -> Tensor:
        """(B, S, C) logits at every image token; training uses them all."""
        batch = inputs_BSX.shape[0]
        images_BSD = self.embed_image(inputs_BSX[..., :PIXELS])
        # One-hot times table rather than indexing: the label channel stays differentiable and the cost is plain.
        one_hot = F.one_hot(inputs_BSX[:, :-1, PIXELS].round().long().clamp(0, N_LABELS - 1), N_LABELS)
        labels_BSD = one_hot.to(images_BSD.dtype) @ self.embed_label
        pairs = torch.stack([images_BSD[:, :-1], labels_BSD], dim=2).reshape(batch, 2 * N_SHOTS, D_MODEL)
        x_BTD = self.hook_embed(torch.cat([pairs, images_BSD[:, -1:]], dim=1) + self.pos_embed)
        present_BS = inputs_BSX[..., PIXELS + 1] > 0.5
        present_BT = torch.cat([present_BS[:, :-1].repeat_interleave(2, dim=1), present_BS[:, -1:]], dim=1)
        # A hidden example cannot be attended to by anyone but itself (a row with no key at all has no softmax).
        allowed_BTT = self.causal & (present_BT.unsqueeze(1) | self.diagonal)
        for block in self.blocks:
            x_BTD = block(x_BTD, allowed_BTT)
        return self.unembed(self.ln_final(x_BTD[:, ::2]))  # type: ignore[no-any-return]

    def forward(self, inputs_BSX: Tensor) -> Tensor:
        return self.logits_everywhere(inputs_BSX)[:, -1]


class DigitsFewShot:
    """Zoo entry: see ``TargetDefinition``."""

    minimum: Mapping[str, float] = {"accuracy": 0.93}

    def build(self, generator: torch.Generator) -> HookedRootModule:
        model = FewShotTransformer()
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                parameter.data.normal_(0.0, 0.3 if "embed" in name else parameter.shape[1] ** -0.5, generator=generator)
            elif "ln" not in name:
                parameter.data.zero_()
        return model

    def data(self, seed: int) -> dict[str, Corpus]:
        return digit_splits(seed)

    def disguise(self, images: Corpus, generator: torch.Generator) -> Corpus:
        return disguised(images, generator)

    def sample(self, data: Mapping[str, Corpus], split: str, n: int, generator: torch.Generator) -> Corpus:
        return draw_episodes(data[split], n, generator)

    def fit(
        self,
        model: HookedRootModule,
        data: Mapping[str, Corpus],
        steps: int,
        generator: torch.Generator,
        log: Callable[[dict[str, float], int], None],
    ) -> None:
        def loss_of(_: int) -> Tensor:
            episodes = draw_episodes(data["train"], BATCH, generator)
            logits = model.logits_everywhere(episodes.inputs)
            every_row = F.cross_entropy(logits.flatten(0, 1), episode_labels(*episodes).flatten())
            # The query counts double: without it two of four learning rates stayed on a plateau at 80% (docs/LOG.md).
            return every_row + F.cross_entropy(logits[:, -1], episodes.labels)

        train_loop(model, loss_of, steps, 1.5e-3, log)

    def hooks(self) -> tuple[HookSpec, ...]:
        hooks = [HookSpec("hook_embed", (N_TOKENS, D_MODEL), D_MODEL, "residual")]
        for layer in range(N_LAYERS):
            block = f"blocks.{layer}"
            hooks += [
                HookSpec(f"{block}.attn.hook_v", (N_TOKENS, N_HEADS, D_HEAD), D_HEAD, "value"),
                HookSpec(f"{block}.attn.hook_pattern", (N_HEADS, N_TOKENS, N_TOKENS), N_TOKENS, "pattern"),
                HookSpec(f"{block}.attn.hook_z", (N_TOKENS, N_HEADS, D_HEAD), D_HEAD, "head"),
                HookSpec(f"{block}.mlp.hook_post", (N_TOKENS, D_MLP), D_MLP, "mlp"),
                HookSpec(f"{block}.hook_resid_post", (N_TOKENS, D_MODEL), D_MODEL, "residual"),
            ]
        return tuple(hooks)

    def components(self) -> tuple[Component, ...]:
        heads = [
            Component(f"blocks.{layer}.attn.hook_z", 2, head) for layer in range(N_LAYERS) for head in range(N_HEADS)
        ]
        tokens = [Component("blocks.0.hook_resid_post", 1, token) for token in range(N_TOKENS)]
        return tuple(heads + tokens)

    def layout(self) -> Layout:
        return {
            "input_shape": (N_SHOTS + 1, PIXELS + 2),
            "n_outputs": N_LABELS,
            "tokens": (*((2 * shot, 2 * shot + 1) for shot in range(N_SHOTS)), (2 * N_SHOTS,)),
            "present_channel": PIXELS + 1,
            "unembed": "unembed.weight",
            "norm": "ln_final",
            "n_vocabulary": None,
            "offers": ("examples", "kinds", "pixels", "prefixes", "segments"),
        }
