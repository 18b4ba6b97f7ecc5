"""A dictionary as two functions and a decoder: from a folder, through SAELens, or from memory.

Shape legend: R = rows, D = width, F = latents.
"""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue
from torch import Tensor

from stages.contracts.dictionary import Dictionary
from stages.dictionaries.architectures.codec import ENCODERS, OWN, decode, encode, latent_kind
from stages.dictionaries.foreign import unknown_architecture
from stages.dictionaries.storage import load_dictionary
from stages.errors import UserError

__all__ = ["Codec", "codec_of", "load_codec"]


class Codec(NamedTuple):
    encode: Callable[[Tensor], Tensor]
    """(R, D) -> (R, F)."""
    decode: Callable[[Tensor], Tensor]
    """(R, F) -> (R, D)."""
    decoder: Tensor
    """(F, D)."""
    about: Mapping[str, JsonValue] = {}
    """What the dictionary says it is of: metadata of its cfg."""
    dictionary: Dictionary | None = None
    """Its numbers; None where this room cannot encode with them."""

    @property
    def n_latents(self) -> int:
        return len(self.decoder)


def load_codec(folder: Path) -> Codec:
    """A saved dictionary through SAELens, exactly as anyone else would load it; ours where SAELens has no class.

    Raises:
        UserError: it cannot be read, or was trained on rows scaled by a factor that it does not hold.
    """
    dictionary = load_dictionary(folder)
    cfg = dictionary["cfg"]
    if cfg["architecture"] == OWN:
        return codec_of(dictionary)
    if cfg.get("normalize_activations", "none") == "expected_average_only_in":
        raise UserError(
            f"{folder} takes rows scaled to a mean norm (normalize_activations: expected_average_only_in), by a factor"
            " that it does not hold: fold it in with SAELens (fold_activation_norm_scaling_factor), and save it again"
        )
    from sae_lens import SAE

    try:
        sae: Any = SAE.load_from_disk(str(folder), dtype="float32")
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        if latent_kind(cfg["architecture"]) not in ENCODERS:
            raise unknown_architecture(cfg["architecture"], str(folder)) from error
        said = " ".join(str(error).split())
        raise UserError(
            f"{folder} cannot be read by SAELens ({type(error).__name__}: {said[:200]}): mend cfg.json, or save it with"
            " SAELens's save_inference_model"
        ) from error
    sae.eval().requires_grad_(False)
    ours = latent_kind(cfg["architecture"]) in ENCODERS and cfg.get("normalize_activations", "none") == "none"
    return Codec(sae.encode, sae.decode, sae.W_dec.detach(), cfg.get("metadata", {}), dictionary if ours else None)


def codec_of(dictionary: Dictionary) -> Codec:
    """A dictionary in memory, through this room's own operations."""
    return Codec(functools.partial(encode, dictionary), functools.partial(decode, dictionary), dictionary["W_dec"],
                 dictionary["cfg"].get("metadata", {}), dictionary)  # fmt: skip
