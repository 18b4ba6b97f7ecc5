"""What latents mean and do, one record each: what the feature pages of the report show.

Shape legend: R = rows, F = latents, D = width, N = examples, T = positions of an example, C = outputs.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stages.contracts.dictionary_rows import Ablated, Latent, Pages
from stages.dictionaries.evaluation import geometry, metrics
from stages.dictionaries.evaluation.evaluate import Codec, HeldOut, image_latents, spliced_logits
from stages.dictionaries.evaluation.subjects import N_CLASSES

__all__ = ["N_BINS", "N_EFFECT", "N_NEIGHBOURS", "N_TOP", "directions_of", "effects_of", "gallery_of", "grid_of"]

N_TOP = 9
"""Images per latent: a 3 x 3 grid."""
N_BINS = 10
"""Bins of the activation histogram, equally wide from 0 to the largest activation."""
N_NEIGHBOURS = 5
N_EFFECT = 8
"""Examples a latent is ablated on, and examples it is added to."""
EFFECT_BATCH = 512
"""Examples per forward pass of those; bounds memory."""
MIN_FIRINGS = 5
"""Distinct images a latent must fire for to stand among the first: fewer make any purity look good."""
FIGURES = 4
"""Significant figures kept."""
SHADES = "0123456789abcdefg"
"""One character per pixel level, 0..16."""


class Effect(NamedTuple):
    """What a latent does to the outputs."""

    logit_effect: tuple[float | None, ...]
    """(C,) mean change of each logit when it is added."""
    ablation: Ablated


def gallery_of(codec: Codec, held: HeldOut, n_latents: int) -> Pages:
    """Records of up to ``n_latents`` live latents, most selective first; about 1.3 kB each plus positions.

    Latents that fire for fewer than ``MIN_FIRINGS`` distinct images come after all others.
    """
    with torch.no_grad():
        latents = codec.encode(held.rows.acts)
    fired = latents != 0
    live = fired.any(0).nonzero().flatten()
    known = held.about.classes >= 0
    classes = held.about.classes[known]
    strength, best_class = metrics.selectivity(latents[known], classes, N_CLASSES)
    by_image = image_latents(latents, held.about.image)
    n_images = (by_image != 0).sum(0)
    cosine = _cosines(codec.decoder[live])
    scores = {
        "selectivity": strength,
        "purity": metrics.class_purity(latents[known], classes, N_CLASSES),
        "entropy": metrics.class_entropy(latents[known], classes, N_CLASSES),
        "density": metrics.density(latents),
        "monosemanticity": metrics.monosemanticity(by_image, held.embeddings),
        "mean_activation": latents.double().sum(0) / fired.sum(0),
        "max_activation": latents.amax(0),
        "max_cosine": torch.full((codec.n_latents,), math.nan).index_copy(
            0, live, geometry.max_cosine(codec.decoder[live]).float()
        ),
    }
    ranked = torch.where(n_images >= MIN_FIRINGS, strength, strength - 1.0 - MIN_FIRINGS)
    chosen = live[ranked[live].argsort(descending=True, stable=True)][:n_latents]
    place = {latent: i for i, latent in enumerate(live.tolist())}
    row_of = _rows_by_example(held)
    effects = effects_of(codec, held, latents, chosen)
    images: dict[str, int] = {}
    pages = []
    for latent, effect in zip(chosen.tolist(), effects, strict=True):
        z = latents[:, latent]
        top = _top_rows(z, held.about.image)
        largest = float(scores["max_activation"][latent])
        pictures = ["".join(SHADES[level] for level in pixels) for pixels in held.about.pixels[top].tolist()]
        pages.append(
            Latent(
                latent=latent,
                class_=int(best_class[latent]),
                n_images=int(n_images[latent]),
                class_histogram=_ints(torch.bincount(classes[fired[known, latent]], minlength=N_CLASSES)),
                histogram=tuple(map(_ints, _histogram(z[known], classes, largest))),
                images=tuple(images.setdefault(picture, len(images)) for picture in pictures),
                activations=_numbers(z[top]),
                classes=_ints(held.about.classes[top]),
                positions=_ints(held.rows.position[top]),
                examples=_ints(held.rows.example[top]),
                heat=None
                if row_of.shape[1] == 1
                else tuple(map(_ints, _percents(z[row_of[held.cluster[top]]], largest))),
                neighbours=_neighbours(cosine[place[latent]], live),
                logit_effect=effect.logit_effect,
                ablation=effect.ablation,
                **{name: _number(values[latent]) for name, values in scores.items()},
            )
        )
    return Pages(
        images=tuple(images),
        grid=grid_of(held.target.spec.hook(held.hook).shape, row_of.shape[1]),
        n_rows=len(latents),
        n_examples=held.n_examples,
        n_live=len(live),
        latents=tuple(pages),
    )


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

    The activation x at the hook point is changed by a multiple of the latent's direction d, at every position:
    added x + mean activation * d, on ``N_EFFECT`` examples that are the same for all latents; ablated x - z(x) * d, on
    up to ``N_EFFECT`` examples for which it fires, from the strongest to the weakest in even steps. Two forward passes
    per latent of that many examples, batched over latents. z is of the cached rows, so it has their precision.

    Args:
        latents: (R, F) of all held-out rows.
        chosen: (n,) latents.
    """
    row_of = _rows_by_example(held)
    positions = row_of.shape[1]
    direction = directions_of(codec, chosen)
    z = latents[row_of.flatten()][:, chosen].reshape(held.n_examples, positions, len(chosen))
    fires = z != 0
    mean = z.sum((0, 1)) / fires.sum((0, 1)).clamp_min(1)
    sample = _evenly(torch.arange(held.n_examples))
    examples, multiples, owners = [], [], []
    for i in range(len(chosen)):
        strongest = z[:, :, i].amax(1).argsort(descending=True, stable=True)
        on = _evenly(strongest[fires[strongest, :, i].any(1)])
        examples.append(torch.cat([sample, on]))
        multiples.append(torch.cat([mean[i].expand(len(sample), positions), -z[on, :, i]]))
        owners.append(torch.full((len(sample) + len(on),), i))
    if not owners:
        return []
    example, multiple, owner = torch.cat(examples), torch.cat(multiples), torch.cat(owners)
    logits = torch.cat(
        [
            _shifted(held, held.inputs[some], amount.unsqueeze(-1) * direction[of].unsqueeze(1))
            for some, amount, of in zip(
                *(torch.split(part, EFFECT_BATCH) for part in (example, multiple, owner)), strict=True
            )
        ]
    )
    change = (logits - held.clean[example]).double()
    losses = [
        torch.nn.functional.cross_entropy(values, held.labels[example], reduction="none").double()
        for values in (logits, held.clean[example])
    ]
    changed = (logits.argmax(-1) != held.clean[example].argmax(-1)).double()
    out, start = [], 0
    for one in examples:
        middle, end = start + len(sample), start + len(one)
        ablated = slice(middle, end)
        ablation = Ablated(
            logits=_numbers(change[ablated].mean(0)),
            loss=_number((losses[0] - losses[1])[ablated].mean()),
            changed=_number(changed[ablated].mean()),
            n=end - middle,
        )
        out.append(Effect(_numbers(change[start:middle].mean(0)), ablation))
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
    """(N, T) number of the row of each example and position: rows are stored shuffled."""
    positions = int(held.rows.position.max()) + 1
    order = (held.cluster * positions + held.rows.position).argsort()
    return order.reshape(held.n_examples, positions)


