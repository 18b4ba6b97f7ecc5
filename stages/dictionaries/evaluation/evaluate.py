"""Measuring one dictionary on held-out rows: every metric of ``metrics`` with its interval and its null.

Shape legend: R = rows, D = width, F = latents, N = examples, C = outputs.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stages.activations.cache import ActivationCache, Rows
from stages.activations.order import generator_for
from stages.base.code_lengths import N_OUTPUTS
from stages.base.intervals import Interval, over_items, percentile_interval, resamples
from stages.contracts.dictionary import Dictionary
from stages.contracts.dictionary_rows import Measured
from stages.contracts.record import Estimate
from stages.contracts.target import Target
from stages.dictionaries.evaluation import geometry, metrics
from stages.dictionaries.evaluation.absorption import ClassProbe, absorption, class_probes
from stages.dictionaries.evaluation.codecs import Codec, codec_of, load_codec
from stages.dictionaries.evaluation.sinks import largest_size, without_sinks
from stages.dictionaries.evaluation.splicing import passes, replaced_logits
from stages.dictionaries.evaluation.subjects import (
    Subjects,
    distinct_examples,
    subjects,
)
from stages.dictionaries.evaluation.surprise import explained
from stages.dictionaries.foreign import check_place
from stages.errors import UserError

__all__ = ["Codec", "HeldOut", "codec_of", "evaluate", "held_out", "live_decoder", "load_codec", "random_dictionary"]

K_SPARSE = (1, 2, 5)
JACKKNIFE = 10
"""Groups of examples left out in turn for the interval of the description length."""
NO_LIKENESS = (
    "monosemanticity compares inputs by an embedding that does not come from the target; words have none here, so read"
    " class_purity, whose classes are words"
)
UNDEFINED = dict.fromkeys(("monosemanticity", "monosemanticity_shuffled"), NO_LIKENESS)
"""Metrics that say nothing where inputs are words, and why."""


class HeldOut(NamedTuple):
    """The rows one hook point's dictionaries are measured on; made once, shared by all of them."""

    target: Target
    hook: str
    rows: Rows
    """Validation rows of distinct inputs only."""
    cluster: Tensor
    """(R,) number of the example of each row, 0..n_examples-1."""
    about: Subjects
    embeddings: Tensor | None
    """(images, X) pixels of each distinct image minus the mean training image: independent of the target. None where
    inputs are words."""
    inputs: Tensor
    """(N, *input_shape) distinct validation inputs."""
    labels: Tensor
    """(N,)."""
    probe_train: tuple[Tensor, Tensor]
    """(rows, D) training activations and (rows,) classes for probes."""
    probe_test: Tensor
    """Numbers of the validation rows that probes are tested on."""
    class_probes: list[ClassProbe]
    """What the activations themselves say of each class, on the same rows."""
    clean: Tensor
    """(N, C) untouched logits."""
    largest: float
    """Norm of the largest row that is looked at; larger ones are attention sinks, see ``sinks``."""
    n_sinks: int
    """Rows of these inputs that are left out for that reason."""
    ablated: Tensor
    """(N, C) logits with zeros at the hook point, as far as it has rows: see ``replaced_logits``."""

    @property
    def n_examples(self) -> int:
        return len(self.inputs)


def held_out(
    target: Target, hook: str, n_probe_rows: int, root: Path | None = None, n_examples: int | None = None
) -> HeldOut:
    """Load what dictionaries at ``hook`` are measured on.

    Args:
        n_examples: held-out inputs at most; None: all that are cached.

    Raises:
        UserError: no cache, a damaged one or one of another target; too few classes to probe.
    """
    caches = {
        split: ActivationCache.open(target.name, hook, split, digest=target.digest, root=root)
        for split in ("train", "validation")
    }
    corpus = target.corpus("validation")
    distinct = distinct_examples(corpus.inputs)
    every = caches["validation"].read()
    distinct = distinct[torch.isin(distinct, every.example)][:n_examples]
    of_these = Rows(*(column[torch.isin(every.example, distinct)] for column in every))
    train_rows = caches["train"].read()
    largest = largest_size(target, train_rows.acts)
    rows, train_rows = without_sinks(of_these, largest), without_sinks(train_rows, largest)
    about = subjects(target, "validation", rows)
    train_about = subjects(target, "train", train_rows)
    known = (train_about.classes >= 0).nonzero().flatten()[:n_probe_rows]  # rows are shuffled: the first are a sample
    test = (about.classes >= 0).nonzero().flatten()[:n_probe_rows]
    if len(test) == 0 or len(torch.unique(train_about.classes[known])) < 2:
        what = "images" if about.words is None else "words"
        raise UserError(f"{target.name}: the {what} at {hook} have no known classes, so latents cannot be probed")
    inputs, labels = corpus.inputs[distinct], corpus.labels[distinct]
    with torch.no_grad():
        clean = torch.cat([target.model(some) for some in passes(target, inputs)])
    return HeldOut(
        target=target, hook=hook, rows=rows, cluster=torch.searchsorted(distinct, rows.example), about=about,
        embeddings=_embeddings(about, train_about), inputs=inputs, labels=labels,
        probe_train=(train_rows.acts[known], train_about.classes[known]), probe_test=test,
        class_probes=class_probes(
            train_rows.acts[known], train_about.classes[known], rows.acts[test], about.classes[test], about.n_classes
        ),
        clean=clean, largest=largest, n_sinks=len(of_these.acts) - len(rows.acts),
        ablated=replaced_logits(target, hook, inputs, torch.zeros_like, largest),
    )  # fmt: skip


