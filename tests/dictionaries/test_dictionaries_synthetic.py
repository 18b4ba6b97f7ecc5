"""Known answers: training finds the features that data were made of, and a random dictionary does not."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from stages.benchmarks.synthetic import (
    PUBLISHED,
    SMALL_16K,
    World,
    make_world,
    rows_of_world,
    run_synthetic,
    score,
)
from stages.dictionaries.evaluation.baselines import baseline
from stages.dictionaries.training.train import (
    ARCHITECTURES,
    PENALISED,
    recipe_for,
    train,
)
from stages.errors import UserError

TINY = World(
    n_features=24, width=20, n_latents=24, l0=3.0, n_rows=8000, steps=700, batch=256, lr=5e-3, n_eval=4000, roots=0,
    max_prob=0.15, min_prob=0.08,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Any:
    return make_world(TINY, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_true_features_are_found(architecture: str, model: Any) -> None:
    acts = rows_of_world(model, TINY.n_rows, "train", 0)
    sparsity = 1.0 if architecture in PENALISED else TINY.l0
    made = train(acts, recipe_for(architecture, TINY.n_latents, sparsity, TINY.steps, TINY.batch, TINY.lr), 0)
    found = score(made, model, TINY.n_eval, 0)
    null = score(baseline("random", acts, TINY.n_latents, 3, 0), model, TINY.n_eval, 0)
    assert null["mcc"] < 0.5 and null["f1"] < 0.3
    assert found["mcc"] > 0.75 and found["f1"] > 0.6 and found["explained_variance"] > 0.8


def test_rows_depend_on_the_seed_alone(model: Any) -> None:
    before = torch.get_rng_state()
    one, again, other = (rows_of_world(model, 500, "train", seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, again) and not torch.equal(one, other)


def test_the_world_of_the_benchmark_is_the_published_one_but_for_its_size() -> None:
    """SynthSAEBench-16k v2, as SAELens's docs/synth_sae_bench.md has it."""
    config = make_world(replace(SMALL_16K, n_features=256, width=32, roots=2), 0).cfg
    tree, firing = config.hierarchy, config.firing_probability
    assert (firing.exponent, firing.max_prob, firing.min_prob) == (0.5, 0.4, 5e-4)
    assert (tree.branching_factor, tree.max_depth, tree.mutually_exclusive_portion) == (4, 3, 1.0)
    assert tree.scale_children_by_parent and tree.compensate_probabilities and config.bias == 0.5
    assert (config.correlation.rank, config.correlation.correlation_scale) == (25, 0.1)
    assert (config.orthogonalization.num_steps, config.orthogonalization.lr) == (100, 3e-4)
    assert (config.mean_firing_magnitudes.start, config.mean_firing_magnitudes.end) == (5.0, 4.0)
    assert (config.std_firing_magnitudes.mean, config.std_firing_magnitudes.std) == (0.5, 0.5)
    published = 16_384
    assert SMALL_16K.n_features * 8 == published and SMALL_16K.roots * 8 == 128 and SMALL_16K.n_latents * 8 == 4096


def test_the_benchmark_ranks_what_was_published_and_gives_intervals() -> None:
    small = replace(TINY, n_rows=2000, steps=40, n_eval=500, roots=2)
    rows = run_synthetic(small, ("standard", "topk", "batchtopk"), (0, 1), progress=lambda _: None)
    assert [row["architecture"] for row in rows] == ["standard", "topk", "batchtopk"]
    for row in rows:
        assert row["n_seeds"] == 2
        for name in ("f1", "mcc", "uniqueness", "explained_variance", "l0"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert {row["f1_rank"] for row in rows} == {1, 2, None}
    assert rows[2]["published_f1"] == PUBLISHED["batchtopk"][0] and rows[2]["published_f1_rank"] == 1
    assert rows[1]["published_f1"] is None
    with pytest.raises(UserError, match="at least 2 seeds"):
        run_synthetic(small, ("topk",), (0,))
