"""Galleries -> what the page's explorer of latents reads, and a plain table for readers without scripts.

The explorer (page/latents.js) gets one block of JSON per dictionary, in columns, parsed when the dictionary is chosen,
and one of images, each image once. Counts are packed with their runs of zeros, other lists as parts of their largest
value: that is about 0.6 kB per latent. How many classes there are, how large an image is and how many greys it has, the
gallery says. Words are other people's text: what cannot be seen in them is replaced here, and the page sets them as
text.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypedDict

from markupsafe import Markup

from stages.base.text import shown_word
from stages.contracts.dictionary_rows import Gallery, Latent, Pages
from stages.report.images import strip
from stages.report.wording import number

__all__ = ["SCORES", "explorer", "image_of", "shape_of"]

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
N_HEAT = 5
"""Inputs of a latent, strongest first, that are shown with where in them it is active."""
N_PLAIN = 4
"""Latents per dictionary in the table for readers without scripts."""
N_PLAIN_TEXTS = 2
"""Contexts of a latent there, where inputs are words."""
STEPS = 647
"""Steps on either side of 0 that two characters hold."""
PIXELS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""One character per pixel, from none to the largest."""
LEVELS = "0123456789abcdefghijklmnopqrstuvwxyz"
"""One character per position of a heat map, from none to the latent's largest activation."""


class ShownLatent(NamedTuple):
    """A row of the table for readers without scripts."""

    number: int
    class_: str
    strip: str
    """Its images as one, a data URI; empty where inputs are no images."""
    texts: str
    """Its inputs as text, where they are."""
    n: int
    """How many inputs those are."""
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
    pixels = ["" if key.startswith("\0") else key for key in images]
    return Explorer(dictionaries, _json(pixels), _json(hints), list(SCORES), sum(one.n for one in dictionaries))


def _names(galleries: Sequence[Gallery]) -> list[str]:
    """``<target>/<hook point>/<architecture>``, with the sparsity where that is not unique."""
    names = [f"{one.target}/{one.hook_point}/{one.architecture}" for one in galleries]
    return [
        f"{name}/{one.sparsity:g}" if names.count(name) > 1 else name
        for name, one in zip(names, galleries, strict=True)
    ]


def shape_of(gallery: Pages) -> tuple[int, int]:
    """Height and width of a gallery's images: as it says, else square, else one row."""
    if gallery.shape is not None:
        return gallery.shape
    n = len(gallery.images[0]) if gallery.images else 0
    side = math.isqrt(n)
    return (side, side) if side * side == n else (1, n)


def image_of(text: str, shape: tuple[int, int]) -> list[list[int]]:
    """Rows of pixels of a gallery's characters.

    Raises:
        ValueError: there are more or fewer than the shape has, or one stands for no level.
    """
    height, width = shape
    if height * width != len(text):
        raise ValueError(f"an image has {len(text)} pixels, not {height} x {width}: {text[:80]!r}")
    levels = [PIXELS.index(shade) for shade in text]
    return [levels[i : i + width] for i in range(0, len(levels), width)]


class Block(TypedDict):
    """One dictionary as page/latents.js reads it."""

    n_latents: int
    n_live: int
    n_rows: int
    n_examples: int
    n_classes: int
    n_bins: int
    """Of the histogram of activations."""
    class_names: Sequence[str] | None
    shape: tuple[int, int]
    levels: int
    texts: Mapping[int, str] | None
    """By number of the image, where inputs are no images."""
    words: Sequence[str] | None
    """Where inputs are words: each of them, as it is shown."""
    contexts: Mapping[int, Sequence[int]] | None
    """Where inputs are words: numbers of the words of each, by number of the image."""
    gap: str
    """Between two words: nothing where words begin with the blank before them."""
    grid: tuple[int, int] | None
    columns: dict[str, Sequence[object]]
    """Entry i of each belongs to the same latent."""