def _embeddings(about: Subjects, train: Subjects) -> Tensor | None:
    if about.pixels is None or train.pixels is None:
        return None
    images = torch.zeros(int(about.image.max()) + 1, about.pixels.shape[1])
    return images.index_copy(0, about.image, about.pixels.float()) - train.pixels.float().mean(0)


def live_decoder(codec: Codec, held: HeldOut) -> Tensor:
    """(live latents, D) decoder rows of the latents that fire on the held-out rows.

    Raises:
        UserError: the dictionary says it is of another target or hook point.
    """
    check_place(codec.about, held.target, held.hook)
    with torch.no_grad():
        fired = (codec.encode(held.rows.acts) != 0).any(0)
    return codec.decoder[fired]


def random_dictionary(acts: Tensor, n_latents: int, k: int, seed: int) -> Dictionary:
    """The null every dictionary is compared with: k of n_latents random unit directions about the mean."""
    w_dec = torch.randn(n_latents, acts.shape[1], generator=generator_for("random dictionary", seed))
    w_dec = torch.nn.functional.normalize(w_dec, dim=-1)
    return {
        "cfg": {
            "architecture": "topk", "k": k, "d_in": acts.shape[1], "d_sae": n_latents, "apply_b_dec_to_input": True,
            "rescale_acts_by_decoder_norm": False,
        },
        "W_enc": w_dec.T.contiguous(), "b_enc": torch.zeros(n_latents), "W_dec": w_dec, "b_dec": acts.mean(0),
    }  # fmt: skip


def evaluate(codec: Codec, held: HeldOut, n_resamples: int, seed: int) -> Measured:
    """All metrics of one dictionary.

    Intervals (95%, bootstrap) are over examples, except for monosemanticity, class purity, class entropy, max_cosine
    and dead_ratio, whose population is the latents, and splitting and absorption, whose population is the classes; that
    of the description length is a jackknife over groups of examples. ``<metric>_shuffled`` of the first three is the
    same latents over shuffled images or classes. "null" is left empty for the caller, who knows the random dictionary.

    Raises:
        UserError: the dictionary says it is of another target or hook point, or of the target before it was retrained.
    """
    check_place(codec.about, held.target, held.hook)
    generator = generator_for("evaluation", seed)
    acts, x = held.rows.acts, held.rows.acts.double()
    with torch.no_grad():
        latents = codec.encode(acts)
        reconstruction = codec.decode(latents)
    fired = latents != 0
    alive = fired.any(0)
    weights = resamples(held.n_examples, n_resamples, generator)
    per_row = weights[:, held.cluster]
    estimates: dict[str, Any] = {
        "l0": Estimate.of(
            metrics.l0(latents), *percentile_interval(per_row @ fired.sum(-1).double() / per_row.sum(-1))
        ),
        "explained_variance": Estimate.of(
            metrics.explained_variance(acts, reconstruction), *_variance_interval(x, reconstruction.double(), per_row)
        ),
        "dead_ratio": Estimate.of(*over_items((~alive).double(), n_resamples, generator)),
        **_shrinkage(acts, reconstruction, per_row),
        "max_cosine": Estimate.of(*over_items(geometry.max_cosine(codec.decoder[alive]), n_resamples, generator)),
    }
    estimates |= _lengths(acts, latents, reconstruction, codec.decoder, held)
    behaviour, small_denominator = _behaviour(codec, held, weights)
    behaviour |= _surprise(codec, held, alive, weights)
    meaning = _meaning(latents[:, alive], held, n_resamples, generator)
    estimates |= behaviour | meaning.estimates
    estimates |= _probes(codec, held, latents, per_row, n_resamples, generator)
    measured = Measured(
        n_validation_rows=len(acts),
        n_validation_examples=held.n_examples,
        density_histogram=tuple(geometry.density_histogram(metrics.density(latents))),
        loss_recovered_small_denominator=small_denominator,
        ablation="zero",
        n_images=meaning.n_images,
        n_monosemanticity_latents=meaning.n_latents,
        **estimates,
    )
    if held.embeddings is not None:
        return measured
    return measured.model_copy(update={"undefined": UNDEFINED, "n_sinks": held.n_sinks})


