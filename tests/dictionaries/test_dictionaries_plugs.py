"""Regularisers and activations: what each penalises, and that training with them does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.architectures.custom_objectives import ACTIVATIONS, REGULARISERS
from stages.dictionaries.architectures.objectives import latents_of
from stages.dictionaries.evaluation.evaluate import load_codec
from stages.dictionaries.evaluation.metrics import explained_variance, l0
from stages.dictionaries.storage import load_dictionary, save_dictionary
from stages.dictionaries.training.train import recipe_for, train
from stages.dictionaries.training.trainer import Trainer
from stages.errors import UserError


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def acts() -> Tensor:
    weights = draw(2000, 24).relu() * (torch.rand(2000, 24, generator=torch.Generator().manual_seed(1)) < 0.1)
    return weights @ draw(24, 16, seed=2) + 0.3


@pytest.mark.parametrize("name", REGULARISERS)
def test_every_regulariser_has_finite_gradients_even_at_zero(name: str) -> None:
    for z in (draw(6, 9).relu(), torch.zeros(6, 9)):
        z, w = z.requires_grad_(), draw(9, 4, seed=3).requires_grad_()
        value = REGULARISERS[name](z, w)
        assert value.shape == () and torch.isfinite(value)
        grads = torch.autograd.grad(value, [z, w], allow_unused=True)
        assert all(grad is None or torch.isfinite(grad).all() for grad in grads)


@given(st.integers(0, 999), st.floats(0.1, 10.0))
def test_hoyer_entropy_and_the_pairwise_ones_ignore_scale(seed: int, scale: float) -> None:
    z, w = draw(12, 7, seed=seed).relu() + 0.01, draw(7, 5, seed=seed + 1)
    for name in ("hoyer", "entropy", "orthogonality", "decorrelation"):
        one, other = REGULARISERS[name](z, w), REGULARISERS[name](scale * z, scale * w)
        assert other.item() == pytest.approx(one.item(), rel=1e-3, abs=1e-5), name


def test_values_at_known_points() -> None:
    z = torch.zeros(5, 8)
    z[:, :3] = 2.0
    w = torch.eye(8)
    assert REGULARISERS["hoyer"](z, w).item() == pytest.approx(3.0)
    assert REGULARISERS["entropy"](z, w).item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-5)
    assert REGULARISERS["smooth_l0"](z, w).item() == pytest.approx(l0(z))
    assert REGULARISERS["l1"](z, 2 * w).item() == pytest.approx(12.0)
    for rows in (4, 12):  # both ways to the Gram matrix
        assert REGULARISERS["orthogonality"](z, torch.ones(rows, 8)).item() == pytest.approx(1.0, abs=1e-5)
        copies = draw(rows, 1).expand(rows, 8)
        assert REGULARISERS["decorrelation"](copies, w).item() == pytest.approx(1.0, abs=1e-4)
    assert REGULARISERS["orthogonality"](z, w).item() == pytest.approx(0.0)
    assert REGULARISERS["decorrelation"](torch.eye(8) * 0 + torch.eye(8), w).item() < 0.05


@pytest.mark.parametrize("name", ["hoyer", "orthogonality", "decorrelation", "smooth_l0", "entropy"])
@pytest.mark.parametrize("architecture", ["standard", "topk", "batchtopk"])
def test_training_with_a_regulariser_lowers_it(acts: Tensor, architecture: str, name: str) -> None:
    if (architecture, name) == ("batchtopk", "smooth_l0"):
        return  # its selection fixes L0 already
    recipe = recipe_for(architecture, 32, 0.3 if architecture == "standard" else 4, 100, 128, 3e-3)
    strong = {"orthogonality": 100.0, "decorrelation": 100.0}.get(name, 1.0)
    values = []
    for chosen in (recipe, replace(recipe, regularisers=((name, strong),))):
        made = train(acts, chosen, 0)
        values.append(REGULARISERS[name](encode(made, acts), made["W_dec"]).item())
    assert values[1] < values[0]


def test_dense_latents_are_those_of_the_sparse_step(acts: Tensor) -> None:
    for architecture in ("topk", "batchtopk"):
        trainer = Trainer(recipe_for(architecture, 32, 4, 10, 128, 1e-2), acts.mean(0), 0)
        out = trainer.outcome(acts[:128])
        z = latents_of(architecture, 4)(trainer.weights, acts[:128] - trainer.weights.b_dec)
        assert torch.equal((z != 0).any(0), out.fired) and int((z != 0).sum()) == out.n_active


def test_functions_of_ones_own_are_used_and_resumed(acts: Tensor, tmp_path: Path) -> None:
    def mine(latents: Tensor, decoder: Tensor) -> Tensor:
        return latents.sum(-1).mean() + 0.0 * decoder.sum()

    def bent(pre: Tensor) -> Tensor:
        return torch.relu(pre) + 0.1 * torch.relu(pre).square()

    recipe = replace(recipe_for("standard", 32, 0.1, 60, 128, 1e-2), regularisers=(("mine", 0.2),), activation="bent")
    own = {"regularisers": {"mine": mine}, "activations": {"bent": bent}}
    made = train(acts, recipe, 0, **own, checkpoint=tmp_path / "state", checkpoint_every=60)  # type: ignore[arg-type]
    again = train(acts, recipe, 0, **own, checkpoint=tmp_path / "state")  # type: ignore[arg-type]
    assert torch.equal(made["W_dec"], again["W_dec"])
    with pytest.raises(UserError, match="activation 'bent' is unknown: use absolute"):
        encode(made, acts)
    rebuilt = decode(made, encode(made, acts, own["activations"]))  # type: ignore[arg-type]
    assert explained_variance(acts, rebuilt) > 0.3
    with pytest.raises(UserError, match="regulariser 'mine' is unknown"):
        train(acts, recipe, 0)


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (lambda z, w: z.sum(-1), r"returned a tensor of shape \(128,\): it must return a float tensor, one number"),
        (lambda z, w: float(z.detach().sum()), "returned float"),
        (lambda z, w: z.sum() / 0.0, "returned NaN or infinity"),
        (lambda z, w: z.detach().sum(), "has no gradient"),
        (
            lambda z, w: z @ w.T @ z,
            r"fails on \(128, 32\), \(32, 16\) with RuntimeError.*test_dictionaries_plugs.py:\d+ ",
        ),
    ],
)
def test_what_a_regulariser_of_ones_own_returns_is_looked_at(acts: Tensor, mine: Any, said: str) -> None:
    recipe = replace(recipe_for("topk", 32, 4, 10, 128, 1e-2), regularisers=(("mine", 0.2),))
    with pytest.raises(UserError, match=f"regulariser 'mine' {said}"):
        train(acts, recipe, 0, regularisers={"mine": mine})


def test_what_an_activation_of_ones_own_returns_is_looked_at(acts: Tensor) -> None:
    recipe = replace(recipe_for("standard", 32, 0.1, 10, 128, 1e-2), activation="mine")
    with pytest.raises(UserError, match=r"activation 'mine' returned a tensor of shape \(128,\).*latents of shape"):
        train(acts, recipe, 0, activations={"mine": lambda pre: pre.sum(-1)})


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_trains_and_is_never_taken_for_relu(acts: Tensor, name: str, tmp_path: Path) -> None:
    from sae_lens import SAE

    made = train(acts, replace(recipe_for("standard", 32, 0.05, 150, 128, 3e-3), activation=name), 0)
    save_dictionary(made, tmp_path)
    codec = load_codec(tmp_path)
    assert torch.equal(codec.encode(acts), encode(load_dictionary(tmp_path), acts))
    assert explained_variance(acts, codec.decode(codec.encode(acts))) > 0.5
    with pytest.raises(Exception, match="plugged"):
        SAE.load_from_disk(str(tmp_path))
    with pytest.raises(UserError, match="topk has its own"):
        train(acts, replace(recipe_for("topk", 32, 4, 5, 128, 1e-3), activation=name), 0)
