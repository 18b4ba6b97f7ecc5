"""A sparse dictionary in memory, in the format of SAELens: its configuration and its weights.

Shape legend: D = width of the input, O = width of the output (D, but for transcoders), F = latents.
"""

from typing import Required, TypedDict

from pydantic import JsonValue
from torch import Tensor

__all__ = ["Dictionary", "DictionaryConfig"]


class DictionaryConfig(TypedDict, total=False):
    """cfg.json, as SAELens reads it."""

    architecture: Required[str]
    """The form that is used: batchtopk and matryoshka are saved as jumprelu, p_anneal as standard."""
    d_in: Required[int]
    d_sae: Required[int]
    apply_b_dec_to_input: Required[bool]
    """Whether the decoder's bias is taken off the input."""
    d_out: int
    """Of a transcoder."""
    dtype: str
    device: str
    normalize_activations: str
    reshape_activations: str
    k: int
    """Latents per row (topk, abstopk)."""
    rescale_acts_by_decoder_norm: bool
    """Whether latents are multiplied by the norms of their decoder rows before they are chosen (topk, abstopk)."""
    residual_threshold: float
    """Norm of the residual at which matching pursuit stops."""
    max_iterations: int | None
    """Steps of matching pursuit; None: as many as the input is wide."""
    stop_on_duplicate_support: bool
    """Whether matching pursuit stops where it would choose a latent again."""
    activation: str
    """Name of the activation in place of ReLU, where the architecture is ``plugged``."""
    metadata: dict[str, JsonValue]
    """How it was trained, and on what."""


class Dictionary(TypedDict, total=False):
    """One dictionary. Which weights there are depends on the architecture."""

    cfg: Required[DictionaryConfig]
    W_dec: Required[Tensor]
    """(F, O)."""
    b_dec: Required[Tensor]
    """(O,)."""
    W_enc: Tensor
    """(D, F); not of matching pursuit."""
    b_enc: Tensor
    """(F,)."""
    threshold: Tensor
    """(F,) below which a latent is 0 (jumprelu)."""
    b_gate: Tensor
    """(F,) in place of b_enc (gated)."""
    b_mag: Tensor
    """(F,) bias of the magnitudes (gated)."""
    r_mag: Tensor
    """(F,) log scale of the magnitudes (gated)."""
    W_skip: Tensor
    """(O, D) linear path beside the latents (transcoders)."""
