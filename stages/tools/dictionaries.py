"""What `lensmith dictionaries` shows and does: list, train, evaluate and compare dictionaries."""

import json
from pathlib import Path

import torch

from stages.activations.cache import ActivationCache
from stages.activations.order import generator_for
from stages.base import paths
from stages.base.intervals import estimate, over_items
from stages.base.params import load
from stages.dictionaries.evaluation.baselines import BASELINES, baseline
from stages.dictionaries.evaluation.evaluate import (
    codec_of,
    evaluate,
    held_out,
    live_decoder,
    load_codec,
    random_dictionary,
    raw_probe,
)
from stages.dictionaries.evaluation.geometry import MATCHED, matched_cosines, random_likeness
from stages.dictionaries.evaluation.rows import Row, finish
from stages.dictionaries.stage import Config
from stages.dictionaries.storage import CFG, load_dictionary, save_dictionary
from stages.dictionaries.training.train import recipe_for, train
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["compare_dictionaries", "evaluate_dictionary", "list_dictionaries", "train_one"]

SHOWN = ("l0", "explained_variance", "dead_ratio", "loss_recovered", "monosemanticity", "probe_full")


def list_dictionaries() -> list[Row]:
    """Saved dictionaries of all targets, with their headline metrics.

    Raises:
        UserError: there is none.
    """
    base = paths.dictionaries_dir("any").parent
    rows = []
    for file in sorted(base.glob(f"*/*/*/{CFG}")):
        target, hook, architecture = file.parts[-4:-1]
        metrics = base / target / "metrics.json"
        measured = json.loads(metrics.read_text(encoding="utf-8")) if metrics.is_file() else []
        of = [row for row in measured if (row["hook_point"], row["architecture"]) == (hook, architecture)]
        cfg = json.loads(file.read_text(encoding="utf-8"))
        row: Row = {"name": f"{target}/{hook}/{architecture}", "d": cfg["d_in"], "n_latents": cfg["d_sae"]}
        first = min(of, key=lambda one: int(one["seed"]), default=None)
        rows.append(row | {name: first[name]["value"] if first else None for name in SHOWN})
    if not rows:
        raise UserError(f"{base} holds no dictionary: `lensmith run` or `lensmith dictionaries train` makes them")
    return rows


def _folder(name: str) -> Path:
    """A folder, or the name of a listed dictionary."""
    for folder in (Path(name), paths.dictionaries_dir("any").parent / name):
        if (folder / CFG).is_file():
            return folder
    raise UserError(f"{name} is no dictionary: give a folder with {CFG}, or a name from `lensmith dictionaries list`")


def _place(folder: Path) -> tuple[str, str]:
    """Target and hook point that a saved dictionary says it is of."""
    about = load_dictionary(folder)["cfg"].get("metadata", {})
    target, hook = about.get("model_name"), about.get("hook_name")
    if not target or not hook:
        raise UserError(f"{folder / CFG} does not say which target and hook point it is of (metadata.model_name,"
                        " metadata.hook_name): give --target and --hook")  # fmt: skip
    return str(target), str(hook)


def train_one(
    target_name: str, hook: str, architecture: str, *, n_latents: int, sparsity: float, steps: int, batch: int,
    lr: float, seed: int, out: Path,
) -> Row:  # fmt: skip
    """Train one dictionary on a target's cache, save it, measure what was saved.

    Raises:
        UserError: a value out of range, a hook point that is not cached, an output folder that holds something else.
    """
    if out.exists() and not (out / CFG).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds something that is no dictionary: choose another --out")
    torch.set_num_threads(1)
    target = load_target(target_name)
    cache = ActivationCache.open(target.name, hook, "train", digest=target.digest)
    about = {"model_name": target.name, "hook_name": hook, "target_digest": target.digest,
             "activations_key": cache.manifest.key}  # fmt: skip
    if architecture in BASELINES:
        dictionary = baseline(architecture, cache.read().acts, n_latents, int(sparsity), seed)
        dictionary["cfg"]["metadata"] |= about
    else:
        recipe = recipe_for(architecture, n_latents, sparsity, steps, batch, lr)
        dictionary = train(cache.read().acts, recipe, seed, metadata=about)
    save_dictionary(dictionary, out)
    return {"folder": str(out), "seed": seed} | evaluate_dictionary(str(out), seed=seed)


def evaluate_dictionary(name: str, target: str | None = None, hook: str | None = None, seed: int = 0) -> Row:
    """All metrics of a saved dictionary on held-out rows of its target, next to those of a random one of its L0.

    Args:
        name: a folder in SAELens format, or a name of ``list_dictionaries``.
        target, hook: where the dictionary does not say it.
    """
    torch.set_num_threads(1)
    folder = _folder(name)
    if target is None or hook is None:
        target, hook = _place(folder)
    config = load("dictionaries", Config)
    made = load_target(target)
    held = held_out(made, hook, config.n_probe_rows)
    codec = load_codec(folder)
    if codec.decoder.shape[1] != held.rows.acts.shape[1]:
        raise UserError(f"{folder} takes rows of {codec.decoder.shape[1]}, {hook} has {held.rows.acts.shape[1]}")
    values = evaluate(codec, held, config.n_resamples, seed)
    k = max(1, min(codec.n_latents, round(values["l0"]["value"])))
    train_acts = ActivationCache.open(made.name, hook, "train", digest=made.digest).read().acts
    null = random_dictionary(train_acts, codec.n_latents, k, seed)
    nulls = evaluate(codec_of(null), held, config.n_resamples, seed)
    about = {"target": target, "hook_point": hook, "n_latents": codec.n_latents,
             "architecture": load_dictionary(folder)["cfg"]["architecture"]}  # fmt: skip
    return about | finish(values, nulls, raw_probe(held))


def compare_dictionaries(one: str, other: str) -> Row:
    """Every metric of both, and how alike their live latents are, next to random directions in the same numbers."""
    folders = _folder(one), _folder(other)
    rows = [evaluate_dictionary(str(folder)) for folder in folders]
    config = load("dictionaries", Config)
    decoders = []
    for folder, row in zip(folders, rows, strict=True):
        held = held_out(load_target(row["target"]), row["hook_point"], config.n_probe_rows)
        decoders.append(live_decoder(load_codec(folder), held))
    if decoders[0].shape[1] != decoders[1].shape[1]:
        raise UserError(f"{one} takes rows of {decoders[0].shape[1]}, {other} of {decoders[1].shape[1]}")
    cosines, generator = matched_cosines(*decoders), generator_for("compare intervals")
    null = random_likeness(len(decoders[0]), len(decoders[1]), decoders[0].shape[1], generator_for("compare"))
    names = [name for name, value in rows[0].items() if isinstance(value, dict) and isinstance(rows[1].get(name), dict)]
    return {
        "one": one, "other": other, "n_matched": len(cosines),
        "likeness": estimate(*over_items(cosines, config.n_resamples, generator), null.mcc),
        "share_matched": estimate(
            *over_items((cosines >= MATCHED).double(), config.n_resamples, generator), null.matched
        ),
        "metrics": [
            {"metric": name, "one": rows[0][name]["value"], "other": rows[1][name]["value"],
             "one_interval": [rows[0][name]["low"], rows[0][name]["high"]],
             "other_interval": [rows[1][name]["low"], rows[1][name]["high"]]}
            for name in names
        ],
    }  # fmt: skip
