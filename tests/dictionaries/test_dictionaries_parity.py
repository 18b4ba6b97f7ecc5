"""Our step against SAELens's: same weights in, same loss, gradients and weights out; and resuming."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stages.benchmarks.dictionaries import sae_lens_twin
from stages.dictionaries.architectures import gated as gates
from stages.dictionaries.architectures import objectives, sparse
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.architectures.objectives import P_EPS, Weights, standard
from stages.dictionaries.training.train import (
    ARCHITECTURES,
    PENALISED,
    recipe_for,
    train,
    train_many,
)
from stages.dictionaries.training.trainer import Recipe, Trainer
from stages.errors import UserError

WIDTH, N_LATENTS, ROWS = 12, 40, 64
KINDS = ("standard", "topk", "batchtopk", "gated", "jumprelu", "matryoshka", "abstopk", "matching_pursuit")
"""What SAELens trains too."""
WIDTHS = (5, 20)


def batch(seed: int = 0, rows: int = ROWS) -> Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(seed)) + 0.3


def random_weights(seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Weights(draw(N_LATENTS, WIDTH), 0.3 * draw(N_LATENTS), 0.4 * draw(N_LATENTS, WIDTH), 0.2 * draw(WIDTH))


def settings_of(architecture: str) -> dict[str, Any]:
    return {"widths": WIDTHS} if architecture == "matryoshka" else {}


def in_range(architecture: str, penalty: float, k: float) -> float:
    return penalty if architecture in PENALISED else k


def trainer_at(architecture: str, seed: int, sparsity: float, dead: Tensor) -> Trainer:
    """Ours at random weights of every kind: thresholds and magnitudes too."""
    recipe = Recipe(architecture, N_LATENTS, sparsity, ROWS, ROWS, 1e-3, **settings_of(architecture))
    trainer = Trainer(recipe, torch.zeros(WIDTH), 0)
    drawn, more = random_weights(seed), random_weights(seed + 100)
    named = drawn.named() | {
        "r_mag": 0.3 * more.b_enc, "b_mag": more.b_enc, "threshold": more.b_enc.abs()
    }  # fmt: skip
    trainer.weights = Weights.of({name: named[name] for name in trainer.weights.named()})
    trainer.rows_since_fired = dead * 10**9
    return trainer


def grads_of(sae: Any, names: Iterable[str]) -> list[Tensor]:
    named = dict(sae.named_parameters())
    bias = "b_gate" if "b_gate" in named else "b_enc"
    place = {"encoder": "W_enc", "b_enc": bias, "decoder": "W_dec"}
    return [named[place.get(name, name)].grad.T if name == "encoder" else named[place.get(name, name)].grad
            for name in names]  # fmt: skip


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("n_dead", [0, 3, 25])
@pytest.mark.parametrize("architecture", KINDS)
def test_loss_and_gradients_are_sae_lens_own(
    architecture: str, n_dead: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lens.saes.sae import TrainStepInput

    for module in (objectives, gates):
        monkeypatch.setattr(module, "SPARSE_FROM", 10**9 if dense else 0)
        monkeypatch.setattr(module, "SPARSE_BELOW", 1.0)
    monkeypatch.setattr(sparse, "BLOCK_BYTES", 16 * 4 * N_LATENTS)  # several blocks
    x, sparsity = batch(), in_range(architecture, 0.7, 5.0)
    dead = torch.arange(N_LATENTS) % 40 < n_dead
    ours = trainer_at(architecture, n_dead, sparsity, dead)
    sae = sae_lens_twin(ours.recipe, ours.weights)
    coefficients = {"l1": sparsity, "l0": ours.recipe.l0_coefficient}
    their = sae.training_forward_pass(TrainStepInput(x, coefficients, dead, 0, False))
    their.loss.backward()
    our = ours.outcome(x)
    assert our.loss == pytest.approx(their.loss.item(), rel=1e-5)
    for name, value in their.losses.items():
        assert our.parts[name] == pytest.approx(value.item(), rel=1e-5, abs=1e-7), name
    names = ours.weights.named()
    assert len(list(sae.parameters())) == len(names)
    for mine, other in zip(our.gradients.tensors(), grads_of(sae, names), strict=True):
        torch.testing.assert_close(mine, other, atol=5e-5, rtol=2e-4)
    assert torch.equal(our.fired, (their.feature_acts != 0).any(0))
    assert our.n_active == int((their.feature_acts != 0).sum())


@pytest.mark.parametrize("architecture", KINDS)
def test_a_training_run_is_sae_lens_own(architecture: str) -> None:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.training.sae_trainer import SAETrainer

    steps, sparsity = 60, in_range(architecture, 0.5, 4.0)
    recipe = Recipe(
        architecture, N_LATENTS, sparsity, steps * ROWS, ROWS, 1e-3,
        warm_up=7 * ROWS, decay=12 * ROWS, l1_warm_up=9 * ROWS, dead_window=10 * ROWS, **settings_of(architecture),
    )  # fmt: skip
    ours = Trainer(recipe, torch.full((WIDTH,), 0.3), seed=0)
    sae = sae_lens_twin(recipe, ours.weights)
    cfg = SAETrainerConfig(
        total_training_samples=steps * ROWS, train_batch_size_samples=ROWS, lr=1e-3, lr_end=1e-4,
        lr_warm_up_steps=7, lr_decay_steps=12, dead_feature_window=10,
    )  # fmt: skip
    trainer: Any = SAETrainer(cfg=cfg, sae=sae, data_provider=iter(()))
    for step in range(steps):
        assert recipe.learning_rate(step) == pytest.approx(trainer.optimizer.param_groups[0]["lr"], rel=1e-6)
        x = batch(step + 1)
        loss, other = ours.step(x).loss, trainer.step(x).loss.item()
        assert loss == pytest.approx(other, rel=1e-3), step
        trainer.n_training_steps += 1
    torch.testing.assert_close(ours.weights.decoder, sae.W_dec.detach(), atol=1e-3, rtol=1e-2)
    assert torch.equal(ours.dead, trainer.dead_neurons)
    if architecture in ("batchtopk", "matryoshka"):
        assert ours.threshold == pytest.approx(sae.topk_threshold.item(), rel=1e-3)
    if architecture == "jumprelu":
        torch.testing.assert_close(ours.weights.extra["threshold"], sae.threshold.detach(), atol=1e-3, rtol=1e-2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 20), st.integers(1, 20), st.integers(0, 999), st.booleans())
def test_selection_takes_the_largest_and_never_too_many(n: int, f: int, k: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, weights = torch.randn(n, 4, generator=generator), torch.randn(f, 4, generator=generator)
    if ties:
        rows, weights = rows.round(), weights.round()
    k, bias, pre = min(k, f), torch.zeros(f), rows @ weights.T
    active, values = sparse.encode_top(rows, weights, bias, k)
    assert len(active) == n * k and (active.flat[1:] > active.flat[:-1]).all()
    torch.testing.assert_close(
        values.view(n, k).sort(-1).values, pre.topk(k, -1).values.sort(-1).values, atol=1e-5, rtol=1e-5
    )
    total = min(k * n, n * f)
    active, values = sparse.encode_top_of_batch(rows, weights, bias, total)
    best = pre.flatten().topk(total).values
    assert len(values) <= total
    torch.testing.assert_close(values.sort().values, best[best > 0].sort().values, atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 999), st.floats(0.0, 1.0))
def test_sparse_products_equal_dense_ones(n: int, f: int, seed: int, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(n, f, generator=generator) * (torch.rand(n, f, generator=generator) < share)
    active = sparse.Active(n, f, dense.numpy().ravel().nonzero()[0])
    values = active.at(dense)
    left, right = torch.randn(n, 3, generator=generator), torch.randn(f, 3, generator=generator)
    close: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(active.times(values, right), dense @ right, **close)
    torch.testing.assert_close(active.transposed_times(values, left)[0], dense.T @ left, **close)
    torch.testing.assert_close(active.products(left, right), (left @ right.T)[dense != 0], **close)
    torch.testing.assert_close(active.per_latent(values), dense.sum(0), **close)
    assert torch.equal(active.fired, (dense != 0).any(0))


@pytest.mark.parametrize("stop", [0, 13, 29])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(architecture: str, stop: int, tmp_path: Path) -> None:
    acts = batch(5, 500)
    recipe = recipe_for(architecture, N_LATENTS, 3, 30, ROWS, 1e-2, dead_window=200)
    whole = train(acts, recipe, 3)

    class Killed(Exception):
        pass

    def kill(_: dict[str, float], step: int) -> None:
        if step == stop + 1:
            raise Killed

    with pytest.raises(Killed):
        train(acts, recipe, 3, log=kill, log_every=1, checkpoint=tmp_path / "here", checkpoint_every=1)
    resumed = train(acts, recipe, 3, checkpoint=tmp_path / "here", checkpoint_every=7)
    assert resumed["cfg"] == whole["cfg"]
    assert resumed.keys() == whole.keys()
    for name in whole.keys() - {"cfg"}:
        assert torch.equal(resumed[name], whole[name]), name


def test_a_checkpoint_of_another_run_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    recipe = recipe_for("topk", N_LATENTS, 3, 4, ROWS, 1e-2)
    folder = tmp_path / "here"
    train(batch(5, 500), recipe, 0, checkpoint=folder, checkpoint_every=1)
    with pytest.raises(UserError, match="trained with seed 0, not 1"):
        train(batch(5, 500), recipe, 1, checkpoint=folder)
    with pytest.raises(UserError, match="trained with another n_latents, sparsity"):
        Trainer.resume(folder, recipe_for("topk", 41, 4, 4, ROWS, 1e-2))
    (folder / "state.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        Trainer.resume(folder, recipe)
    with pytest.raises(UserError, match="holds no checkpoint"):
        Trainer.resume(tmp_path / "nowhere", recipe)


def test_dead_latents_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(300, 16, generator=generator)
    draws = torch.rand(4000, 300, generator=generator)
    acts = (draws * (torch.rand(4000, 300, generator=generator) < 0.01)) @ directions
    recipe = recipe_for("topk", 100, 2, 400, 100, 1e-2, dead_window=2000)
    n_dead, losses = {}, {}
    for aux in (0.0, 1.0):
        dictionary = train(acts, replace(recipe, aux=aux), 0)
        n_dead[aux] = dictionary["cfg"]["metadata"]["num_dead_features"]
        losses[aux] = (decode(dictionary, encode(dictionary, acts)) - acts).square().mean().item()
    assert n_dead[1.0] < n_dead[0.0] and losses[1.0] < losses[0.0]


def test_many_in_one_pass_are_what_each_is_alone(tmp_path: Path) -> None:
    acts = batch(5, 500)
    jobs = {
        "a": (recipe_for("topk", N_LATENTS, 3, 30, ROWS, 1e-2, dead_window=200), 0),
        "b": (recipe_for("standard", 20, 0.5, 12, ROWS, 1e-2), 1),
        "c": (recipe_for("gated", N_LATENTS, 0.5, 20, ROWS, 1e-2), 1),
    }
    alone = {name: train(acts, recipe, seed, order_seed=7) for name, (recipe, seed) in jobs.items()}

    class Killed(Exception):
        pass

    seen: list[tuple[str, int]] = []

    def kill(name: str, _: dict[str, float], step: int) -> None:
        seen.append((name, step))
        if (name, step) == ("b", 9):
            raise Killed

    with pytest.raises(Killed):
        train_many(acts, jobs, 7, log=kill, log_every=1, checkpoint=tmp_path, checkpoint_every=2)
    assert seen[:4] == [("a", 1), ("b", 1), ("c", 1), ("a", 2)]
    for made in (train_many(acts, jobs, 7), train_many(acts, jobs, 7, checkpoint=tmp_path, checkpoint_every=5)):
        for name, expected in alone.items():
            assert made[name]["cfg"] == expected["cfg"]
            assert all(torch.equal(made[name][key], expected[key]) for key in expected if key != "cfg"), name
    with pytest.raises(UserError, match=r"batch sizes \[64, 65\]: .* give one size"):
        train_many(acts, jobs | {"d": (recipe_for("topk", 8, 2, 3, 65, 1e-2), 0)}, 7)


def test_p_anneals_to_its_end_and_the_penalty_stays_its_size_when_it_falls() -> None:
    recipe = recipe_for("p_anneal", N_LATENTS, 0.5, 100, ROWS, 1e-3)
    powers = [recipe.p(step) for step in range(recipe.steps)]
    assert powers[:20] == [1.0] * 20 and powers == sorted(powers, reverse=True)
    assert len(set(powers)) == 10 and powers[-1] == pytest.approx(0.28)
    trainer = Trainer(recipe, torch.zeros(WIDTH), 0)
    trainer.weights = random_weights(0)
    trainer.n_steps = next(step for step in range(100) if recipe.p(step) < 1.0)
    x = batch()
    before = standard(trainer.weights, x, recipe.sparsity).parts["l1_loss"]
    trainer._anneal(x)
    assert trainer.outcome(x).parts["l1_loss"] == pytest.approx(before, rel=1e-4)
    assert trainer.rescaled != 1.0


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("p", [1.0, 0.6, 0.2])
def test_gradients_of_the_power_penalty_are_those_of_a_graph(
    p: float, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objectives, "SPARSE_FROM", 10**9 if dense else 0)
    monkeypatch.setattr(objectives, "SPARSE_BELOW", 1.0)
    weights, x = random_weights(3), batch()
    ours = standard(weights, x, 0.7, p)
    leaves = [tensor.clone().requires_grad_() for tensor in weights.tensors()]
    encoder, b_enc, decoder, b_dec = leaves
    z = ((x - b_dec) @ encoder.T + b_enc).relu()
    sizes = torch.where(z > 0, z * decoder.norm(dim=1) + P_EPS, torch.ones(()))
    powers = torch.where(z > 0, sizes.pow(p) - P_EPS**p, torch.zeros(()))
    loss = (z @ decoder + b_dec - x).square().sum(1).mean() + 0.7 * powers.sum(1).mean()
    torch.autograd.backward(loss)
    assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
    for mine, leaf in zip(ours.gradients.tensors(), leaves, strict=True):
        torch.testing.assert_close(mine, leaf.grad, atol=1e-4, rtol=1e-3)
