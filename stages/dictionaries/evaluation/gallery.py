"""What latents mean and do, one record each: what the feature pages of the report show.

Shape legend: R = rows, F = latents, D = width, N = examples, T = positions of an example, C = outputs.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from stages.activations.writer import n_positions
from stages.contracts.dictionary_rows import Ablated, Latent, Pages
from stages.dictionaries.evaluation import geometry, metrics
from stages.dictionaries.evaluation.evaluate import Codec, HeldOut, image_latents
from stages.dictionaries.evaluation.splicing import PASS_WORDS, spliced_logits
from stages.dictionaries.evaluation.word_pages import WordPages, word_names

__all__ = ["N_BINS", "N_EFFECT", "N_NEIGHBOURS", "N_TOP", "directions_of", "effects_of", "gallery_of", "grid_of"]

N_TOP = 9
"""Images per latent: a 3 x 3 grid."""
N_BINS = 10
"""Bins of the activation histogram, equally wide from 0 to the largest activation."""
N_NEIGHBOURS = 5
N_EFFECT = 8
"""Examples a latent is ablated on, and examples it is added to."""
EFFECT_BATCH = 512
"""Examples per forward pass of those, fewer where inputs are long texts; bounds memory."""
EFFECT_LOGITS = 1 << 26
"""Logits that are held at once: effects of so many latents are measured together."""
MIN_FIRINGS = 5
"""Distinct images or contexts a latent must fire for to stand among the first: fewer make any purity look good."""
OTHERS = "other words"
"""Name of the class of all words that are not among the most frequent ones; no latent is said to be of it."""
FIGURES = 4
"""Significant figures kept."""
SHADES = "0123456789abcdefg"
"""One character per pixel level, 0..16."""


class Effect(NamedTuple):
    """What a latent does to the outputs."""

    logit_effect: Tensor
    """(C,) mean change of each logit when it is added."""
    ablated_logits: Tensor
    """(C,) when it is taken out."""
    ablation: Ablated
    """Its ``logits`` are left empty where outputs are words."""


def gallery_of(codec: Codec, held: HeldOut, n_latents: int) -> Pages:
    """Records of up to ``n_latents`` live latents, most selective first; about 1.3 kB each plus positions.

    Latents that fire for fewer than ``MIN_FIRINGS`` distinct images (where inputs are words: contexts) come after all
    others.
    """
    with torch.no_grad():
        latents = codec.encode(held.rows.acts)
    fired = latents != 0
    live = fired.any(0).nonzero().flatten()
    known, n_classes = held.about.classes >= 0, held.about.n_classes
    classes = held.about.classes[known]
    strength, best_class = metrics.selectivity(latents[known], classes, n_classes)
    by_image = image_latents(latents, held.about.image)
    n_images = (by_image != 0).sum(0)
    cosine = _cosines(codec.decoder[live])
    unknown = torch.full((codec.n_latents,), math.nan)
    scores = {
        "selectivity": strength,
        "purity": metrics.class_purity(latents[known], classes, n_classes),
        "entropy": metrics.class_entropy(latents[known], classes, n_classes),
        "density": metrics.density(latents),
        "monosemanticity": unknown if held.embeddings is None else metrics.monosemanticity(by_image, held.embeddings),
        "mean_activation": latents.double().sum(0) / fired.sum(0),
        "max_activation": latents.amax(0),
        "max_cosine": unknown.index_copy(0, live, geometry.max_cosine(codec.decoder[live]).float()),
    }
    ranked = torch.where(n_images >= MIN_FIRINGS, strength, strength - 1.0 - MIN_FIRINGS)
    chosen = live[ranked[live].argsort(descending=True, stable=True)][:n_latents]
    place = {latent: i for i, latent in enumerate(live.tolist())}
    row_of = _rows_by_example(held)
    effects = effects_of(codec, held, latents, chosen)
    names = word_names(held.target.name, held.target.spec.n_outputs) if held.about.words is not None else ()
    shown: _Shown = _Images(held, row_of) if held.about.words is None else _Words(held, row_of, names)
    pages = []
    for latent, effect in zip(chosen.tolist(), effects, strict=True):
        z = latents[:, latent]
        top = shown.top(z)
        largest = float(scores["max_activation"][latent])
        measured: dict[str, Any] = {name: _number(values[latent]) for name, values in scores.items()}
        pages.append(
            Latent(
                latent=latent,
                class_=int(best_class[latent]),
                n_images=int(n_images[latent]),
                **shown.counts(z, largest),
                activations=_numbers(z[top]),
                classes=_ints(held.about.classes[top]),
                positions=_ints(held.rows.position[top]),
                examples=_ints(held.rows.example[top]),
                neighbours=_neighbours(cosine[place[latent]], live),
                ablation=effect.ablation,
                **shown.of(top, z, largest, effect),
                **measured,
            )
        )
    return Pages(
        n_rows=len(latents),
        n_examples=held.n_examples,
        n_live=len(live),
        latents=tuple(pages),
        **shown.pages(),
    )


class _Shown(Protocol):
    """What records show of inputs of one kind."""

    def top(self, z: Tensor) -> Tensor:
        """Numbers of the rows that are shown of a latent whose activations are ``z`` (R,)."""
        ...

    def counts(self, z: Tensor, largest: float) -> dict[str, Any]:
        """Histograms of one latent's record."""
        ...

    def of(self, top: Tensor, z: Tensor, largest: float, effect: Effect) -> dict[str, Any]:
        """Other fields of one latent's record."""
        ...

    def pages(self) -> dict[str, Any]:
        """Fields of the gallery."""
        ...