def _cosines(decoder: Tensor) -> Tensor:
    """(F, F) cosines of decoder rows, 0 of each with itself."""
    unit = torch.nn.functional.normalize(decoder.double(), dim=-1)
    return (unit @ unit.T).clamp_(-1.0, 1.0).fill_diagonal_(0.0)


def _neighbours(cosine: Tensor, live: Tensor) -> tuple[tuple[int, float | None], ...]:
    order = cosine.argsort(descending=True, stable=True)[: min(N_NEIGHBOURS, len(cosine) - 1)]
    return tuple((int(live[i]), _number(cosine[i])) for i in order)


def _histogram(z: Tensor, classes: Tensor, largest: float) -> Tensor:
    """(bins, classes) counts of rows by activation, from just above 0 to the largest."""
    on = z > 0
    place = (z[on].double() / largest * N_BINS).ceil().long().clamp(1, N_BINS) - 1
    counts = torch.bincount(place * N_CLASSES + classes[on], minlength=N_BINS * N_CLASSES)
    return counts.reshape(N_BINS, N_CLASSES)


def _percents(z: Tensor, largest: float) -> Tensor:
    """(images, T) activation in percent of the largest."""
    return (z.double() / largest * 100).round().clamp(0, 100).int()


def _top_rows(values: Tensor, image: Tensor) -> Tensor:
    """Rows with the largest values, at most one per distinct image, firing rows only."""
    chosen: dict[int, int] = {}
    for row in values.argsort(descending=True, stable=True).tolist():
        if values[row] <= 0 or len(chosen) == N_TOP:
            break
        chosen.setdefault(int(image[row]), row)
    return torch.tensor(list(chosen.values()), dtype=torch.int64)


def _number(value: Tensor) -> float | None:
    return float(f"{value.item():.{FIGURES}g}") + 0.0 if torch.isfinite(value) else None


def _numbers(values: Tensor) -> tuple[float | None, ...]:
    return tuple(_number(value) for value in values)


def _ints(values: Tensor) -> tuple[int, ...]:
    return tuple(map(int, values.tolist()))
