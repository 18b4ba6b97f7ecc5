"""Known answers: dictionaries trained on activations whose true features are known (SynthSAEBench, 2602.14687).

Data and scores are SAELens's own (``sae_lens.synthetic``): the world of the benchmark (frequencies, a hierarchy of
three levels with exclusion and scaled children, correlations, magnitudes), at a size one core can train on. What is
scored is the saved dictionary, loaded with ``SAE.load_from_disk``. Penalty coefficients are found by trial so that
every architecture is near the same L0: scores at different L0 cannot be compared.

Shape legend: N = rows, D = width, G = true features, F = latents.
"""

import contextlib
import io
import math
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student
from torch import Tensor

from stages.activations.order import generator_for
from stages.contracts.dictionary import Dictionary
from stages.dictionaries.storage import save_dictionary
from stages.dictionaries.training.train import (
    ARCHITECTURES,
    PENALISED,
    recipe_for,
    train,
)
from stages.errors import UserError

__all__ = ["METRICS", "PUBLISHED", "SMALL_16K", "World", "make_world", "rows_of_world", "run_synthetic", "score"]

METRICS = ("f1", "mcc", "uniqueness", "explained_variance", "l0")
PUBLISHED = {
    "matryoshka": (0.8793, 0.7927, 0.9987, 0.7792), "batchtopk": (0.7316, 0.7574, 0.9837, 0.7923),
    "jumprelu": (0.7317, 0.7527, 0.9885, 0.7951), "standard": (0.5562, 0.6039, 0.8976, 0.7654),
    "matching_pursuit": (0.4464, 0.6930, 0.8281, 0.8351),
}  # fmt: skip
"""SynthSAEBench-16k v2 at L0 = 25: F1, MCC, uniqueness, explained variance (SAELens docs/synth_sae_bench.md)."""
TRIALS = 4
"""Runs to find a penalty coefficient."""
Row = dict[str, Any]


@dataclass(frozen=True)
class World:
    """Size of a synthetic model and of what is trained on it."""

    n_features: int
    width: int
    n_latents: int
    l0: float
    """Latents per row to aim at."""
    n_rows: int
    """Distinct rows to train on."""
    steps: int
    batch: int
    lr: float
    n_eval: int
    """Fresh rows to score on."""
    roots: int
    """Trees of the hierarchy; each parent has four children, two deep. 0: no hierarchy, no correlations."""
    max_prob: float = 0.4
    min_prob: float = 0.01
    as_published: bool = False
    """Hierarchy, exclusion, correlations, frequencies and magnitudes of SynthSAEBench-16k v2, whatever the size."""


SMALL_16K = World(
    n_features=2048, width=256, n_latents=512, l0=8.0, n_rows=100_000, steps=1500, batch=512, lr=1e-3, n_eval=20_000,
    roots=16, min_prob=5e-4, as_published=True,
)  # fmt: skip
"""SynthSAEBench-16k v2 with an eighth of its features: features per tree and latent, and sqrt(L0 / width), are its own.
Its L0 of 25 is the true one of its most frequent quarter of features, as 8 is here."""


def make_world(world: World, seed: int) -> Any:
    """SAELens's synthetic model of this size."""
    if world.as_published:
        return _published_world(world, seed)
    from sae_lens.synthetic import HierarchyConfig, ZipfianFiringProbabilityConfig
    from sae_lens.synthetic.synthetic_model import LowRankCorrelationConfig, SyntheticModel, SyntheticModelConfig

    structured = world.roots > 0
    hierarchy = HierarchyConfig(
        total_root_nodes=max(world.roots, 1), branching_factor=4, max_depth=2, compensate_probabilities=True
    )
    config = SyntheticModelConfig(
        num_features=world.n_features, hidden_dim=world.width, std_firing_magnitudes=0.3, seed=seed,
        firing_probability=ZipfianFiringProbabilityConfig(max_prob=world.max_prob, min_prob=world.min_prob),
        hierarchy=hierarchy if structured else None,
        correlation=LowRankCorrelationConfig(rank=16, seed=seed) if structured else None,
    )  # fmt: skip
    return SyntheticModel(config)


def _published_world(world: World, seed: int) -> Any:
    """The configuration of SynthSAEBench-16k v2 (SAELens docs/synth_sae_bench.md), but for the sizes."""
    from sae_lens.synthetic import HierarchyConfig, ZipfianFiringProbabilityConfig
    from sae_lens.synthetic.firing_magnitudes import FoldedNormalMagnitudeConfig, LinearMagnitudeConfig
    from sae_lens.synthetic.synthetic_model import (
        LowRankCorrelationConfig,
        OrthogonalizationConfig,
        SyntheticModel,
        SyntheticModelConfig,
    )

    config = SyntheticModelConfig(
        num_features=world.n_features, hidden_dim=world.width, bias=0.5, seed=seed,
        firing_probability=ZipfianFiringProbabilityConfig(
            exponent=0.5, max_prob=world.max_prob, min_prob=world.min_prob
        ),
        hierarchy=HierarchyConfig(
            total_root_nodes=world.roots, branching_factor=4, max_depth=3, mutually_exclusive_portion=1.0,
            compensate_probabilities=True, scale_children_by_parent=True,
        ),
        orthogonalization=OrthogonalizationConfig(num_steps=100, lr=3e-4),
        correlation=LowRankCorrelationConfig(rank=25, correlation_scale=0.1),
        mean_firing_magnitudes=LinearMagnitudeConfig(start=5.0, end=4.0),
        std_firing_magnitudes=FoldedNormalMagnitudeConfig(mean=0.5, std=0.5),
    )  # fmt: skip
    with contextlib.redirect_stderr(io.StringIO()):  # its own progress bar
        return SyntheticModel(config)