def _shrinkage(acts: Tensor, reconstruction: Tensor, per_row: Tensor) -> dict[str, Estimate]:
    x, y = acts.double(), reconstruction.double()
    bias = (per_row @ y.square().sum(-1)) / (per_row @ (x * y).sum(-1))
    lengths = x.norm(dim=-1)
    kept = per_row * (lengths >= geometry.SHORT)
    ratio = kept @ (y.norm(dim=-1) / lengths.clamp_min(geometry.SHORT)) / kept.sum(-1)
    return {
        "reconstruction_bias": Estimate.of(
            metrics.reconstruction_bias(acts, reconstruction), *percentile_interval(bias)
        ),
        "l2_ratio": Estimate.of(geometry.l2_ratio(acts, reconstruction), *percentile_interval(ratio)),
    }


def _lengths(
    acts: Tensor, latents: Tensor, reconstruction: Tensor, decoder: Tensor, held: HeldOut
) -> dict[str, Estimate]:
    """Description length in bits per row, with one group of examples left out at a time for the intervals."""
    groups = min(JACKKNIFE, held.n_examples)
    without = torch.stack([(held.cluster % groups != group).double() for group in range(groups)])
    weights = torch.cat([torch.ones(1, len(acts), dtype=torch.float64), without])
    codes, residual, raw = geometry.description_lengths(acts, latents, reconstruction, decoder, weights)
    named = {"": codes + residual, "_codes": codes, "_raw": raw}
    return {
        f"description_length{suffix}": Estimate.of(float(bits[0]), *geometry.jackknife(float(bits[0]), bits[1:]))
        for suffix, bits in named.items()
    }


def _variance_interval(x: Tensor, y: Tensor, per_row: Tensor) -> Interval:
    count = per_row.sum(-1)
    residual = per_row @ (x - y).square().sum(-1)
    total = per_row @ x.square().sum(-1) - (per_row @ x).square().sum(-1) / count
    return percentile_interval(1.0 - residual / total)


def _behaviour(codec: Codec, held: HeldOut, weights: Tensor) -> tuple[dict[str, Estimate], bool]:
    """What the target still does with the reconstruction in place of the activation, and whether ablation costs too
    little for the loss recovered to say anything."""
    spliced = replaced_logits(
        held.target, held.hook, held.inputs, lambda rows: codec.decode(codec.encode(rows)), held.largest
    )
    loss = {
        name: torch.nn.functional.cross_entropy(logits, held.labels, reduction="none").double()
        for name, logits in (("clean", held.clean), ("spliced", spliced), ("ablated", held.ablated))
    }
    point = metrics.loss_recovered(loss["clean"], loss["spliced"], loss["ablated"])
    mean = {name: weights @ values / weights.sum(-1) for name, values in loss.items()}
    ratio = (mean["ablated"] - mean["spliced"]) / (mean["ablated"] - mean["clean"])
    same = (held.clean.argmax(-1) == spliced.argmax(-1)).double()
    right = {
        name: (logits.argmax(-1) == held.labels).double() for name, logits in (("clean", held.clean), ("s", spliced))
    }
    drop = right["clean"] - right["s"]
    worst = metrics.divergences(held.clean, held.ablated)
    estimates = {
        "loss_recovered": Estimate.of(point.ratio, *percentile_interval(ratio)),
        "loss_clean": Estimate.of(point.clean, *percentile_interval(mean["clean"])),
        "loss_spliced": Estimate.of(point.spliced, *percentile_interval(mean["spliced"])),
        "loss_ablated": Estimate.of(point.ablated, *percentile_interval(mean["ablated"])),
        "kl_recovered": Estimate.of(
            metrics.kl_recovered(held.clean, spliced, held.ablated),
            *percentile_interval(1.0 - (weights @ metrics.divergences(held.clean, spliced)) / (weights @ worst)),
        ),
        "accuracy_drop": Estimate.of(drop.mean().item(), *percentile_interval(weights @ drop / weights.sum(-1))),
        "top1_agreement": Estimate.of(
            metrics.top1_agreement(held.clean, spliced), *percentile_interval(weights @ same / weights.sum(-1))
        ),
    }
    return estimates, point.small_denominator


