"""Stage ``dictionaries``: data/activations/<target>/ -> data/dictionaries/<target>/.

Writes <hook point>/<architecture>/ (SAELens format: cfg.json, sae_weights.safetensors), metrics.json (one row per hook
point, architecture and seed) and gallery.json. ``summary`` joins the metrics of all targets of params into
metrics/dictionaries.json. Every metric is of the SAVED dictionary, loaded with ``SAE.load_from_disk``, on held-out
rows; only the first seed's dictionary is kept.
"""

import json
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import Field, field_validator
from threadpoolctl import threadpool_limits
from torch import Tensor

from stages import tracking
from stages.activations.cache import ActivationCache
from stages.base import paths
from stages.base.params import Params, load
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
from stages.dictionaries.evaluation.rows import (
    Row,
    finish,
    order_of,
    stability,
    write_json,
)
from stages.dictionaries.storage import save_dictionary
from stages.dictionaries.sweep import Nulls, SweepConfig, SweepSettings
from stages.dictionaries.sweep import run as run_sweep
from stages.dictionaries.training.train import (
    ARCHITECTURES,
    PENALISED,
    recipe_for,
    train,
)
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["ArchitectureConfig", "Config", "TargetConfig", "main", "run", "summarise", "sweep"]

HEADLINE = ("explained_variance", "l0", "dead_ratio", "loss_recovered", "monosemanticity", "probe_full")
"""Metrics of the kept dictionaries that go to MLflow next to the curves."""
CURVE_POINTS = 20
"""Points per training curve: each is a transaction of the MLflow store."""


class ArchitectureConfig(Params):
    name: str
    """One of ``training.ARCHITECTURES``; standard is ReLU with an L1 penalty."""
    sparsity: float = Field(gt=0)
    """L1 coefficient (standard) or latents per row (topk, batchtopk)."""
    label: str = Field(default="", pattern=r"^[A-Za-z0-9_.-]*$")
    """What it is called in files and tables; the name by default. For a second one of the same name."""
    regularisers: dict[str, float] = Field(default_factory=dict)
    """Coefficients of regularisers added to the loss, by name (see custom_objectives.py)."""
    activation: str = ""
    """Name of an activation in place of ReLU (standard only)."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise ValueError(f"architecture {name!r} is unknown; known: {', '.join(ARCHITECTURES)}")
        return name

    @property
    def called(self) -> str:
        return self.label or self.name


class TargetConfig(Params):
    hooks: tuple[str, ...] = Field(min_length=1)
    """Hook points to train dictionaries at; they must be cached."""
    n_latents: int = Field(ge=2, le=65_536)
    """Size of every dictionary of this target."""
    steps: int = Field(ge=1, le=1_000_000)
    """Optimiser steps."""
    n_swept: int = Field(default=1, ge=0)
    """Hook points the sweep covers, counted from the last; 0: none."""


class Config(Params):
    targets: dict[str, TargetConfig] = Field(min_length=1)
    """By name; ``summary`` joins exactly these."""
    architectures: tuple[ArchitectureConfig, ...] = Field(min_length=1)
    """Trained at every hook point, each once per seed."""
    batch: int = Field(ge=2, le=1_000_000)
    """Rows per step."""
    lr: float = Field(gt=0, le=1)
    """Learning rate of Adam."""
    dead_window_rows: int = Field(ge=1)
    """Rows without firing after which AuxK works on a latent."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Of the weights and the order of rows. The first one's dictionary is kept."""
    n_resamples: int = Field(ge=20, le=100_000)
    """Bootstrap resamples per interval."""
    n_probe_rows: int = Field(ge=20)
    """Rows that probes are trained on, and at most tested on."""
    sweep: SweepConfig
    """Sparsities, sizes and baselines that are measured beside the kept dictionaries."""
    n_gallery: int = Field(ge=0, le=2000)
    """Latents per dictionary in the gallery, at most; each is about 1.3 kB there."""


def run(config: Config, target_name: str) -> list[Row]:
    """Train, save and measure all dictionaries of one target; returns the rows of metrics.json.

    Raises:
        UserError: the target has no entry in params, a hook point is not cached, the cache is damaged or of another
            target, or training diverged.
    """
    settings = _settings(config, target_name)
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


def _train_and_measure(config: Config, settings: TargetConfig, target: Target, folder: Path) -> list[Row]:
    """Fill ``folder`` with dictionaries, metrics.json and gallery.json."""
    rows: list[Row] = []
    galleries: list[Row] = []
    curves: dict[int, dict[str, float]] = defaultdict(dict)
    with tracking.stage_run(f"dictionaries {target.name}", config.model_dump(mode="json")) as log:
        for hook in settings.hooks:
            rows += _hook(config, target, hook, folder, galleries, curves)
        for step in sorted(curves):
            log(curves[step], step)
        log(
            {
                f"{row['hook_point']}/{row['architecture']}/{name}": row[name]["value"]
                for row in rows
                if row["seed"] == config.seeds[0]
                for name in HEADLINE
                if row[name]["value"] is not None
            },
            settings.steps,
        )
    rows.sort(key=order_of)
    write_json(folder / "metrics.json", rows)
    write_json(folder / "gallery.json", {"target": target.name, "dictionaries": galleries}, indent=None)
    return rows


