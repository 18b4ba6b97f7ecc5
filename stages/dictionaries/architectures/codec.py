"""Encode and decode in plain torch operations, for use where every operation is metered.

Equal to SAELens's own inference classes (tested for each architecture); SAELens is not imported.

Shape legend: N = rows, D = width, F = latents.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from stages.contracts.dictionary import Dictionary
from stages.dictionaries.architectures.custom_objectives import ACTIVATIONS, Activation, chosen
from stages.errors import UserError

__all__ = ["ENCODERS", "OWN", "decode", "encode", "latent_kind"]

OWN = "plugged"
"""Architecture of a dictionary with an activation that SAELens does not have."""
ENCODERS = ("standard", "topk", "abstopk", "jumprelu", "gated", "matching_pursuit", OWN)
"""Architectures of saved dictionaries, and of transcoders (followed by _transcoder or _skip_transcoder). Batchtopk and
matryoshka ones are saved as jumprelu, their threshold fixed."""


def encode(dictionary: Dictionary, acts: Tensor, activations: Mapping[str, Activation] | None = None) -> Tensor:
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
    if not isinstance(acts, Tensor):
        raise UserError(f"activations are {type(acts).__name__}: give a float tensor, torch.from_numpy(activations)")
    width = dictionary["W_enc"].shape[0] if "W_enc" in dictionary else dictionary["W_dec"].shape[1]
    if acts.shape[-1] != width:
        raise UserError(
            f"activations are {acts.shape[-1]} wide, the dictionary takes {width}:"
            " use the dictionary of this hook point, heads flattened"
        )
    kind, acts = latent_kind(cfg["architecture"]), _scaled(acts, cfg.get("normalize_activations", "none"))
    centred = acts - dictionary["b_dec"] if cfg["apply_b_dec_to_input"] else acts
    if kind == "matching_pursuit":
        return _pursued(dictionary, centred)
    bias = dictionary["b_gate"] if kind == "gated" else dictionary["b_enc"]
    pre_NF: Tensor = centred @ dictionary["W_enc"] + bias
    match kind:
        case "standard":
            return pre_NF.relu()
        case "topk" | "abstopk":
            if cfg["rescale_acts_by_decoder_norm"]:
                pre_NF = pre_NF * dictionary["W_dec"].norm(dim=-1)
            if kind == "abstopk":
                places = pre_NF.abs().topk(int(cfg["k"]), dim=-1, sorted=False).indices
                return torch.zeros_like(pre_NF).scatter(-1, places, pre_NF.gather(-1, places))
            values, places = pre_NF.topk(int(cfg["k"]), dim=-1, sorted=False)
            return torch.zeros_like(pre_NF).scatter(-1, places, values.relu())
        case "jumprelu":
            threshold: Tensor = dictionary["threshold"]
            return pre_NF.relu() * (pre_NF > threshold).to(pre_NF.dtype)
        case "gated":
            sizes: Tensor = (pre_NF - bias) * dictionary["r_mag"].exp() + dictionary["b_mag"]
            return sizes.relu() * (pre_NF > 0).to(pre_NF.dtype)
        case "plugged":
            return chosen("activation", cfg["activation"], ACTIVATIONS, activations)(pre_NF)
    raise UserError(f"architecture {cfg['architecture']!r} cannot be encoded here; known: {', '.join(ENCODERS)}")


def _scaled(acts: Tensor, how: str) -> Tensor:
    """Activations as a dictionary takes them, row by row (SAELens, ``_setup_activation_normalization``)."""
    match how:
        case "none":
            return acts
        case "constant_norm_rescale":
            size: Tensor = acts.norm(dim=-1, keepdim=True)
            return acts * (float(acts.shape[-1] ** 0.5) / size)
        case "layer_norm":
            centred = acts - acts.mean(dim=-1, keepdim=True)
            spread = (centred.square().sum(dim=-1, keepdim=True) / (acts.shape[-1] - 1)).sqrt()
            return centred / (spread + 1e-5)
    raise UserError(
        f"the dictionary normalises activations ({how}) by what it does not hold: `lensmith dictionaries attach` folds"
        " in the scale of expected_average_only_in; what else there is, fold in with SAELens and save it again"
    )


def latent_kind(architecture: str) -> str:
    """What latents a saved dictionary has: a transcoder's are those of the architecture it is named after."""
    kind = architecture.removesuffix("transcoder").removesuffix("skip_").removesuffix("_")
    return kind or "standard"


def _pursued(dictionary: Dictionary, centred: Tensor) -> Tensor:
    """Latents of matching pursuit (``pursuit``); rows that have stopped go on with value 0."""
    cfg = dictionary["cfg"]
    w_dec: Tensor = dictionary["W_dec"]
    latents, residual = centred.new_zeros(len(centred), len(w_dec)), centred
    going = torch.ones(len(centred), 1, dtype=torch.bool)
    for _ in range(int(cfg["max_iterations"] or cfg["d_in"])):
        places = (residual @ w_dec.T).relu().max(dim=1, keepdim=True).indices
        vectors = w_dec[places.squeeze(1)]
        values = (residual * vectors).sum(dim=-1, keepdim=True).relu() * going.to(centred.dtype)
        new = (latents.gather(1, places) == 0) & (values > 0)
        latents = latents.scatter_add(1, places, values)
        residual = residual - values * vectors
        going = going & (residual.norm(dim=-1, keepdim=True) >= cfg["residual_threshold"])
        if cfg["stop_on_duplicate_support"]:
            going = going & new
    return latents


def decode(dictionary: Dictionary, latents: Tensor) -> Tensor:
    """Reconstruction (N, D) of latents (N, F); of a transcoder, its output without a skip connection's part."""
    cfg = dictionary["cfg"]
    w_dec: Tensor = dictionary["W_dec"]
    if latent_kind(cfg["architecture"]) in ("topk", "abstopk") and cfg["rescale_acts_by_decoder_norm"]:
        latents = latents * (1.0 / w_dec.norm(dim=-1))
    reconstruction: Tensor = latents @ w_dec + dictionary["b_dec"]
    return reconstruction
