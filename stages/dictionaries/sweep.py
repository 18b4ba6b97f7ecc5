"""Stage ``sweep``: every architecture at several sparsities, sizes and seeds, and the baselines, at the same places.

data/activations/<target>/ -> data/sweep/<target>/: metrics.json with one row per dictionary, as the stage
``dictionaries`` writes them, and <hook point>/<name>/ with the dictionary itself. So architectures are compared along
curves, at the same L0, and not at single points.
"""

import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from stages import tracking
from stages.activations.cache import ActivationCache
from stages.base import paths
from stages.base.params import load
from stages.contracts.dictionary import Dictionary
from stages.contracts.dictionary_rows import SWEEP_METRICS, DictionaryRow
from stages.contracts.record import Estimate
from stages.contracts.target import Target
from stages.dictionaries.evaluation.baselines import BASELINES, baseline
from stages.dictionaries.evaluation.evaluate import (
    evaluate,
    held_out,
    live_decoder,
    load_codec,
    raw_probe,
)
from stages.dictionaries.evaluation.nulls import Nulls
from stages.dictionaries.evaluation.rows import with_nulls, with_stability
from stages.dictionaries.evaluation.sinks import training_rows
from stages.dictionaries.settings import Config, SweepConfig, settings_of
from stages.dictionaries.storage import save_dictionary
from stages.dictionaries.training.train import recipe_for, train
from stages.errors import UserError
from stages.targets.storage import load_target

__all__ = ["SweepSettings", "main", "run", "sweep"]

LOGGED = ("l0", "explained_variance", "loss_recovered", "monosemanticity", "probe_5_sparse")
"""Metrics that go to MLflow, a point per dictionary."""


class SweepSettings(NamedTuple):
    """What one run needs of params/dictionaries.yaml."""

    sweep: SweepConfig
    hooks: tuple[str, ...]
    n_latents: int
    steps: int
    batch: int
    lr: float
    dead_window: int
    seeds: tuple[int, ...]
    n_resamples: int
    n_probe_rows: int
    n_examples: int | None = None
    """Held-out inputs at most."""


class Point(NamedTuple):
    """One dictionary to be."""

    architecture: str
    sparsity: float
    n_latents: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.architecture}-{self.sparsity:g}-{self.n_latents}-s{self.seed}"


def points(settings: SweepSettings, width: int) -> Iterator[Point]:
    """Every dictionary of one hook point, baselines first."""
    sweep = settings.sweep
    for name in sweep.baselines:
        for k in sweep.k:
            if k <= 2 * min(width, settings.n_latents // 2):
                yield Point(name, float(k), settings.n_latents, settings.seeds[0])
    sizes = [max(2, round(size * settings.n_latents)) for size in sweep.sizes]
    for name, sparsities in sweep.architectures.items():
        grid = [(sparsity, settings.n_latents) for sparsity in sparsities] + [(sparsities[0], size) for size in sizes]
        for sparsity, n_latents in dict.fromkeys(grid):
            for seed in settings.seeds:
                yield Point(name, sparsity, n_latents, seed)


def run(settings: SweepSettings, target: Target) -> tuple[DictionaryRow, ...]:
    """Train, save and measure; returns the rows of metrics.json. What was there stays until all of the new is.

    Raises:
        UserError: a hook point is not cached, the cache is damaged or of another target, or training diverged.
    """
    torch.set_num_threads(1)
    final = paths.sweep_dir(target.name)
    folder = final.with_name(f".{target.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    about = {"hooks": list(settings.hooks), "sweep": settings.sweep.model_dump(mode="json")}
    try:
        with threadpool_limits(1), tracking.stage_run(f"sweep {target.name}", about) as log:
            rows = [row for hook in settings.hooks for row in _hook(settings, target, hook, folder)]
            for number, row in enumerate(rows):
                values = {name: row.metrics()[name].value for name in LOGGED}
                log({f"{row.hook_point}/{name}": value for name, value in values.items() if value is not None}, number)
        found = tuple(sorted(rows, key=DictionaryRow.order))
        SWEEP_METRICS.save(found, folder / "metrics.json")
        shutil.rmtree(final, ignore_errors=True)
        folder.replace(final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def _hook(settings: SweepSettings, target: Target, hook: str, folder: Path) -> list[DictionaryRow]:
    started = time.monotonic()
    cache = ActivationCache.open(target.name, hook, "train", digest=target.digest)
    acts, held = (
        training_rows(target, cache),
        held_out(target, hook, settings.n_probe_rows, n_examples=settings.n_examples),
    )
    nulls, raw = Nulls(acts, held, settings.n_resamples, settings.seeds[0]), Estimate.of(raw_probe(held))
    about = {"model_name": target.name, "hook_name": hook, "target_digest": target.digest,
             "activations_key": cache.manifest.key}  # fmt: skip
    rows: list[DictionaryRow] = []
    decoders: dict[tuple[str, float, int], dict[int, Tensor]] = defaultdict(dict)
    every = list(points(settings, acts.shape[1]))
    for number, point in enumerate(every, start=1):
        place = folder / hook / point.name
        save_dictionary(_made(point, settings, acts, about), place)
        codec = load_codec(place)
        if point.architecture not in BASELINES:
            decoders[point[:3]][point.seed] = live_decoder(codec, held)
        values = evaluate(codec, held, settings.n_resamples, point.seed)
        assert values.l0.value is not None, "the number of active latents is always defined"
        beside = with_nulls(values, nulls.at(values.l0.value, codec.n_latents))
        rows.append(
            DictionaryRow(
                target=target.name, hook_point=hook, architecture=point.architecture, seed=point.seed,
                sparsity=point.sparsity, n_latents=codec.n_latents, name=point.name, probe_raw=raw, **beside.parts(),
            )
        )  # fmt: skip
        if number % 20 == 0 or number == len(every):
            spent = time.monotonic() - started
            print(f"{target.name} {hook}: {number} of {len(every)} dictionaries, {spent:.0f} s", flush=True)
    out = []
    for row in rows:
        seeds = decoders.get((row.architecture, row.sparsity, row.n_latents))
        out.append(with_stability(row, seeds, settings.n_resamples) if seeds else row)
    return out


def _made(point: Point, settings: SweepSettings, acts: Tensor, about: dict[str, str]) -> Dictionary:
    if point.architecture in BASELINES:
        dictionary = baseline(point.architecture, acts, point.n_latents, int(point.sparsity), point.seed)
        dictionary["cfg"]["metadata"] |= about
        return dictionary
    recipe = recipe_for(
        point.architecture, point.n_latents, point.sparsity, settings.steps, settings.batch, settings.lr,
        dead_window=settings.dead_window,
    )  # fmt: skip
    return train(acts, recipe, point.seed, metadata=about)


def sweep(config: Config, target_name: str) -> tuple[DictionaryRow, ...]:
    """Stage ``sweep`` of one target; returns its rows."""
    of = settings_of(config, target_name)
    hooks = of.hooks[max(0, len(of.hooks) - of.n_swept) :]
    settings = SweepSettings(
        config.sweep, hooks, of.n_latents, of.steps, config.batch, config.lr, config.dead_window_rows, config.seeds,
        config.n_resamples, config.n_probe_rows, of.n_examples,
    )  # fmt: skip
    return run(settings, load_target(target_name))


def main() -> None:
    if len(sys.argv) != 2:
        raise UserError("one target is needed, such as `python -m stages dictionaries.sweep digits_mlp`")
    sweep(load("dictionaries", Config), sys.argv[1])
