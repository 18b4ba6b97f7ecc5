"""Stage ``dictionaries``: data/activations/<target>/ -> data/dictionaries/<target>/.

Writes <hook point>/<architecture>/ (SAELens format: cfg.json, sae_weights.safetensors), metrics.json (one row per hook
point, architecture and seed) and gallery.json. Every metric is of the SAVED dictionary,
loaded with ``SAE.load_from_disk``, on held-out rows; only the first seed's dictionary is kept.
"""

import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from stages import tracking
from stages.activations.cache import ActivationCache
from stages.base import paths
from stages.base.params import load
from stages.contracts.dictionary_rows import DICTIONARY_METRICS, GALLERY, DictionaryRow, Galleries, Gallery
from stages.contracts.record import Estimate
from stages.contracts.target import Target
from stages.dictionaries.evaluation.evaluate import (
    HeldOut,
    codec_of,
    evaluate,
    held_out,
    live_decoder,
    load_codec,
    random_dictionary,
    raw_probe,
)
from stages.dictionaries.evaluation.gallery import gallery_of
from stages.dictionaries.evaluation.nulls import Nulls
from stages.dictionaries.evaluation.rows import with_nulls, with_stability
from stages.dictionaries.evaluation.sinks import training_rows
from stages.dictionaries.settings import Config, TargetConfig, settings_of
from stages.dictionaries.storage import save_dictionary
from stages.dictionaries.training.train import (
    PENALISED,
    recipe_for,
    train,
)
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["Config", "main", "run"]

HEADLINE = ("explained_variance", "l0", "dead_ratio", "loss_recovered", "monosemanticity", "probe_full")
"""Metrics of the kept dictionaries that go to MLflow next to the curves."""
CURVE_POINTS = 20
"""Points per training curve: each is a transaction of the MLflow store."""