def rows_of_world(model: Any, n_rows: int, *seed: str | int) -> Tensor:
    """(N, D) activations; the same model, number and seed, the same rows. The global generator is left alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(generator_for("synthetic", *seed).initial_seed())
        return torch.cat([model.sample(min(8192, n_rows - start)) for start in range(0, n_rows, 8192)])


def score(dictionary: Dictionary, model: Any, n_rows: int, seed: int) -> dict[str, float]:
    """SAELens's scores of a dictionary, saved and loaded, on fresh rows: ``METRICS``, and "dead_latents"."""
    from sae_lens import SAE
    from sae_lens.synthetic import eval_sae_on_synthetic_data

    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        save_dictionary(dictionary, Path(folder))
        sae: Any = SAE.load_from_disk(folder)
        torch.manual_seed(generator_for("synthetic", "score", seed).initial_seed())
        found = eval_sae_on_synthetic_data(sae, model.feature_dict, model.activation_generator, n_rows, 4096)
    return {
        "f1": found.classification.f1_score, "mcc": found.mcc, "uniqueness": found.uniqueness,
        "explained_variance": found.explained_variance, "l0": found.sae_l0, "dead_latents": float(found.dead_latents),
        "true_l0": found.true_l0,
    }  # fmt: skip


def run_synthetic(
    world: World = SMALL_16K,
    architectures: Sequence[str] = ARCHITECTURES,
    seeds: Sequence[int] = (0, 1, 2),
    progress: Callable[[str], None] = print,
) -> list[Row]:
    """The rows of ``lensmith bench synthetic``: each architecture trained once per seed on one synthetic model.

    A seed sets the rows, their order and the first weights. Intervals are 95% Student's over seeds.

    Raises:
        UserError: fewer than 2 seeds, which have no interval.
    """
    if len(seeds) < 2:
        raise UserError(f"seeds = {tuple(seeds)}: give at least 2 seeds, an interval is over them")
    torch.set_num_threads(1)
    model = make_world(world, 0)
    data = {seed: rows_of_world(model, world.n_rows, "train", seed) for seed in seeds}
    rows = []
    for architecture in architectures:
        sparsity = world.l0
        if architecture in PENALISED:
            progress(f"{architecture}: looking for the coefficient of L0 = {world.l0:g}")
            sparsity = coefficient_for(data[seeds[0]], architecture, world)
        scores = []
        for seed in seeds:
            progress(f"{architecture}, seed {seed}")
            recipe = recipe_for(architecture, world.n_latents, sparsity, world.steps, world.batch, world.lr)
            scores.append(score(train(data[seed], recipe, seed), model, world.n_eval, seed))
        rows.append({"architecture": architecture, "n_seeds": len(seeds), "sparsity": sparsity} | _summary(scores))
    return _ranked(rows)


def coefficient_for(acts: Tensor, architecture: str, world: World) -> float:
    """The penalty coefficient at which training rows have the wanted L0 at the end of a run, by bisection of its log.

    Trials are whole runs on the first seed's rows; the L0 in the table is that of the saved dictionaries.
    """
    low, high = math.log(0.05), math.log(20.0)
    for _ in range(TRIALS):
        middle = 0.5 * (low + high)
        recipe = recipe_for(architecture, world.n_latents, math.exp(middle), world.steps, world.batch, world.lr)
        seen: list[float] = []
        train(acts, recipe, 0, log=lambda values, _, seen=seen: seen.append(values["metrics/l0"]), log_every=10**9)  # type: ignore[misc]
        low, high = (middle, high) if seen[-1] > world.l0 else (low, middle)
    return math.exp(0.5 * (low + high))


def _summary(scores: list[dict[str, float]]) -> Row:
    row: Row = {}
    wide = float(student.ppf(0.975, len(scores) - 1)) / math.sqrt(len(scores))
    for name in (*METRICS, "dead_latents", "true_l0"):
        values = [one[name] for one in scores]
        mean = statistics.fmean(values)
        row[name] = round(mean, 5)
        if name in METRICS:
            half = wide * statistics.stdev(values)
            row |= {f"{name}_low": round(mean - half, 5), f"{name}_high": round(mean + half, 5)}
    return row


def _ranked(rows: list[Row]) -> list[Row]:
    """Add each one's place among those published, by F1 and by explained variance, here and as published."""
    common = [row["architecture"] for row in rows if row["architecture"] in PUBLISHED]
    for row in rows:
        name = row["architecture"]
        for metric, place in (("f1", 0), ("explained_variance", 3)):
            here = sorted(common, key=lambda one: -next(r[metric] for r in rows if r["architecture"] == one))
            there = sorted(common, key=lambda one: -PUBLISHED[one][place])
            row[f"{metric}_rank"] = here.index(name) + 1 if name in common else None
            row[f"published_{metric}"] = PUBLISHED[name][place] if name in PUBLISHED else None
            row[f"published_{metric}_rank"] = there.index(name) + 1 if name in common else None
    return rows