class _Images:
    def __init__(self, held: HeldOut, row_of: Tensor) -> None:
        assert held.about.pixels is not None
        self._held, self._row_of, self._pixels = held, row_of, held.about.pixels
        self._images: dict[str, int] = {}

    def top(self, z: Tensor) -> Tensor:
        return _top_rows(z, self._held.about.image)

    def counts(self, z: Tensor, largest: float) -> dict[str, Any]:
        known = self._held.about.classes >= 0
        return _counts(z[known], self._held.about.classes[known], self._held.about.n_classes, largest)

    def of(self, top: Tensor, z: Tensor, largest: float, effect: Effect) -> dict[str, Any]:
        pictures = ["".join(SHADES[level] for level in pixels) for pixels in self._pixels[top].tolist()]
        one = self._row_of.shape[1] == 1
        rows = self._row_of[self._held.cluster[top]]
        return {
            "images": tuple(self._images.setdefault(picture, len(self._images)) for picture in pictures),
            "heat": None if one else tuple(map(_ints, _percents(z[rows], largest))),
            "logit_effect": _numbers(effect.logit_effect),
        }

    def pages(self) -> dict[str, Any]:
        shape = self._held.target.spec.hook(self._held.hook).shape
        return {"images": tuple(self._images), "grid": grid_of(shape, self._row_of.shape[1])}


class _Words:
    """One row of an input at most is shown: the words before a strong one are often nearly as strong."""

    def __init__(self, held: HeldOut, row_of: Tensor, names: Sequence[str]) -> None:
        assert held.about.words is not None
        self._held, self._row_of = held, row_of
        self._classes = tuple(names[int(i)] for i in held.about.words)
        self._words = WordPages(names, held.inputs)

    def top(self, z: Tensor) -> Tensor:
        return _top_rows(z, self._held.about.image, self._held.cluster)

    def counts(self, z: Tensor, largest: float) -> dict[str, Any]:
        """All words that are no class are one more class."""
        about = self._held.about
        classes = torch.where(about.classes >= 0, about.classes, about.n_classes)
        return _counts(z, classes, about.n_classes + 1, largest)

    def of(self, top: Tensor, z: Tensor, largest: float, effect: Effect) -> dict[str, Any]:
        numbers, heat, marked = [], [], []
        for row in top.tolist():
            example = int(self._held.cluster[row])
            number, places, mark = self._words.context(example, int(self._held.rows.position[row]))
            rows = self._row_of[example, places]
            numbers.append(number)
            heat.append(self._words.heat(_percents(z[rows.clamp_min(0)], largest), rows))
            marked.append(mark)
        return {
            "images": tuple(numbers),
            "heat": tuple(heat),
            "marked": tuple(marked),
            "logit_effect": (),
            "moved": self._words.moved(effect.logit_effect, effect.ablated_logits),
        }

    def pages(self) -> dict[str, Any]:
        return {
            "images": ("",) * len(self._words.contexts),
            "grid": None,
            "class_names": (*self._classes, OTHERS),
            "words": self._words.words,
            "contexts": self._words.contexts,
        }