def run(config: Config, target_name: str) -> tuple[DictionaryRow, ...]:
    """Train, save and measure all dictionaries of one target; returns the rows of metrics.json.

    Raises:
        UserError: the target has no entry in params, a hook point is not cached, the cache is damaged or of another
            target, or training diverged.
    """
    settings = settings_of(config, target_name)
    torch.set_num_threads(1)
    target = load_target(target_name)
    final = paths.dictionaries_dir(target_name)
    folder = final.with_name(f".{target_name}.partial")  # what is there stays until all of the new is
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with threadpool_limits(1):  # the probes' BLAS threads spin against each other on matrices this small
            rows = _train_and_measure(config, settings, target, folder)
        shutil.rmtree(final, ignore_errors=True)
        folder.replace(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return rows


def _train_and_measure(
    config: Config, settings: TargetConfig, target: Target, folder: Path
) -> tuple[DictionaryRow, ...]:
    """Fill ``folder`` with dictionaries, metrics.json and gallery.json."""
    rows: list[DictionaryRow] = []
    galleries: list[Gallery] = []
    curves: dict[int, dict[str, float]] = defaultdict(dict)
    with tracking.stage_run(f"dictionaries {target.name}", config.model_dump(mode="json")) as log:
        for hook in settings.hooks:
            rows += _hook(config, target, hook, folder, galleries, curves)
        for step in sorted(curves):
            log(curves[step], step)
        log(
            {
                f"{row.hook_point}/{row.architecture}/{name}": value
                for row in rows
                if row.seed == config.seeds[0]
                for name in HEADLINE
                if (value := row.metrics()[name].value) is not None
            },
            settings.steps,
        )
    found = tuple(sorted(rows, key=DictionaryRow.order))
    DICTIONARY_METRICS.save(found, folder / "metrics.json")
    GALLERY.save(Galleries(target=target.name, dictionaries=tuple(galleries)), folder / "gallery.json")
    return found


def _hook(
    config: Config,
    target: Target,
    hook: str,
    folder: Path,
    galleries: list[Gallery],
    curves: dict[int, dict[str, float]],
) -> list[DictionaryRow]:
    settings = config.trained_on[target.name]
    cache = ActivationCache.open(target.name, hook, "train", digest=target.digest)
    acts = training_rows(target, cache)
    held = held_out(target, hook, config.n_probe_rows, n_examples=settings.n_examples)
    n_shown = config.n_gallery if settings.n_gallery is None else settings.n_gallery
    raw = Estimate.of(raw_probe(held))
    n_latents = settings.n_latents
    k = int(next((a.sparsity for a in config.architectures if a.name not in PENALISED), 8))
    nulls = Nulls(acts, held, config.n_resamples, config.seeds[0])
    rows: list[DictionaryRow] = []
    decoders: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for seed in config.seeds:
        null = random_dictionary(acts, n_latents, min(k, n_latents), seed)
        alone = evaluate(codec_of(null), held, config.n_resamples, seed)
        rows.append(
            DictionaryRow(
                target=target.name, hook_point=hook, architecture="random", sparsity=float(k), n_latents=n_latents,
                seed=seed, probe_raw=raw, **alone.parts(),
            )
        )  # fmt: skip
        for architecture in config.architectures:
            start = time.monotonic()
            kept = seed == config.seeds[0]
            name = f"{hook}/{architecture.called}"

            def point(values: dict[str, float], step: int, name: str = name, kept: bool = kept) -> None:
                if kept:
                    curves[step].update({f"{name}/{key}": value for key, value in values.items()})

            recipe = recipe_for(
                architecture.name, n_latents, architecture.sparsity, settings.steps, config.batch, config.lr,
                dead_window=config.dead_window_rows,
            )  # fmt: skip
            recipe = replace(
                recipe, regularisers=tuple(architecture.regularisers.items()), activation=architecture.activation
            )
            dictionary = train(
                acts, recipe, seed, log=point, log_every=max(1, settings.steps // CURVE_POINTS),
                metadata={"model_name": target.name, "hook_name": hook, "target_digest": target.digest,
                          "activations_key": cache.manifest.key},
            )  # fmt: skip
            with tempfile.TemporaryDirectory() as scratch:
                place = folder / name if kept else Path(scratch)
                save_dictionary(dictionary, place)
                codec = load_codec(place)
                decoders[architecture.called][seed] = live_decoder(codec, held)
                values = evaluate(codec, held, config.n_resamples, seed)
                if kept:
                    galleries.append(
                        Gallery(
                            target=target.name, hook_point=hook, architecture=architecture.called,
                            sparsity=architecture.sparsity, n_latents=n_latents, seed=seed,
                            **gallery_of(codec, held, n_shown).parts(),
                        )
                    )  # fmt: skip
            assert values.l0.value is not None, "the number of active latents is always defined"
            beside = with_nulls(values, nulls.at(values.l0.value, n_latents))
            rows.append(
                DictionaryRow(
                    target=target.name, hook_point=hook, architecture=architecture.called,
                    sparsity=architecture.sparsity, n_latents=n_latents, seed=seed, probe_raw=raw, **beside.parts(),
                )
            )  # fmt: skip
            print(_line(rows[-1], held, time.monotonic() - start), flush=True)
    return [
        with_stability(row, decoders[row.architecture], config.n_resamples) if row.architecture in decoders else row
        for row in rows
    ]


def _line(row: DictionaryRow, held: HeldOut, seconds: float) -> str:
    def shown(name: str) -> str:
        value = row.metrics()[name].value
        return "-" if value is None else f"{value:.3f}"

    sinks = f" (without {held.n_sinks} attention sinks)" if held.n_sinks else ""
    return (
        f"{row.target} {row.hook_point} {row.architecture} seed {row.seed}: L0 {shown('l0')},"
        f" explained variance {shown('explained_variance')}, dead {shown('dead_ratio')} of {row.n_latents}"
        f" over {len(held.rows.acts)} rows{sinks}, loss recovered {shown('loss_recovered')} ({shown('loss_spliced')}"
        f" nats; untouched {shown('loss_clean')}, ablated {shown('loss_ablated')}), monosemanticity"
        f" {shown('monosemanticity')} ({seconds:.1f} s)"
    )


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one target is needed, such as `python -m stages dictionaries digits_mlp`")
    run(load("dictionaries", Config), sys.argv[1])
