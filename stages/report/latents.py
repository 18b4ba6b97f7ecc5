"""Galleries -> what the page's explorer of latents reads, and a plain table for readers without scripts.

The explorer (page/latents.js) gets one block of JSON per dictionary, in columns, parsed when the dictionary is chosen,
and one of images, each image once. That is about 1 kB per latent.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from stages.report.images import strip
from stages.report.results import Row
from stages.report.wording import number

__all__ = ["SCORES", "explorer", "image_of"]

SCORES = (
    ("selectivity", "correlation of the activation with the class, in magnitude"),
    ("purity", "share of the commonest class among the rows it fires for"),
    ("entropy", "of the classes of those rows, in nats; 0: one class only"),
    ("density", "share of rows it fires for"),
    ("monosemanticity", "likeness of the images it fires for"),
    ("max_cosine", "of its decoder row with the nearest other live one, in magnitude"),
    ("mean_activation", "over the rows it fires for"),
    ("max_activation", "over all held-out rows"),
)
"""Per-latent metrics and what they are."""
COUNTS = ("latent", "class", "n_images")
FIGURES = 3
N_PLAIN = 4
"""Latents per dictionary in the table for readers without scripts."""
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""One character per position of a heat map, from none to the latent's largest activation."""


def explorer(galleries: Sequence[Row], n_latents: int) -> dict[str, Any] | None:
    """None if there is no latent to show.

    Args:
        galleries: of ``Results``.
        n_latents: shown per dictionary, at most; the most selective ones.
    """
    images: dict[str, int] = {}
    shown = [one for one in galleries if one["latents"][:n_latents]]
    names = _names(shown)
    dictionaries = [
        {
            "name": name,
            "target": one["target"],
            "hook_point": one["hook_point"],
            "architecture": one["architecture"],
            "n": len(one["latents"][:n_latents]),
            "n_latents": one["n_latents"],
            "json": _json(_block(one, n_latents, images)),
            "plain": [_plain(one, latent) for latent in one["latents"][: min(n_latents, N_PLAIN)]],
        }
        for name, one in zip(names, shown, strict=True)
    ]
    if not dictionaries:
        return None
    return {
        "dictionaries": dictionaries,
        "images": _json(list(images)),
        "hints": _json(dict(SCORES)),
        "scores": [name for name, _ in SCORES],
        "n": sum(one["n"] for one in dictionaries),
    }


def _names(galleries: Sequence[Row]) -> list[str]:
    """``<target>/<hook point>/<architecture>``, with the sparsity where that is not unique."""
    names = [f"{one['target']}/{one['hook_point']}/{one['architecture']}" for one in galleries]
    return [
        f"{name}/{one.get('sparsity', one.get('seed', 0)):g}" if names.count(name) > 1 else name
        for name, one in zip(names, galleries, strict=True)
    ]


def image_of(text: str) -> list[list[int]]:
    """Rows of pixels, 0..16, of a gallery's characters.

    Raises:
        ValueError: their number is no square.
    """
    side = math.isqrt(len(text))
    if side * side != len(text):
        raise ValueError(f"an image is square, but {len(text)} pixels are none: {text[:80]!r}")
    levels = [int(shade, 17) for shade in text]
    return [levels[i : i + side] for i in range(0, len(levels), side)]


def _block(gallery: Row, n_latents: int, images: dict[str, int]) -> dict[str, Any]:
    """One dictionary in columns: entry i of each belongs to the same latent."""
    latents = gallery["latents"][:n_latents]
    place = [images.setdefault(image, len(images)) for image in gallery["images"]]
    columns: dict[str, list[Any]] = {name: [latent[name] for latent in latents] for name in COUNTS}
    columns |= {name: [_short(latent[name]) for latent in latents] for name, _ in SCORES}
    columns |= {
        "images": [[place[image] for image in latent["images"]] for latent in latents],
        "activations": [[_short(value) for value in latent["activations"]] for latent in latents],
        "classes": [latent["classes"] for latent in latents],
        "histogram": [[n for counts in latent["histogram"] for n in counts] for latent in latents],
        "neighbours": [[[other, _short(cosine)] for other, cosine in latent["neighbours"]] for latent in latents],
        "logit_effect": [[_short(value) for value in latent["logit_effect"]] for latent in latents],
        "ablated_logits": [[_short(value) for value in latent["ablation"]["logits"]] for latent in latents],
        "ablation_loss": [_short(latent["ablation"]["loss"]) for latent in latents],
        "ablation_changed": [_short(latent["ablation"]["changed"]) for latent in latents],
        "ablation_n": [latent["ablation"]["n"] for latent in latents],
    }
    if gallery["grid"]:
        columns["positions"] = [latent["positions"] for latent in latents]
        columns["heat"] = ["".join(map(_heat, latent["heat"])) for latent in latents]
    about = {key: gallery[key] for key in ("n_latents", "n_live", "n_rows", "n_examples", "grid")}
    return about | {"columns": columns}


def _heat(percents: Sequence[int]) -> str:
    return "".join(LEVELS[round(percent * (len(LEVELS) - 1) / 100)] for percent in percents)


def _short(value: float | None) -> float | int | None:
    """Fewer digits; whole numbers without a point."""
    if value is None:
        return None
    short = float(f"{value:.{FIGURES}g}")
    return int(short) if short == int(short) else short


def _json(value: Any) -> Markup:
    """For a script element: nothing in it can end the element."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _plain(gallery: Row, latent: Row) -> dict[str, Any]:
    """A row of the table for readers without scripts."""
    pictures = [image_of(gallery["images"][image]) for image in latent["images"]]
    return {
        "number": latent["latent"],
        "class": latent["class"],
        "strip": strip(pictures) if pictures else "",
        "n": len(pictures),
        "numbers": [number(latent[name], 3) for name in ("selectivity", "purity", "density", "monosemanticity")],
        "loss": number(latent["ablation"]["loss"], 3),
    }