def grid_of(shape: Sequence[int], n_positions: int) -> tuple[int, int] | None:
    """(h, w) of the positions at a hook point: two axes of its activation if they hold them, else one line; None
    without positions."""
    if n_positions == 1:
        return None
    for axes in (shape[:2], shape[-2:]):
        if len(shape) > 2 and math.prod(axes) == n_positions:
            return axes[0], axes[1]
    return 1, n_positions


def directions_of(codec: Codec, chosen: Tensor) -> Tensor:
    """(len(chosen), D) what one unit of each latent adds to the reconstruction; exact, since decoders are affine."""
    with torch.no_grad():
        origin = codec.decode(torch.zeros(1, codec.n_latents))
        parts = [
            codec.decode(torch.nn.functional.one_hot(some, codec.n_latents).float()) - origin
            for some in torch.split(chosen, EFFECT_BATCH)
        ]
    return torch.cat(parts) if parts else torch.zeros(0, codec.decoder.shape[1])


def effects_of(codec: Codec, held: HeldOut, latents: Tensor, chosen: Tensor) -> list[Effect]:
    """What adding and removing each latent does to the outputs, the rest of the activation (the error too) untouched.

    The activation x at the hook point is changed by a multiple of the latent's direction d, at every position that has
    a row: added x + mean activation * d, on ``N_EFFECT`` examples that are the same for all latents; ablated x - z(x) *
    d, on up to ``N_EFFECT`` examples for which it fires, from the strongest to the weakest in even steps. Two forward
    passes per latent of that many examples, batched over latents. z is of the cached rows, so it has their precision.

    Args:
        latents: (R, F) of all held-out rows.
        chosen: (n,) latents.
    """
    size = max(1, EFFECT_LOGITS // (2 * N_EFFECT * held.clean.shape[1]))
    parts = torch.split(chosen, size) if len(chosen) else ()
    return [effect for part in parts for effect in _effects(codec, held, latents, part)]


def _effects(codec: Codec, held: HeldOut, latents: Tensor, chosen: Tensor) -> list[Effect]:
    row_of = _rows_by_example(held)
    positions, has = row_of.shape[1], row_of >= 0
    direction = directions_of(codec, chosen)
    z = latents[row_of.clamp_min(0).flatten()][:, chosen].reshape(held.n_examples, positions, len(chosen))
    z = torch.where(has.unsqueeze(-1), z, 0.0)
    fires = z != 0
    mean = z.sum((0, 1)) / fires.sum((0, 1)).clamp_min(1)
    sample = _evenly(torch.arange(held.n_examples))
    examples, multiples, owners = [], [], []
    for i in range(len(chosen)):
        strongest = z[:, :, i].amax(1).argsort(descending=True, stable=True)
        on = _evenly(strongest[fires[strongest, :, i].any(1)])
        examples.append(torch.cat([sample, on]))
        multiples.append(torch.cat([mean[i] * has[sample], -z[on, :, i]]))
        owners.append(torch.full((len(sample) + len(on),), i))
    example, multiple, owner = torch.cat(examples), torch.cat(multiples), torch.cat(owners)
    words = held.about.words is not None
    batch = max(1, min(EFFECT_BATCH, PASS_WORDS // positions)) if words else EFFECT_BATCH
    logits = torch.cat(
        [
            _shifted(held, held.inputs[some], amount.unsqueeze(-1) * direction[of].unsqueeze(1))
            for some, amount, of in zip(*(torch.split(part, batch) for part in (example, multiple, owner)), strict=True)
        ]
    )
    losses = [
        torch.nn.functional.cross_entropy(values, held.labels[example], reduction="none").double()
        for values in (logits, held.clean[example])
    ]
    changed = (logits.argmax(-1) != held.clean[example].argmax(-1)).double()
    out, start = [], 0
    for one in examples:
        middle, end = start + len(sample), start + len(one)
        ablated = slice(middle, end)
        change = (logits[start:end] - held.clean[one]).double()
        added_logits, ablated_logits = change[: len(sample)].mean(0), change[len(sample) :].mean(0)
        ablation = Ablated(
            logits=() if words else _numbers(ablated_logits),
            loss=_number((losses[0] - losses[1])[ablated].mean()),
            changed=_number(changed[ablated].mean()),
            n=end - middle,
        )
        out.append(Effect(added_logits, ablated_logits, ablation))
        start = end
    return out


def _shifted(held: HeldOut, inputs: Tensor, change: Tensor) -> Tensor:
    """(B, C) logits with ``change`` (B, T, D) added at the hook point."""
    return spliced_logits(held.target, held.hook, inputs, lambda rows: rows + change.reshape(rows.shape))


def _evenly(items: Tensor) -> Tensor:
    """Up to ``N_EFFECT`` of them, first and last included, in even steps."""
    n = min(N_EFFECT, len(items))
    return items[torch.linspace(0, len(items) - 1, n).round().long()] if n else items


def _rows_by_example(held: HeldOut) -> Tensor:
    """(N, T) number of the row of each example and position, -1 where there is none: rows are stored shuffled."""
    positions = n_positions(held.target.spec.hook(held.hook))
    row_of = torch.full((held.n_examples, positions), -1)
    row_of[held.cluster, held.rows.position] = torch.arange(len(held.rows.position))
    return row_of


def _cosines(decoder: Tensor) -> Tensor:
    """(F, F) cosines of decoder rows, 0 of each with itself."""
    unit = torch.nn.functional.normalize(decoder.double(), dim=-1)
    return (unit @ unit.T).clamp_(-1.0, 1.0).fill_diagonal_(0.0)


def _neighbours(cosine: Tensor, live: Tensor) -> tuple[tuple[int, float | None], ...]:
    order = cosine.argsort(descending=True, stable=True)[: min(N_NEIGHBOURS, len(cosine) - 1)]
    return tuple((int(live[i]), _number(cosine[i])) for i in order)


def _counts(z: Tensor, classes: Tensor, n_classes: int, largest: float) -> dict[str, Any]:
    return {
        "class_histogram": _ints(torch.bincount(classes[z != 0], minlength=n_classes)),
        "histogram": tuple(map(_ints, _histogram(z, classes, n_classes, largest))),
    }


def _histogram(z: Tensor, classes: Tensor, n_classes: int, largest: float) -> Tensor:
    """(bins, classes) counts of rows by activation, from just above 0 to the largest."""
    on = z > 0
    place = (z[on].double() / largest * N_BINS).ceil().long().clamp(1, N_BINS) - 1
    counts = torch.bincount(place * n_classes + classes[on], minlength=N_BINS * n_classes)
    return counts.reshape(N_BINS, n_classes)


def _percents(z: Tensor, largest: float) -> Tensor:
    """(images, T) activation in percent of the largest."""
    return (z.double() / largest * 100).round().clamp(0, 100).int()


def _top_rows(values: Tensor, image: Tensor, example: Tensor | None = None) -> Tensor:
    """Rows with the largest values, at most one per distinct image (and per example), firing rows only."""
    chosen: dict[int, int] = {}
    used: set[int] = set()
    on = (values > 0).nonzero().flatten()
    for row in on[values[on].argsort(descending=True, stable=True)].tolist():
        if len(chosen) == N_TOP:
            break
        of = int(image[row])
        if of in chosen or (example is not None and int(example[row]) in used):
            continue
        chosen[of] = row
        if example is not None:
            used.add(int(example[row]))
    return torch.tensor(list(chosen.values()), dtype=torch.int64)


def _number(value: Tensor) -> float | None:
    return float(f"{value.item():.{FIGURES}g}") + 0.0 if torch.isfinite(value) else None


def _numbers(values: Tensor) -> tuple[float | None, ...]:
    return tuple(_number(value) for value in values)


def _ints(values: Tensor) -> tuple[int, ...]:
    return tuple(map(int, values.tolist()))
