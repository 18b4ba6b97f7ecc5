"""Dictionaries that somebody else saved: older forms of SAELens's cfg.json, weights that do not fit it, and what a
folder says it is of.

Before version 6, cfg.json held everything at the top: model_name, hook_name (earlier hook_point), activation_fn_str. It
is brought into the present form as SAELens's own loader does it. What cannot be read is one line that names the remedy.

Shape legend: D = width of the input, O = of the output, F = latents.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import cast

import torch
from pydantic import JsonValue
from torch import Tensor

from stages.contracts.dictionary import DictionaryConfig
from stages.contracts.target import Target
from stages.dictionaries.architectures.codec import ENCODERS, latent_kind
from stages.errors import UserError

__all__ = ["check_place", "checked_weights", "present_form", "present_hook", "unknown_architecture"]

ABOUT = (
    "model_name", "hook_name", "model_class_name", "hook_head_index", "model_from_pretrained_kwargs", "prepend_bos",
    "exclude_special_tokens", "neuronpedia_id", "context_size", "seqpos_slice", "dataset_path", "sae_lens_version",
    "sae_lens_training_version", "hook_name_out", "hook_head_index_out",
)  # fmt: skip
"""Keys that lay at the top and now lie in metadata."""
RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}
IN_TRAINING = ("batchtopk", "matryoshka", "p_anneal")
"""Names of how one is trained; what is saved has another."""
WEIGHTS = {
    "standard": {"W_enc", "b_enc"}, "topk": {"W_enc", "b_enc"}, "abstopk": {"W_enc", "b_enc"},
    "jumprelu": {"W_enc", "b_enc", "threshold"}, "gated": {"W_enc", "b_gate", "b_mag", "r_mag"},
    "matching_pursuit": set(), "plugged": {"W_enc", "b_enc"},
}  # fmt: skip
"""Of each kind, besides W_dec and b_dec."""
Cfg = dict[str, JsonValue]


def present_form(given: object, file: Path) -> DictionaryConfig:
    """cfg.json of any version in the present form.

    Raises:
        UserError: it is no object, or does not say how wide the dictionary is.
    """
    if not isinstance(given, dict):
        raise UserError(f"{file} holds no object: give SAELens's cfg.json, with architecture, d_in and d_sae")
    cfg: Cfg = {RENAMED.get(str(key), str(key)): value for key, value in given.items()}
    about = cfg.get("metadata")
    moved = {key: cfg.pop(key) for key in ABOUT if key in cfg}
    cfg["metadata"] = moved | (about if isinstance(about, dict) else {})
    cfg.setdefault("architecture", "standard")
    cfg.setdefault("apply_b_dec_to_input", True)
    scaled = cfg.get("normalize_activations")
    if scaled is None or isinstance(scaled, bool):
        cfg["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    options = cfg.get("activation_fn_kwargs")
    if cfg.get("activation_fn") == "topk" and isinstance(options, dict) and options.get("k") is not None:
        cfg |= {"architecture": "topk", "k": options["k"]}
    if latent_kind(str(cfg["architecture"])) in ("topk", "abstopk"):
        cfg.setdefault("rescale_acts_by_decoder_norm", False)
    missing = [key for key in ("d_in", "d_sae") if not isinstance(cfg.get(key), int)]
    if missing:
        raise UserError(f"{file} lacks {' and '.join(missing)}: add the width of the rows and the number of latents")
    return cast(DictionaryConfig, cfg)


def unknown_architecture(name: str, where: str) -> UserError:
    """One line for an architecture that cannot be encoded."""
    remedy = f"known: {', '.join(ENCODERS)}, and transcoders of these"
    if name in IN_TRAINING:
        kept = "standard" if name == "p_anneal" else "jumprelu, with its threshold"
        remedy = f"that is how it was trained; what is used is saved as {kept} (SAELens: save_inference_model)"
    return UserError(f"{where}: architecture {name!r} cannot be encoded; {remedy}")


def checked_weights(cfg: DictionaryConfig, weights: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The weights in float32, if they are those of cfg's architecture; of an architecture unknown here, as they are.

    Raises:
        UserError: one is missing, not of the architecture, of another shape than cfg says, or not finite.
    """
    kind = latent_kind(cfg["architecture"])
    if kind not in WEIGHTS:
        return dict(weights)
    ones = weights.get("scaling_factor")
    if ones is not None and bool((ones == 1).all()):  # written by older versions to no effect
        weights = {name: value for name, value in weights.items() if name != "scaling_factor"}
    d_in, n, d_out = cfg["d_in"], cfg["d_sae"], cfg.get("d_out", cfg["d_in"])
    wanted = WEIGHTS[kind] | {"W_dec", "b_dec"} | ({"W_skip"} if "skip_" in cfg["architecture"] else set())
    missing, more = sorted(wanted - set(weights)), sorted(set(weights) - wanted)
    if missing or more:
        raise UserError(f"{folder}: {_misfit(cfg['architecture'], set(weights), missing, more)}")
    shapes = {"W_enc": (d_in, n), "W_dec": (n, d_out), "b_dec": (d_out,), "W_skip": (d_out, d_in)}
    for name in sorted(wanted):
        found, should = tuple(weights[name].shape), shapes.get(name, (n,))
        if found != should:
            turned = f"; it is transposed, save {name}.T" if found == should[::-1] and len(found) == 2 else ""
            raise UserError(
                f"{folder}: {name} has shape {found}, cfg.json says d_in = {d_in}, d_sae = {n}, so {should}"
                f" {turned or '; mend d_in and d_sae, or save it again'}".replace(" ;", ";")
            )
        if not bool(torch.isfinite(weights[name].float()).all()):
            raise UserError(f"{folder}: {name} holds NaN or infinity: train it again, it cannot be used")
    k = cfg.get("k")
    if kind in ("topk", "abstopk") and not (isinstance(k, int) and 1 <= k <= n):
        raise UserError(f"{folder}: cfg.json says k = {k} of {n} latents; {kind} needs a whole number from 1 to {n}")
    return {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _misfit(architecture: str, held: set[str], missing: list[str], more: list[str]) -> str:
    said = [f"lack {', '.join(missing)}"] * bool(missing) + [f"hold {', '.join(more)} as well"] * bool(more)
    text = f"cfg.json says {architecture}, whose weights it does not fit: they {' and '.join(said)}"
    fitting = [kind for kind, names in WEIGHTS.items() if names | {"W_dec", "b_dec"} == held and kind != "plugged"]
    if fitting and latent_kind(architecture) not in fitting:
        return f"{text}; they are those of {' or '.join(fitting)}: say so in cfg.json"
    if "log_threshold" in more:
        return f"{text}; that is a state of training: save torch.exp(log_threshold) as threshold"
    if "scaling_factor" in more:
        return f"{text}; latents are multiplied by it: multiply the rows of W_dec by it, and save it again without"
    if missing:
        return f"{text}; save it again with them"
    return f"{text}; leave them out of the file, or name the architecture they are of"


def check_place(
    about: Mapping[str, JsonValue], target: Target, hook: str, known_as: Collection[str] = frozenset()
) -> None:
    """What a dictionary says it is of, against what it is about to be used on; what it does not say is not compared.

    Args:
        known_as: other names of the same model.

    Raises:
        UserError: another target, another hook point, or the target as it was before it was trained again.
    """
    said = about.get("model_name")
    if said is not None and said not in {target.name, *known_as}:
        raise UserError(
            f"the dictionary is of model {said!r} (metadata.model_name in its cfg.json), not of {target.name!r}: name"
            f" the target that it is of; if {target.name!r} is that model by another name, `lensmith dictionaries"
            f" attach ... --model {said}` says so"
        )
    said = about.get("hook_name")
    if said is not None and said != hook and present_hook(str(said), target) != hook:
        raise UserError(
            f"the dictionary is of hook point {said!r} (metadata.hook_name in its cfg.json), not of {hook!r}: leave"
            " --target and --hook out, or correct cfg.json if the two are the same by another name"
        )
    digest = about.get("target_digest")
    if digest is not None and digest != target.digest:
        raise UserError(
            f"the dictionary is of {target.name} with digest {str(digest)[:12]}, which is now {target.digest[:12]}: the"
            " target was trained again, so train the dictionary again too"
        )


def present_hook(said: str, target: Target) -> str:
    """A hook point by the name that a target has for it: what enters a block is what leaves the one before it."""
    known = {hook.name for hook in target.spec.hooks}
    entering = re.fullmatch(r"blocks\.(\d+)\.hook_resid_pre", said)
    if said in known or entering is None:
        return said
    before = f"blocks.{int(entering[1]) - 1}.hook_resid_post"
    return before if before in known else said
