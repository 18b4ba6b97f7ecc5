"""What `lensmith dictionaries` shows and does: list, train, evaluate and compare dictionaries."""

from pathlib import Path

import torch

from stages.activations.cache import ActivationCache
from stages.activations.order import generator_for
from stages.base import paths
from stages.base.intervals import over_items
from stages.base.params import load
from stages.contracts.dictionary_rows import DICTIONARY_METRICS, Measured
from stages.contracts.record import Estimate, Record
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
from stages.dictionaries.evaluation.rows import with_nulls
from stages.dictionaries.evaluation.sinks import training_rows
from stages.dictionaries.stage import Config
from stages.dictionaries.storage import CFG, load_dictionary, save_dictionary
from stages.dictionaries.training.train import recipe_for, train
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = [
    "compare_dictionaries",
    "dictionary_folder",
    "evaluate_dictionary",
    "held_out_inputs",
    "list_dictionaries",
    "place_of",
    "train_one",
]

SHOWN = ("l0", "explained_variance", "dead_ratio", "loss_recovered", "monosemanticity", "probe_full")


class ListedDictionary(Record):
    """A saved dictionary with its headline metrics."""

    name: str
    """<target>/<hook point>/<architecture>."""
    d: int
    """Width of the activations."""
    n_latents: int
    """Size of the dictionary."""
    l0: float | None
    """Mean number of active latents per row; null where it was not measured, as below."""
    explained_variance: float | None
    """Share of the activations' variance that the reconstruction explains."""
    dead_ratio: float | None
    """Share of latents that never fire on held-out rows."""
    loss_recovered: float | None
    """Share of the loss that zero ablation costs which the reconstruction recovers."""
    monosemanticity: float | None
    """Likeness of the images a latent fires for."""
    probe_full: float | None
    """Accuracy of a class probe on all latents."""


class EvaluatedDictionary(Measured):
    """Every metric of one saved dictionary, wherever it comes from."""

    target: str
    """Model whose activations it is of."""
    hook_point: str
    """Where those activations are read."""
    architecture: str
    """The form in which it is saved."""
    n_latents: int
    """Size of the dictionary."""
    probe_raw: Estimate
    """Accuracy of the full probe on the activations themselves."""
    folder: str | None = None
    """Where it was saved, if it was trained just now."""
    seed: int | None = None
    """Of its initial weights and the order of rows, if it was trained just now."""


class ComparedMetric(Record):
    """One metric of two dictionaries."""

    metric: str
    """Its name."""
    one: float | None
    """Of the first."""
    other: float | None
    """Of the second."""
    one_interval: tuple[float | None, float | None]
    """95% interval of the first."""
    other_interval: tuple[float | None, float | None]
    """95% interval of the second."""


class Comparison(Record):
    """Two dictionaries of one width."""

    one: str
    """Name of the first."""
    other: str
    """Name of the second."""
    n_matched: int
    """Pairs of live latents that were matched."""
    likeness: Estimate
    """Mean cosine of the matched pairs; the null is that of random directions in the same numbers."""
    share_matched: Estimate
    """Share of the pairs whose cosine is high enough to count as the same latent."""
    metrics: tuple[ComparedMetric, ...]
    """Every metric of both."""


def list_dictionaries() -> list[ListedDictionary]:
    """Saved dictionaries of all targets, with their headline metrics.

    Raises:
        UserError: there is none.
    """
    base = paths.dictionaries_dir("any").parent
    rows = []
    attached = paths.attached_dir("any").parent.glob(f"*/*/*/{CFG}")
    for file in [*sorted(base.glob(f"*/*/*/{CFG}")), *sorted(attached)]:
        target, hook, architecture = file.parts[-4:-1]
        metrics = base / target / "metrics.json"
        measured = DICTIONARY_METRICS.load(metrics) if metrics.is_file() else ()
        of = [row for row in measured if (row.hook_point, row.architecture) == (hook, architecture)]
        cfg = load_dictionary(file.parent)["cfg"]
        first = min(of, key=lambda one: one.seed, default=None)
        found = {name: first.metrics()[name].value if first else None for name in SHOWN}
        rows.append(
            ListedDictionary(name=f"{target}/{hook}/{architecture}", d=cfg["d_in"], n_latents=cfg["d_sae"], **found)
        )
    if not rows:
        raise UserError(f"{base} holds no dictionary: `lensmith run` or `lensmith dictionaries train` makes them")
    return rows