def _hook(
    config: Config,
    target: Target,
    hook: str,
    folder: Path,
    galleries: list[Row],
    curves: dict[int, dict[str, float]],
) -> list[Row]:
    settings = config.targets[target.name]
    cache = ActivationCache.open(target.name, hook, "train", digest=target.digest)
    acts = cache.read().acts
    held = held_out(target, hook, config.n_probe_rows)
    raw = raw_probe(held)
    common: Row = {"target": target.name, "hook_point": hook, "n_latents": settings.n_latents}
    k = int(next((a.sparsity for a in config.architectures if a.name not in PENALISED), 8))
    nulls = Nulls(acts, held, config.n_resamples, config.seeds[0])
    rows: list[Row] = []
    decoders: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for seed in config.seeds:
        null = random_dictionary(acts, settings.n_latents, min(k, settings.n_latents), seed)
        alone = evaluate(codec_of(null), held, config.n_resamples, seed)
        rows.append(common | {"architecture": "random", "sparsity": float(k), "seed": seed} | finish(alone, None, raw))
        for architecture in config.architectures:
            start = time.monotonic()
            kept = seed == config.seeds[0]
            name = f"{hook}/{architecture.called}"

            def point(values: dict[str, float], step: int, name: str = name, kept: bool = kept) -> None:
                if kept:
                    curves[step].update({f"{name}/{key}": value for key, value in values.items()})

            recipe = recipe_for(
                architecture.name, settings.n_latents, architecture.sparsity, settings.steps, config.batch, config.lr,
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
                    which = {"architecture": architecture.called, "sparsity": architecture.sparsity, "seed": seed}
                    galleries.append(common | which | gallery_of(codec, held, config.n_gallery))
            about = {"architecture": architecture.called, "sparsity": architecture.sparsity, "seed": seed}
            rows.append(common | about | finish(values, nulls.at(values["l0"]["value"], settings.n_latents), raw))
            print(_line(rows[-1], held, time.monotonic() - start), flush=True)
    for row in rows:
        if row["architecture"] in decoders:
            row |= stability(row["seed"], decoders[row["architecture"]], config.n_resamples)
    return rows


def _line(row: Row, held: HeldOut, seconds: float) -> str:
    def shown(name: str) -> str:
        value = row[name]["value"]
        return "-" if value is None else f"{value:.3f}"

    return (
        f"{row['target']} {row['hook_point']} {row['architecture']} seed {row['seed']}: L0 {shown('l0')},"
        f" explained variance {shown('explained_variance')}, dead {shown('dead_ratio')} of {row['n_latents']}"
        f" over {len(held.rows.acts)} rows, loss recovered {shown('loss_recovered')},"
        f" monosemanticity {shown('monosemanticity')} ({seconds:.1f} s)"
    )


def sweep(config: Config, target_name: str) -> list[Row]:
    """Stage ``sweep`` of one target; returns its rows."""
    of = _settings(config, target_name)
    hooks = of.hooks[max(0, len(of.hooks) - of.n_swept) :]
    settings = SweepSettings(
        config.sweep, hooks, of.n_latents, of.steps, config.batch, config.lr, config.dead_window_rows, config.seeds,
        config.n_resamples, config.n_probe_rows,
    )  # fmt: skip
    return run_sweep(settings, load_target(target_name))


def summarise(config: Config) -> list[Row]:
    """Join metrics.json of the kept and of the swept dictionaries of all targets into metrics/dictionaries.json.

    A dictionary of the sweep that is one of the kept ones stands there once, as the kept one. Where a method was built
    on it, ``reward`` (of that method, which reads all hook points) and ``answer_flops`` stand in its row.

    Raises:
        UserError: a target's metrics are missing.
    """
    rows: list[Row] = []
    for name in sorted(config.targets):
        for folder, stage in ((paths.dictionaries_dir(name), "dictionaries"), (paths.sweep_dir(name), "sweep")):
            file = paths.require(folder / "metrics.json", stage)
            known = {order_of(row) for row in rows}
            rows += [row for row in json.loads(file.read_text(encoding="utf-8")) if order_of(row) not in known]
        file = paths.require(paths.downstream_file(name), "downstream")
        rewards = {_method_of(row): row for row in json.loads(file.read_text(encoding="utf-8"))}
        for row in rows:
            if row["target"] == name and (found := rewards.get(_method_of(row))):
                row |= {"reward": found["reward"], "answer_flops": found["flops"]}
    rows.sort(key=order_of)
    out = paths.metrics_file("dictionaries")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, rows)
    return rows


def _method_of(row: Row) -> tuple[str, float, int, int]:
    """What a dictionary has in common with those at other hook points that make up one method with it."""
    return row["architecture"], row["sparsity"], row["n_latents"], row["seed"]


def _settings(config: Config, target: str) -> TargetConfig:
    if target not in config.targets:
        raise UserError(
            f"target {target!r} has no entry in {paths.params_file('dictionaries')}; it has"
            f" {', '.join(sorted(config.targets))}; add one under `targets`"
        )
    return config.targets[target]


def main() -> None:
    config = load("dictionaries", Config)
    if sys.argv[1] == "summary":
        summarise(config)
    elif sys.argv[1] == "sweep":
        sweep(config, sys.argv[2])
    else:
        run(config, sys.argv[1])