def _block(gallery: Gallery, n_latents: int, images: dict[str, int]) -> Block:
    latents = gallery.latents[:n_latents]
    texts = _texts(gallery)
    # Texts tell inputs apart whose images are all empty.
    keys = gallery.images if texts is None else [f"\0{text}" for text in texts]
    place = [images.setdefault(key, len(images)) for key in keys]
    columns: dict[str, Sequence[object]] = {
        "latent": [latent.latent for latent in latents],
        "class": [latent.class_ for latent in latents],
        "n_images": [latent.n_images for latent in latents],
    }
    columns |= {name: [_short(getattr(latent, name)) for latent in latents] for name in SCORES}
    columns |= {
        "images": [[place[image] for image in latent.images] for latent in latents],
        "activations": [_scaled(latent.activations) for latent in latents],
        "classes": [_digits(latent.classes) for latent in latents],
        "histogram": [_packed([n for counts in latent.histogram for n in counts]) for latent in latents],
        "neighbours": [" ".join(map(_neighbour, latent.neighbours)) for latent in latents],
        "logit_effect": [_scaled(latent.logit_effect) for latent in latents],
        "ablated_logits": [_scaled(latent.ablation.logits) for latent in latents],
        "ablation_loss": [_short(latent.ablation.loss) for latent in latents],
        "ablation_changed": [_short(latent.ablation.changed) for latent in latents],
        "ablation_n": [latent.ablation.n for latent in latents],
    }
    if gallery.contexts is not None:
        columns["heat"] = [["".join(map(_heat_of_word, heat)) for heat in latent.heat or ()] for latent in latents]
        columns["marked"] = [latent.marked or () for latent in latents]
        columns["moved"] = [_moved(latent) for latent in latents]
    elif gallery.grid:
        columns["positions"] = [_digits(latent.positions[:N_HEAT]) for latent in latents]
        columns["heat"] = ["".join(map(_heat, (latent.heat or ())[:N_HEAT])) for latent in latents]
    return Block(
        n_latents=gallery.n_latents,
        n_live=gallery.n_live,
        n_rows=gallery.n_rows,
        n_examples=gallery.n_examples,
        n_classes=max((len(counts) for latent in latents for counts in latent.histogram), default=0),
        n_bins=max((len(latent.histogram) for latent in latents), default=0),
        class_names=None if gallery.class_names is None else [shown_word(name) for name in gallery.class_names],
        shape=shape_of(gallery),
        levels=gallery.levels,
        texts=None if gallery.texts is None else dict(zip(place, gallery.texts, strict=True)),
        words=None if gallery.words is None else [shown_word(word) for word in gallery.words],
        contexts=None if gallery.contexts is None else dict(zip(place, gallery.contexts, strict=True)),
        gap=_gap(gallery),
        grid=gallery.grid,
        columns=columns,
    )


def _gap(gallery: Pages) -> str:
    return "" if any(word[:1].isspace() for word in gallery.words or ()) else " "


def _texts(gallery: Pages) -> Sequence[str] | None:
    """Each input as text, where they are no images."""
    if gallery.contexts is None or gallery.words is None:
        return gallery.texts
    words, gap = [shown_word(word) for word in gallery.words], _gap(gallery)
    return [gap.join(words[number] for number in context) for context in gallery.contexts]


def _moved(latent: Latent) -> list[list[tuple[int, float | int | None]]]:
    """Words raised and lowered when it is added, then when it is taken out: (number of the word, change)."""
    if latent.moved is None:
        return [[], [], [], []]
    moved = latent.moved
    return [
        [(word, _short(change)) for word, change in part]
        for part in (moved.added_up, moved.added_down, moved.ablated_up, moved.ablated_down)
    ]


def _digits(numbers: Sequence[int]) -> str | Sequence[int]:
    """One character each (``-``: -1), where all are small enough."""
    if all(-1 <= number < len(PIXELS) for number in numbers):
        return "".join("-" if number < 0 else PIXELS[number] for number in numbers)
    return numbers


def _neighbour(pair: tuple[int, float | None]) -> str:
    """``17:98``: a latent and its cosine, in hundredths."""
    other, cosine = pair
    return f"{other}:{'' if cosine is None else round(100 * cosine)}"


def _packed(counts: Sequence[int]) -> str:
    """``3c12,1``: counts; a letter is a run of zeros (a: one, z: 26), and zeros at the end are left out."""
    out: list[str] = []
    zeros = 0
    for count in counts:
        if not count:
            zeros += 1
            continue
        while zeros:
            out.append("abcdefghijklmnopqrstuvwxyz"[min(zeros, 26) - 1])
            zeros -= min(zeros, 26)
        out.append(f",{count}" if out and out[-1][-1].isdigit() else str(count))
    return "".join(out)


def _scaled(values: Sequence[float | None]) -> tuple[float, str]:
    """(largest magnitude, two characters per value: its share of that, -1 to 1 in 1,294 steps; ``--``: unknown)."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)

    def digits(value: float | None) -> str:
        if value is None:
            return "--"
        step = STEPS + round(STEPS * value / largest) if largest else STEPS
        return LEVELS[step // 36] + LEVELS[step % 36]

    return float(f"{largest:.4g}"), "".join(map(digits, values))


def _heat_of_word(percent: int) -> str:
    """One character; ``-`` where there is no row."""
    return "-" if percent < 0 else _heat((percent,))


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
    shape = shape_of(gallery)
    written = _texts(gallery)
    drawn = written is None and shape[0] * shape[1] > 0
    pictures = [image_of(gallery.images[image], shape) for image in latent.images] if drawn else []
    texts = [] if written is None else [written[image] for image in latent.images]
    names = None if gallery.class_names is None else [shown_word(name) for name in gallery.class_names]
    shown = (latent.selectivity, latent.purity, latent.density, latent.monosemanticity)
    return ShownLatent(
        latent.latent,
        names[latent.class_] if names and 0 <= latent.class_ < len(names) else str(latent.class_),
        strip(pictures, gallery.levels - 1) if pictures else "",
        " \u00b7 ".join(texts if gallery.contexts is None else texts[:N_PLAIN_TEXTS]),
        len(latent.images),
        [number(value, 3) for value in shown],
        number(latent.ablation.loss, 3),
    )