def _surprise(codec: Codec, held: HeldOut, alive: Tensor, weights: Tensor) -> dict[str, Estimate]:
    """Length, what is left unexplained, and both together; not defined where the room cannot encode."""
    if codec.dictionary is None:
        return dict.fromkeys(("length_bits", "unexplained_bits", "surprise"), Estimate.of(math.nan))

    def outputs(dictionary: Dictionary) -> Tensor:
        coded = codec_of(dictionary)
        return replaced_logits(
            held.target, held.hook, held.inputs, lambda rows: coded.decode(coded.encode(rows)), held.largest
        )

    found = explained(codec.dictionary, alive, held.clean, outputs)
    share = found.length / N_OUTPUTS
    low, high = percentile_interval(weights @ found.unexplained / weights.sum(-1))
    return {
        "length_bits": Estimate.of(found.length),
        "unexplained_bits": Estimate.of(float(found.unexplained.mean()), low, high),
        "surprise": Estimate.of(found.surprise, low + share, high + share),
    }


class _Meaning(NamedTuple):
    estimates: dict[str, Estimate]
    n_images: int
    n_latents: int
    """Whose monosemanticity is defined."""


def image_latents(latents: Tensor, image: Tensor) -> Tensor:
    """(images, F) mean over the rows about each distinct image."""
    n = int(image.max()) + 1
    total = torch.zeros(n, latents.shape[1], dtype=torch.float64).index_add(0, image, latents.double())
    return total / torch.bincount(image, minlength=n).unsqueeze(-1)


def _meaning(latents: Tensor, held: HeldOut, n_resamples: int, generator: torch.Generator) -> _Meaning:
    """Monosemanticity per distinct image, purity and entropy per row of known class; live latents only."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    n_images, n_latents = int(held.about.image.max()) + 1, 0
    if held.embeddings is not None:
        by_image = image_latents(latents, held.about.image)
        shuffled = by_image[torch.randperm(len(by_image), generator=generator)]
        pairs["monosemanticity"] = (
            metrics.monosemanticity(by_image, held.embeddings),
            metrics.monosemanticity(shuffled, held.embeddings),
        )
        n_latents = int(torch.isfinite(pairs["monosemanticity"][0]).sum())
    known, n_classes = held.about.classes >= 0, held.about.n_classes
    z, classes = latents[known], held.about.classes[known]
    mixed = classes[torch.randperm(len(classes), generator=generator)]
    pairs["class_purity"] = (
        metrics.class_purity(z, classes, n_classes),
        metrics.class_purity(z, mixed, n_classes),
    )
    pairs["class_entropy"] = (
        metrics.class_entropy(z, classes, n_classes),
        metrics.class_entropy(z, mixed, n_classes),
    )
    estimates = {
        name + suffix: Estimate.of(*over_items(value, n_resamples, generator))
        for name, both in pairs.items()
        for suffix, value in zip(("", "_shuffled"), both, strict=True)
    }
    if held.embeddings is None:
        estimates |= {name: Estimate.of(math.nan) for name in UNDEFINED}
    return _Meaning(estimates, n_images, n_latents)


def _probes(
    codec: Codec, held: HeldOut, latents: Tensor, per_row: Tensor, n_resamples: int, generator: torch.Generator
) -> dict[str, Estimate]:
    """Class of a row from k latents (balanced accuracy, chance 0.5) and from all (accuracy); absorption."""
    train_acts, train_classes = held.probe_train
    with torch.no_grad():
        train = codec.encode(train_acts)
    test, classes = latents[held.probe_test], held.about.classes[held.probe_test]
    weights = per_row[:, held.probe_test]
    out = {}
    for k in K_SPARSE:
        right = metrics.k_sparse_probing(train, train_classes, test, classes, held.about.n_classes, k)
        out[f"probe_{k}_sparse"] = Estimate.of(
            metrics.balanced_accuracy(right, classes).item(),
            *percentile_interval(metrics.balanced_accuracy(right, classes, weights)),
        )
    right = metrics.full_probing(train, train_classes, test, classes).double()
    out["probe_full"] = Estimate.of(right.mean().item(), *percentile_interval(weights @ right / weights.sum(-1)))
    found = absorption(held.class_probes, train, train_classes, test, classes, codec.decoder)
    named = {"splitting": found.splitting, "absorption": found.fraction, "absorption_full": found.full}
    return out | {name: Estimate.of(*over_items(of, n_resamples, generator)) for name, of in named.items()}


def raw_probe(held: HeldOut) -> float:
    """Accuracy of the full probe on the activations themselves: what there is to read at this hook point."""
    train, classes = held.probe_train
    right = metrics.full_probing(train, classes, held.rows.acts[held.probe_test], held.about.classes[held.probe_test])
    return right.double().mean().item() if len(right) else math.nan
