"""Transcoders: what they learn, that SAELens loads them, that they resume, and what they refuse."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.activations.writer import write_caches
from stages.dictionaries.evaluation.metrics import explained_variance, l0
from stages.dictionaries.storage import load_dictionary, save_dictionary
from stages.dictionaries.training.train import recipe_for
from stages.dictionaries.training.trainer import Recipe, Trainer
from stages.errors import UserError
from stages.targets.storage import freeze, save_target
from stages.targets.zoo import ZOO
from stages.tools.transcoders import train_between, train_transcoder, transcode

SPARSITY = {"standard": 0.02, "topk": 8.0, "batchtopk": 8.0}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def pair() -> tuple[Tensor, Tensor]:
    """(3000, 8) inputs, and (3000, 6) outputs: a hidden layer of 20 and a linear path."""
    x = draw(3000, 8) + 0.5
    return x, torch.relu(x @ draw(8, 20, seed=5)) @ draw(20, 6, seed=6) + x @ draw(8, 6, seed=7) + 1.0


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", SPARSITY)
def test_a_transcoder_learns_the_map_and_loads_in_sae_lens(
    architecture: str, skip: bool, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    from sae_lens import SAE

    x, y = pair
    recipe = recipe_for(architecture, 64, SPARSITY[architecture], 400, 200, 1e-2)
    made = train_transcoder(x, y, recipe, 0, skip=skip)
    latents, out = transcode(made, x)
    assert explained_variance(y, out) > 0.9
    if architecture != "standard":
        assert l0(latents) <= 8 * 1.25
    save_dictionary(made, tmp_path)
    loaded = load_dictionary(tmp_path)
    assert torch.equal(transcode(loaded, x)[1], out)
    if architecture == "topk":  # SAELens has no such transcoder, and must not take it for another
        with pytest.raises(KeyError, match="topk_"):
            SAE.load_from_disk(str(tmp_path))
        return
    theirs: Any = SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        torch.testing.assert_close(theirs.encode(x), latents, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(theirs(x), out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("architecture", SPARSITY)
@pytest.mark.parametrize("n_rows", [32, 600])  # below and above where sparse products begin
def test_gradients_are_those_of_a_graph(architecture: str, skip: bool, n_rows: int) -> None:
    recipe = Recipe(architecture, 64, 0.3 if architecture == "standard" else 5.0, n_rows, n_rows, 1e-3, skip=skip)
    trainer = Trainer(recipe, torch.zeros(8), 0, target_mean=torch.ones(6))
    named = {name: draw(*tensor.shape, seed=i) for i, (name, tensor) in enumerate(trainer.weights.named().items())}
    named["b_enc"] -= 6.0 if architecture == "standard" else 0.0  # few active latents
    for name, tensor in trainer.weights.named().items():
        tensor.copy_(named[name])
    x, y = draw(n_rows, 8, seed=20), draw(n_rows, 6, seed=21)
    ours = trainer.outcome(x, y)
    leaves = {name: tensor.requires_grad_() for name, tensor in named.items()}
    norms = leaves["decoder"].norm(dim=1)
    pre = x @ leaves["encoder"].T + leaves["b_enc"]
    if architecture == "standard":
        z = pre.relu()
        loss = 0.3 * (z * norms).sum(1).mean()
    else:
        flat = (pre * norms).relu() if architecture == "topk" else (pre * norms).relu().reshape(1, -1)
        kept = flat.topk(5 if architecture == "topk" else 5 * n_rows, dim=-1)
        z = torch.zeros_like(flat).scatter(-1, kept.indices, kept.values).reshape(pre.shape) / norms
        loss = torch.zeros(())
    made = z @ leaves["decoder"] + leaves["b_dec"] + (x @ leaves["skip"].T if skip else 0.0)
    loss = loss + (made - y).square().sum(1).mean()
    torch.autograd.backward(loss)
    assert ours.loss == pytest.approx(loss.item(), rel=1e-5)
    for name, gradient in ours.gradients.named().items():
        torch.testing.assert_close(gradient, leaves[name].grad, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("architecture", SPARSITY)
def test_a_resumed_run_equals_an_uninterrupted_one(
    architecture: str, pair: tuple[Tensor, Tensor], tmp_path: Path
) -> None:
    recipe = recipe_for(architecture, 32, SPARSITY[architecture], 30, 100, 1e-2, dead_window=500)
    whole = train_transcoder(*pair, recipe, 3, skip=True)

    class Killed(Exception):
        pass

    def kill(_: dict[str, float], step: int) -> None:
        if step == 14:
            raise Killed

    with pytest.raises(Killed):
        train_transcoder(*pair, recipe, 3, skip=True, log=kill, log_every=1, checkpoint=tmp_path / "a",
                         checkpoint_every=1)  # fmt: skip
    resumed = train_transcoder(*pair, recipe, 3, skip=True, checkpoint=tmp_path / "a")
    assert resumed["cfg"] == whole["cfg"] and resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole if name != "cfg")


def test_a_transcoder_refuses_what_does_not_fit(pair: tuple[Tensor, Tensor]) -> None:
    x, y = pair
    recipe = recipe_for("standard", 16, 0.1, 5, 100, 1e-3)
    with pytest.raises(UserError, match="3000 rows of input and 2999 of output do not belong together"):
        train_transcoder(x, y[:-1], recipe, 0)
    with pytest.raises(UserError, match="with architecture = batchtopk, standard, topk, without plugs; not gated"):
        train_transcoder(x, y, recipe_for("gated", 16, 2, 5, 100, 1e-3), 0)
    with pytest.raises(UserError, match="without plugs"):
        train_transcoder(x, y, replace(recipe, regularisers=(("hoyer", 1.0),)), 0)
    with pytest.raises(UserError, match="hold NaN"):
        train_transcoder(x, y * float("nan"), recipe, 0)
    with pytest.raises(UserError, match="constant"):
        train_transcoder(x, torch.ones_like(y), recipe, 0)


@pytest.fixture
def working_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.set_num_threads(1)
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    definition, generator = ZOO.find("digits_mlp")(), torch.Generator().manual_seed(0)
    images = definition.data(0)
    data = {split: definition.sample(images, split, 300, generator) for split in ("train", "validation")}
    target = freeze("digits_mlp", definition.build(generator), data | {"tasks": images["tasks"]})
    save_target(target, tmp_path / "data" / "targets" / "digits_mlp")
    for split in ("train", "validation"):
        write_caches(target, split)
    return tmp_path


def test_one_is_trained_between_two_hook_points_of_a_target(working_copy: Path) -> None:
    def between(hook: str, to: str, out: Path, **more: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {"n_latents": 64, "sparsity": 8.0, "steps": 150, "batch": 64, "lr": 1e-2, "seed": 0}
        return train_between("digits_mlp", hook, to, "batchtopk", skip=True, out=out, **settings | more)

    hooks = "layers.0.hook_post", "layers.1.hook_post"
    made = between(*hooks, working_copy / "mine")
    assert (made.hook_point, made.hook_point_out, made.architecture) == (*hooks, "jumprelu_skip_transcoder")
    value = made.explained_variance
    assert value.low <= value.value <= value.high and value.value > 0.5 and value.null > 0.0
    assert load_dictionary(working_copy / "mine")["cfg"]["metadata"]["hook_name_out"] == hooks[1]
    assert between(*hooks, working_copy / "mine") == made
    with pytest.raises(UserError, match=r"'layers\.7' is no cached hook point"):
        between(hooks[0], "layers.7", working_copy / "other")
    with pytest.raises(UserError, match="choose another --out"):
        between(*hooks, working_copy / "data")
