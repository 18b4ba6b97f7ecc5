"""Galleries -> what the page's explorer of latents reads, and a plain table for readers without scripts.

The explorer (page/latents.js) gets one block of JSON per dictionary, in columns, parsed when the dictionary is chosen,
and one of images, each image once. That is about 1 kB per latent.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

from markupsafe import Markup

from stages.contracts.dictionary_rows import Gallery, Latent
from stages.report.images import strip
from stages.report.wording import number

__all__ = ["SCORES", "explorer", "image_of"]

SCORES = (
    "selectivity",
    "purity",
    "entropy",
    "density",
    "monosemanticity",
    "max_cosine",
    "mean_activation",
    "max_activation",
)
"""Per-latent metrics; what each is stands under its field."""
FIGURES = 3
N_PLAIN = 4
"""Latents per dictionary in the table for readers without scripts."""
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""One character per position of a heat map, from none to the latent's largest activation."""


class ShownLatent(NamedTuple):
    """A row of the table for readers without scripts."""

    number: int
    class_: int
    strip: str
    """Its images as one, a data URI."""
    n: int
    """How many those are."""
    numbers: list[str]
    loss: str


class ShownDictionary(NamedTuple):
    name: str
    target: str
    hook_point: str
    architecture: str
    n: int
    """Latents shown."""
    n_latents: int
    json: Markup
    plain: list[ShownLatent]


class Explorer(NamedTuple):
    dictionaries: list[ShownDictionary]
    images: Markup
    hints: Markup
    scores: list[str]
    n: int
    """Latents shown of all dictionaries."""


def explorer(galleries: Sequence[Gallery], n_latents: int) -> Explorer | None:
    """None if there is no latent to show.

    Args:
        galleries: of ``Results``.
        n_latents: shown per dictionary, at most; the most selective ones.
    """
    images: dict[str, int] = {}
    shown = [one for one in galleries if one.latents[:n_latents]]
    names = _names(shown)
    dictionaries = [
        ShownDictionary(
            name,
            one.target,
            one.hook_point,
            one.architecture,
            len(one.latents[:n_latents]),
            one.n_latents,
            _json(_block(one, n_latents, images)),
            [_plain(one, latent) for latent in one.latents[: min(n_latents, N_PLAIN)]],
        )
        for name, one in zip(names, shown, strict=True)
    ]
    if not dictionaries:
        return None
    hints = {name: Latent.hint(name) for name in SCORES}
    return Explorer(dictionaries, _json(list(images)), _json(hints), list(SCORES), sum(one.n for one in dictionaries))


def _names(galleries: Sequence[Gallery]) -> list[str]:
    """``<target>/<hook point>/<architecture>``, with the sparsity where that is not unique."""
    names = [f"{one.target}/{one.hook_point}/{one.architecture}" for one in galleries]
    return [
        f"{name}/{one.sparsity:g}" if names.count(name) > 1 else name
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


class Block(TypedDict):
    """One dictionary as page/latents.js reads it."""

    n_latents: int
    n_live: int
    n_rows: int
    n_examples: int
    grid: tuple[int, int] | None
    columns: dict[str, Sequence[object]]
    """Entry i of each belongs to the same latent."""


def _block(gallery: Gallery, n_latents: int, images: dict[str, int]) -> Block:
    latents = gallery.latents[:n_latents]
    place = [images.setdefault(image, len(images)) for image in gallery.images]
    columns: dict[str, Sequence[object]] = {
        "latent": [latent.latent for latent in latents],
        "class": [latent.class_ for latent in latents],
        "n_images": [latent.n_images for latent in latents],
    }
    columns |= {name: [_short(getattr(latent, name)) for latent in latents] for name in SCORES}
    columns |= {
        "images": [[place[image] for image in latent.images] for latent in latents],
        "activations": [[_short(value) for value in latent.activations] for latent in latents],
        "classes": [latent.classes for latent in latents],
        "histogram": [[n for counts in latent.histogram for n in counts] for latent in latents],
        "neighbours": [[[other, _short(cosine)] for other, cosine in latent.neighbours] for latent in latents],
        "logit_effect": [[_short(value) for value in latent.logit_effect] for latent in latents],
        "ablated_logits": [[_short(value) for value in latent.ablation.logits] for latent in latents],
        "ablation_loss": [_short(latent.ablation.loss) for latent in latents],
        "ablation_changed": [_short(latent.ablation.changed) for latent in latents],
        "ablation_n": [latent.ablation.n for latent in latents],
    }
    if gallery.grid:
        columns["positions"] = [latent.positions for latent in latents]
        columns["heat"] = ["".join(map(_heat, latent.heat or ())) for latent in latents]
    return Block(
        n_latents=gallery.n_latents,
        n_live=gallery.n_live,
        n_rows=gallery.n_rows,
        n_examples=gallery.n_examples,
        grid=gallery.grid,
        columns=columns,
    )


def _heat(percents: Sequence[int]) -> str:
    return "".join(LEVELS[round(percent * (len(LEVELS) - 1) / 100)] for percent in percents)


def _short(value: float | None) -> float | int | None:
    """Fewer digits; whole numbers without a point."""
    if value is None:
        return None
    short = float(f"{value:.{FIGURES}g}")
    return int(short) if short == int(short) else short


def _json(value: object) -> Markup:
    """For a script element: nothing in it can end the element."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _plain(gallery: Gallery, latent: Latent) -> ShownLatent:
    pictures = [image_of(gallery.images[image]) for image in latent.images]
    shown = (latent.selectivity, latent.purity, latent.density, latent.monosemanticity)
    return ShownLatent(
        latent.latent,
        latent.class_,
        strip(pictures) if pictures else "",
        len(pictures),
        [number(value, 3) for value in shown],
        number(latent.ablation.loss, 3),
    )
