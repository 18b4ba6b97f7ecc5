"""A dictionary's latents as nodes, next to heads and MLPs in one graph, with the error term kept.

What a component writes, x, is split into sum_f z_f W_f, one node per latent f, and the error x - decode(encode(x)), one
node; the decoder's bias is a constant and is never ablated. The sum is x exactly, whatever the dictionary's quality, so
that the full graph is still the full module. Latents and error share the component's input edges: an edge into the
component feeds all of them, an edge out of it belongs to one.

After sparse feature circuits (Marks et al. 2024), where the error is a node too.

Shape legend: B = batch, D = width, F = latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stages.circuits.engine.graph import Graph, Node, Part
from stages.errors import UserError

__all__ = ["with_latents"]

Encode = Callable[[Tensor], Tensor]
"""(..., D) -> (..., F)."""


def with_latents(
    graph: Graph,
    name: str,
    encode: Encode,
    decode: Encode,
    *,
    width: int,
    n_latents: int,
    keep: Sequence[int] | None = None,
) -> Graph:
    """The graph with a node split into a dictionary's latents ("name.3") and the error ("name.error").

    Args:
        graph: the declaration.
        name: a node without units of its own that writes vectors of ``width``.
        encode: (..., width) -> (..., n_latents).
        decode: affine map back, (..., n_latents) -> (..., width).
        width: of the vectors.
        n_latents: of the dictionary.
        keep: latents that become nodes; what the others say goes to the error. None: all.

    Raises:
        UserError: the node does not exist, has units or parts already, or decode is not affine.
    """
    if name not in [node.name for node in graph.nodes]:
        raise UserError(f"no node is called {name!r}: there are {', '.join(node.name for node in graph.nodes)}")
    node = graph[name]
    if node.writes is None or node.axis is not None or node.part is not None:
        raise UserError(
            f"node {name!r} cannot be split: it must write one vector per position and have no units or parts"
        )
    chosen = list(range(n_latents)) if keep is None else sorted(set(keep))
    if not chosen or not 0 <= chosen[0] <= chosen[-1] < n_latents:
        raise UserError(f"latents to keep are {chosen[:5]}: give some between 0 and {n_latents - 1}")
    bias = decode(torch.zeros(1, n_latents))[0]
    decoder = decode(torch.eye(n_latents)) - bias
    probe = torch.linspace(0.0, 2.0, n_latents).unsqueeze(0)
    if decoder.shape != (n_latents, width) or not torch.allclose(
        decode(probe)[0], probe[0] @ decoder + bias, rtol=1e-3, atol=1e-4
    ):
        raise UserError(
            f"decode is not an affine map from {n_latents} latents to {width} numbers: its latents do not add up"
        )
    index, shown = torch.tensor(chosen), decoder[chosen]

    def latents(x: Tensor) -> Tensor:
        # The dictionary's dtype inside, the module's outside.
        return encode(x.to(decoder.dtype))[..., index].to(x.dtype)

    def error(x: Tensor) -> Tensor:
        return x - latents(x) @ shown.to(x.dtype) - bias.to(x.dtype)

    parts = (
        replace(node, part=Part(latents, shown)),
        Node(f"{name}.error", writes=node.writes, part=Part(error), of=name if node.reads is not None else None),
    )
    return graph.replaced(name, parts)
