"""How what a source wrote reaches a reader that does not see it as it is: through a linear layer, or a decoder.

Every mixer is linear in the activations with one mask entry per (reader, source) pair: out_v = sum_u m_vu L_vu(x_u).

Shape legend: S = masks, B = batch, U = units of the source, V = readers, I/O = inputs and outputs of a layer, D =
width.
"""

from math import prod
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.circuits.engine.graph import Block, Node
from stages.errors import UserError

__all__ = ["Mixer", "mixer_for"]


class Mixer(Protocol):
    def __call__(self, values: Tensor, mask: Tensor) -> Tensor:
        """(S, U, B, ...) activations and (S, V, U) mask -> (S, V, B, ...) contribution to the reader, without bias."""


class _Decoder:
    """Codes of a dictionary: out_v = (z * m_v) W."""

    def __init__(self, decoder: Tensor) -> None:
        self.decoder = decoder

    def __call__(self, values: Tensor, mask: Tensor) -> Tensor:
        codes = values.movedim(1, -1).unsqueeze(1)  # (S, 1, B, ..., U)
        shape = (*mask.shape[:2], *([1] * (codes.dim() - 3)), mask.shape[-1])
        out: Tensor = (codes * mask.reshape(shape)) @ self.decoder
        return out


class _Linear:
    """A linear layer whose columns belong to the source's units and whose rows to the readers."""

    def __init__(
        self, weight: Tensor, units: int, axis: int | None, shape: torch.Size, per_reader: bool, out: Tensor
    ) -> None:
        self.weight, self.axis, self.rows = weight, axis, per_reader
        fitting = [k for k in range(1, len(shape)) if prod(shape[k:]) == weight.shape[1]]
        # Axes of length one make several fit: the layer keeps the axes that its output still has before the last.
        lead = out.shape[3:] if per_reader else out.shape[3:-1]
        start = next((k for k in fitting if shape[1:k] == lead), fitting[0])
        self.start = start  # axes of the hook's value from here on are flattened into the layer's input
        if axis is None:
            self.column = torch.zeros(weight.shape[1], dtype=torch.long)
        elif axis >= start:
            places = torch.arange(units).view([units if k == axis else 1 for k in range(start, len(shape))])
            self.column = places.expand(*shape[start:]).reshape(-1)
        else:
            raise UserError(
                f"units lie along axis {axis}, which the layer does not sum over: it sums over {shape[start:]}"
            )

    def __call__(self, values: Tensor, mask: Tensor) -> Tensor:
        value = values.squeeze(1) if self.axis is None else values.movedim(1, self.axis + 1)
        flat = value.flatten(self.start + 1)  # (S, B, ..., I)
        lead = flat.shape[1:-1]
        flat = flat.flatten(1, -2) if flat.dim() > 3 else flat
        weight: Tensor = self.weight * mask[:, :, self.column]  # (S, O or 1 -> O, I)
        out = flat @ weight.transpose(1, 2)
        out = out.view(len(out), *lead, -1) if len(lead) > 1 else out
        return out.movedim(-1, 1) if self.rows else out.unsqueeze(1)


class _Convolution:
    """A 2-d convolution between channels, each channel a unit; the S masks run as groups of one convolution."""

    def __init__(self, layer: nn.Conv2d, axis: int | None, per_reader: bool) -> None:
        self.layer, self.axis, self.rows = layer, axis, per_reader

    def __call__(self, values: Tensor, mask: Tensor) -> Tensor:
        value = values.squeeze(1).transpose(1, 2) if self.axis is None else values  # (S, C, B, h, w)
        n, channels, batch = value.shape[:3]
        weight = self.layer.weight * mask[..., None, None]  # (S, V or 1 -> O, U or 1 -> C, kh, kw)
        flat = value.permute(2, 0, 1, 3, 4).reshape(batch, n * channels, *value.shape[3:])
        out = F.conv2d(
            flat, weight.flatten(0, 1), None, self.layer.stride, self.layer.padding, self.layer.dilation, groups=n
        )
        out = out.view(batch, n, -1, *out.shape[2:]).permute(1, 2, 0, 3, 4)  # (S, O, B, h, w)
        return out if self.rows else out.transpose(1, 2).unsqueeze(1)


def mixer_for(
    model: nn.Module, parent: Node, child: Node, name: str | None, written: Tensor, read: Tensor, block: Block
) -> Mixer:
    """The mixer of one (parent, child) pair.

    Args:
        name: module between them; None: the parent writes codes of a dictionary.
        written: value at the parent's hook point.
        read: (groups, V, B, ...) value the child reads.

    Raises:
        UserError: no such module, or not one this can mask edge by edge.
    """
    if name is None:
        assert parent.part is not None and parent.part.decoder is not None
        return _Decoder(parent.part.decoder.to(read.dtype))
    layer = dict(model.named_modules()).get(name)
    if layer is None:
        raise UserError(f"through={name!r} of node {child.name!r} is no module of {type(model).__name__}")
    if parent.part is not None and parent.part.decoder is not None:
        raise UserError(
            f"{child.name!r} reads latents of {parent.name!r} through {name!r}: put the dictionary after it"
        )
    # Not by the number of readers: an axis of length one is an axis.
    per_reader = child.axis is not None and not child.shared_input and child.part is None
    units = written.shape[parent.axis] if parent.axis is not None else 1
    if isinstance(layer, nn.Linear):
        if not any(prod(written.shape[k:]) == layer.in_features for k in range(1, written.dim())):
            raise UserError(
                f"{name!r} takes {layer.in_features} numbers, {parent.name!r} writes {tuple(written.shape[1:])}: say"
                " with parents=[...] which nodes are read through it (without, all before it are)"
            )
        if per_reader and block.n_readers != layer.out_features:
            raise UserError(f"{child.name!r} has {block.n_readers} units, {name!r} has {layer.out_features} outputs")
        return _Linear(layer.weight, units, parent.axis, written.shape, per_reader, read)
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or parent.axis not in (1, None) or layer.padding_mode != "zeros":
            raise UserError(
                f"{name!r}: only convolutions with groups=1 and zero padding, with channels as axis 1, can be masked"
            )
        return _Convolution(layer, parent.axis, per_reader)
    raise UserError(
        f"through={name!r} is {type(layer).__name__}; Linear and Conv2d can be masked edge by edge: put the hook points"
        " right before and after one of these, or copy the input per reader and leave through out"
    )
