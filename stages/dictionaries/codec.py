"""Encode and decode in plain torch operations, for use where every operation is metered.

Equal to SAELens's own inference classes (tested for each architecture); SAELens is not imported.

Shape legend: N = rows, D = width, F = latents.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stages.dictionaries.plugs import ACTIVATIONS, Activation, chosen
from stages.errors import UserError

__all__ = ["ENCODERS", "OWN", "decode", "encode"]

OWN = "plugged"
"""Architecture of a dictionary with an activation that SAELens does not have."""
ENCODERS = ("standard", "topk", "jumprelu", OWN)
"""Architectures of saved dictionaries. A batchtopk dictionary is saved as jumprelu, its threshold fixed."""


def encode(dictionary: Mapping[str, Any], acts: Tensor, activations: Mapping[str, Activation] | None = None) -> Tensor:
    """Latents of activations.

    Args:
        dictionary: as returned by ``train_dictionary`` or ``load_dictionary``.
        acts: (N, D) float32.
        activations: of one's own, by name, where the dictionary was trained with one.

    Returns:
        (N, F), >= 0 unless the activation is one's own.

    Raises:
        UserError: an architecture this room cannot encode, or rows of another width.
    """
    cfg = dictionary["cfg"]
    w_enc: Tensor = dictionary["W_enc"]
    if acts.shape[-1] != w_enc.shape[0]:
        raise UserError(
            f"activations are {acts.shape[-1]} wide, the dictionary takes {w_enc.shape[0]}:"
            " use the dictionary of this hook point, heads flattened"
        )
    centred = acts - dictionary["b_dec"] if cfg["apply_b_dec_to_input"] else acts
    pre_NF: Tensor = centred @ w_enc + dictionary["b_enc"]
    match cfg["architecture"]:
        case "standard":
            return pre_NF.relu()
        case "topk":
            if cfg["rescale_acts_by_decoder_norm"]:
                pre_NF = pre_NF * dictionary["W_dec"].norm(dim=-1)
            values, places = pre_NF.topk(int(cfg["k"]), dim=-1, sorted=False)
            return torch.zeros_like(pre_NF).scatter(-1, places, values.relu())
        case "jumprelu":
            threshold: Tensor = dictionary["threshold"]
            return pre_NF.relu() * (pre_NF > threshold).to(pre_NF.dtype)
        case "plugged":
            return chosen("activation", cfg["activation"], ACTIVATIONS, activations)(pre_NF)
    raise UserError(f"architecture {cfg['architecture']!r} cannot be encoded here; known: {', '.join(ENCODERS)}")


def decode(dictionary: Mapping[str, Any], latents: Tensor) -> Tensor:
    """Reconstruction (N, D) of latents (N, F)."""
    cfg = dictionary["cfg"]
    w_dec: Tensor = dictionary["W_dec"]
    if cfg["architecture"] == "topk" and cfg["rescale_acts_by_decoder_norm"]:
        latents = latents * (1.0 / w_dec.norm(dim=-1))
    reconstruction: Tensor = latents @ w_dec + dictionary["b_dec"]
    return reconstruction
