"""Reading a target: where its answer is read off, and what makes outputs of the last residual stream.

Shape legend: D = width, C = outputs.
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from stages.contracts.target import TargetSpec

__all__ = ["FinalNorm", "Unembed", "at_readout", "readout"]

EPS = 1e-5
"""Of the last norm, in every target here."""


def readout(spec: TargetSpec) -> int | None:
    """Token position the outputs are read from; None where hook points have no positions."""
    return None if spec.tokens is None else spec.tokens[-1][-1]


def at_readout(spec: TargetSpec, name: str, activation: Tensor) -> Tensor:
    """The vector of a residual or mlp hook point where the answer is read off: at its token position, the mean over the
    places of an image, or all there is.

    Args:
        activation: (..., *shape of the hook point); axes in front are inputs, or variants and inputs.

    Returns:
        (..., D).
    """
    shape, position = spec.hook(name).shape, readout(spec)
    if len(shape) == 1:
        return activation
    if position is not None:
        return activation[..., position, :]
    return activation.flatten(-len(shape), -2).mean(-2)


class FinalNorm(NamedTuple):
    """The norm between the last residual stream and the unembedding."""

    weight: Tensor
    """(D,)."""
    bias: Tensor | None
    """(D,); None: it does not centre (root mean square, Zhang and Sennrich 2019, arXiv 1910.07467)."""

    def __call__(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        centred = values if self.bias is None else values - values.mean(-1, keepdim=True)
        scale = ((centred * centred).mean(-1, keepdim=True) + EPS).rsqrt()
        scaled = centred * scale * self.weight
        return scaled if self.bias is None else scaled + self.bias


class Unembed(NamedTuple):
    """What makes outputs of the last residual stream."""

    matrix: Tensor
    """(C, D)."""
    bias: Tensor
    """(C,), zeros where there is none."""
    norm: FinalNorm | None

    @classmethod
    def of(cls, spec: TargetSpec, weights: Mapping[str, Tensor]) -> "Unembed | None":
        """From the target's weights; None where no weight reads the stream.

        TransformerLens keeps ``W_U`` as (D, C), a linear layer keeps ``weight`` as (C, D): the name says which. The
        shape would not where there are as many outputs as the stream is wide.
        """
        if spec.unembed is None:
            return None
        owner, _, kind = spec.unembed.rpartition(".")
        matrix = weights[spec.unembed]
        bias = weights.get(f"{owner}.b_U" if kind == "W_U" else f"{owner}.bias")
        matrix = matrix.T.contiguous() if kind == "W_U" else matrix
        return cls(matrix, matrix.new_zeros(matrix.shape[0]) if bias is None else bias, _final_norm(spec, weights))

    def arrays(self) -> dict[str, Tensor]:
        """What I(M) keeps of it."""
        kept = {"unembed": self.matrix, "bias": self.bias}
        if self.norm is not None:
            kept["norm.weight"] = self.norm.weight
            if self.norm.bias is not None:
                kept["norm.bias"] = self.norm.bias
        return kept

    @classmethod
    def kept(cls, arrays: Mapping[str, Tensor]) -> "Unembed":
        """From I(M)."""
        norm = FinalNorm(arrays["norm.weight"], arrays.get("norm.bias")) if "norm.weight" in arrays else None
        return cls(arrays["unembed"], arrays["bias"], norm)

    def normed(self, values: Tensor) -> Tensor:
        """(..., D) -> (..., D) what the matrix is applied to."""
        return values if self.norm is None else self.norm(values)

    def __call__(self, values: Tensor) -> Tensor:
        """(..., D) residual stream -> (..., C) logits."""
        return self.normed(values) @ self.matrix.T + self.bias


def _final_norm(spec: TargetSpec, weights: Mapping[str, Tensor]) -> FinalNorm | None:
    """The target's last norm by its names here (``weight``, ``bias``) or in TransformerLens (``w``, ``b``); None where
    there is none."""
    if spec.norm is None:
        return None
    weight = weights.get(f"{spec.norm}.weight", weights.get(f"{spec.norm}.w"))
    if weight is None:
        raise ValueError(f"{spec.name} has no weight {spec.norm}.weight or {spec.norm}.w; its spec names {spec.norm!r}")
    return FinalNorm(weight, weights.get(f"{spec.norm}.bias", weights.get(f"{spec.norm}.b")))