def dictionary_folder(name: str) -> Path:
    """A folder, or the name of a listed dictionary."""
    for folder in (
        Path(name),
        *(base.parent / name for base in (paths.dictionaries_dir("any"), paths.attached_dir("any"))),
    ):
        if (folder / CFG).is_file():
            return folder
    raise UserError(f"{name} is no dictionary: give a folder with {CFG}, or a name from `lensmith dictionaries list`")


def held_out_inputs(config: Config, target: str) -> int | None:
    """Held-out inputs that params give dictionaries of a target."""
    return config.trained_on[target].n_examples if target in config.trained_on else None


def place_of(folder: Path) -> tuple[str, str]:
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
) -> EvaluatedDictionary:  # fmt: skip
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
        dictionary = baseline(architecture, training_rows(target, cache), n_latents, int(sparsity), seed)
        dictionary["cfg"]["metadata"] |= about
    else:
        recipe = recipe_for(architecture, n_latents, sparsity, steps, batch, lr)
        dictionary = train(training_rows(target, cache), recipe, seed, metadata=about)
    save_dictionary(dictionary, out)
    return evaluate_dictionary(str(out), seed=seed).model_copy(update={"folder": str(out), "seed": seed})


def evaluate_dictionary(
    name: str, target: str | None = None, hook: str | None = None, seed: int = 0
) -> EvaluatedDictionary:
    """All metrics of a saved dictionary on held-out rows of its target, next to those of a random one of its L0.

    Args:
        name: a folder in SAELens format, or a name of ``list_dictionaries``.
        target, hook: where the dictionary does not say it.
    """
    torch.set_num_threads(1)
    folder = dictionary_folder(name)
    if target is None or hook is None:
        target, hook = place_of(folder)
    config = load("dictionaries", Config)
    made = load_target(target)
    held = held_out(made, hook, config.n_probe_rows, n_examples=held_out_inputs(config, made.name))
    codec = load_codec(folder)
    if codec.decoder.shape[1] != held.rows.acts.shape[1]:
        raise UserError(f"{folder} takes rows of {codec.decoder.shape[1]}, {hook} has {held.rows.acts.shape[1]}")
    values = evaluate(codec, held, config.n_resamples, seed)
    assert values.l0.value is not None, "the number of active latents is always defined"
    k = max(1, min(codec.n_latents, round(values.l0.value)))
    train_acts = training_rows(made, ActivationCache.open(made.name, hook, "train", digest=made.digest))
    null = random_dictionary(train_acts, codec.n_latents, k, seed)
    beside = with_nulls(values, evaluate(codec_of(null), held, config.n_resamples, seed))
    return EvaluatedDictionary(
        target=target,
        hook_point=hook,
        architecture=load_dictionary(folder)["cfg"]["architecture"],
        n_latents=codec.n_latents,
        probe_raw=Estimate.of(raw_probe(held)),
        **beside.parts(),
    )


def compare_dictionaries(one: str, other: str) -> Comparison:
    """Every metric of both, and how alike their live latents are, next to random directions in the same numbers."""
    folders = dictionary_folder(one), dictionary_folder(other)
    rows = [evaluate_dictionary(str(folder)) for folder in folders]
    config = load("dictionaries", Config)
    decoders = []
    for folder, row in zip(folders, rows, strict=True):
        held = held_out(
            load_target(row.target),
            row.hook_point,
            config.n_probe_rows,
            n_examples=held_out_inputs(config, row.target),
        )
        decoders.append(live_decoder(load_codec(folder), held))
    if decoders[0].shape[1] != decoders[1].shape[1]:
        raise UserError(f"{one} takes rows of {decoders[0].shape[1]}, {other} of {decoders[1].shape[1]}")
    cosines, generator = matched_cosines(*decoders), generator_for("compare intervals")
    null = random_likeness(len(decoders[0]), len(decoders[1]), decoders[0].shape[1], generator_for("compare"))
    theirs = rows[1].metrics()
    return Comparison(
        one=one,
        other=other,
        n_matched=len(cosines),
        likeness=Estimate.of(*over_items(cosines, config.n_resamples, generator), null.mcc),
        share_matched=Estimate.of(
            *over_items((cosines >= MATCHED).double(), config.n_resamples, generator), null.matched
        ),
        metrics=tuple(
            ComparedMetric(
                metric=name,
                one=mine.value,
                other=theirs[name].value,
                one_interval=(mine.low, mine.high),
                other_interval=(theirs[name].low, theirs[name].high),
            )
            for name, mine in rows[0].metrics().items()
        ),
    )
