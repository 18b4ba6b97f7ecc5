"""Transformers as graphs: embeddings, every head with its three inputs, every MLP; and the plain one tracr compiles to.

The hook points are TransformerLens's own, so that ``transformer_graph`` also declares a HookedTransformer whose cfg has
use_attn_result, use_split_qkv_input and use_hook_mlp_in.

Shape legend: B = batch, T = positions, D = width, H = heads, K = head size, M = hidden units.
"""

import torch
from torch import Tensor, nn

try:  # TransformerLens 4 keeps it only at the top
    from transformer_lens import HookedRootModule
except ImportError:  # 2.x has it only here
    from transformer_lens.hook_points import HookedRootModule
from transformer_lens.hook_points import HookPoint

from stages.circuits.engine.graph import Graph, Node

__all__ = ["PlainTransformer", "transformer_graph"]


def transformer_graph(n_layers: int, *, attention: bool = True, mlp: bool = True) -> Graph:
    """The graph of a pre-norm transformer with TransformerLens's hook points.

    Args:
        n_layers: blocks.
        attention: whether blocks have attention.
        mlp: whether blocks have an MLP.
    """
    nodes = [Node("embed", writes="hook_embed"), Node("pos", writes="hook_pos_embed")]
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        if attention:
            reads = {port: f"{block}.hook_{port}_input" for port in "qkv"}
            nodes.append(Node(f"a{layer}", reads=reads, writes=f"{block}.attn.hook_result", axis=2))
        if mlp:
            nodes.append(Node(f"m{layer}", reads=f"{block}.hook_mlp_in", writes=f"{block}.hook_mlp_out"))
    return Graph(*nodes, Node("out", reads=f"blocks.{n_layers - 1}.hook_resid_post"))


class Heads(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_head: int) -> None:
        super().__init__()
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.zeros(n_heads, d_model, d_head)) for _ in range(3))
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.zeros(n_heads, d_head)) for _ in range(3))
        self.W_O = nn.Parameter(torch.zeros(n_heads, d_head, d_model))
        self.b_O = nn.Parameter(torch.zeros(d_model))
        self.hook_result = HookPoint()  # [batch, pos, head_index, d_model]

    def forward(self, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor) -> Tensor:
        query = torch.einsum("bthd,hdk->bhtk", q_BTHD, self.W_Q) + self.b_Q.unsqueeze(1)
        key = torch.einsum("bthd,hdk->bhtk", k_BTHD, self.W_K) + self.b_K.unsqueeze(1)
        value = torch.einsum("bthd,hdk->bhtk", v_BTHD, self.W_V) + self.b_V.unsqueeze(1)
        pattern = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
        result = torch.einsum("bhtk,hkd->bthd", pattern @ value, self.W_O)
        return self.hook_result(result).sum(2) + self.b_O  # type: ignore[no-any-return]


class PlainBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_head: int, d_mlp: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.hook_q_input, self.hook_k_input, self.hook_v_input = HookPoint(), HookPoint(), HookPoint()
        self.attn = Heads(d_model, n_heads, d_head)
        self.W_in, self.W_out = nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)
        self.hook_mlp_in, self.hook_mlp_out = HookPoint(), HookPoint()  # [batch, pos, d_model]
        self.hook_resid_post = HookPoint()  # [batch, pos, d_model]

    def forward(self, x_BTD: Tensor) -> Tensor:
        copies = x_BTD.unsqueeze(2).expand(-1, -1, self.n_heads, -1)  # [batch, pos, head_index, d_model]
        x_BTD = x_BTD + self.attn(self.hook_q_input(copies), self.hook_k_input(copies), self.hook_v_input(copies))
        hidden = torch.relu(self.W_in(self.hook_mlp_in(x_BTD)))
        return self.hook_resid_post(x_BTD + self.hook_mlp_out(self.W_out(hidden)))  # type: ignore[no-any-return]


class PlainTransformer(HookedRootModule):
    """Tokens (B, T) -> (B, T - 1, C): no layer norm, no causal mask, the first position (BOS) left out of the
    outputs."""

    def __init__(
        self, n_layers: int, n_heads: int, d_model: int, d_head: int, d_mlp: int, vocab: int, length: int, outputs: int
    ) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(vocab, d_model), nn.Embedding(length, d_model)
        self.hook_embed, self.hook_pos_embed = HookPoint(), HookPoint()  # [batch, pos, d_model]
        self.blocks = nn.ModuleList(PlainBlock(d_model, n_heads, d_head, d_mlp) for _ in range(n_layers))
        self.unembed = nn.Linear(d_model, outputs, bias=False)
        self.setup()

    def circuit(self) -> Graph:
        return transformer_graph(len(self.blocks))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        places = torch.arange(tokens_BT.shape[1]).expand_as(tokens_BT)
        x_BTD = self.hook_embed(self.embed(tokens_BT)) + self.hook_pos_embed(self.pos(places))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.unembed(x_BTD)[:, 1:]  # type: ignore[no-any-return]
