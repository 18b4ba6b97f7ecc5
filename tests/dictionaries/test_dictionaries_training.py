"""Training, encoding and files: against SAELens, against itself, and on bad input."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.metrics import explained_variance, l0
from stages.dictionaries.storage import load_dictionary, save_dictionary
from stages.dictionaries.training.train import ARCHITECTURES, PENALISED, recipe_for, train_dictionary
from stages.dictionaries.training.train import train as train_to
from stages.errors import UserError
from stages.metering.op_table import count_flops

SPARSITY = dict.fromkeys(ARCHITECTURES, 4.0) | dict.fromkeys(PENALISED, 0.5)


@pytest.fixture(scope="session")
def mixture() -> torch.Tensor:
    """(2000, 16) sparse non-negative mixtures of 24 directions, off centre."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(24, 16, generator=generator)
    weights = torch.rand(2000, 24, generator=generator) * (torch.rand(2000, 24, generator=generator) < 0.1)
    return weights @ directions + 0.5


def train(acts: Tensor, architecture: str, steps: int = 60, seed: int = 0, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"n_latents": 32, "sparsity": SPARSITY[architecture], "batch": 128, "lr": 1e-2}
    return train_dictionary(acts, architecture, steps=steps, generator_seed=seed, **values | changes)


def tensors(dictionary: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in dictionary.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_saved_equals_loaded_equals_sae_lens(mixture: Tensor, tmp_path: Path, architecture: str) -> None:
    from sae_lens import SAE

    made = train(mixture, architecture)
    save_dictionary(made, tmp_path)
    loaded = load_dictionary(tmp_path)
    assert tensors(loaded).keys() == tensors(made).keys()
    assert json.loads(json.dumps(made["cfg"])) == loaded["cfg"]
    for name, tensor in tensors(made).items():
        assert torch.equal(tensor, loaded[name]), name
    theirs: Any = SAE.load_from_disk(str(tmp_path))
    with torch.no_grad():
        latents = theirs.encode(mixture)
        assert (latents != 0).any()
        torch.testing.assert_close(encode(loaded, mixture), latents, atol=3e-6, rtol=0)
        torch.testing.assert_close(encode(made, mixture), latents, atol=3e-6, rtol=0)
        torch.testing.assert_close(decode(loaded, latents), theirs.decode(latents), atol=1e-6, rtol=0)
    assert loaded["cfg"]["metadata"]["training_architecture"] == architecture


@pytest.mark.parametrize("rescaled", [False, True])
def test_encoding_a_topk_with_unnormalised_decoder_is_sae_lens_own(mixture: Tensor, rescaled: bool) -> None:
    from sae_lens import SAE
    from sae_lens.saes.topk_sae import TopKSAEConfig

    cfg = TopKSAEConfig(d_in=16, d_sae=32, k=3, rescale_acts_by_decoder_norm=rescaled)
    theirs: Any = SAE.from_dict(cfg.to_dict())
    dictionary = {"cfg": cfg.to_dict(), **{name: value.detach() for name, value in theirs.state_dict().items()}}
    with torch.no_grad():
        latents = theirs.encode(mixture)
        torch.testing.assert_close(encode(dictionary, mixture), latents, atol=1e-6, rtol=0)
        torch.testing.assert_close(decode(dictionary, latents), theirs.decode(latents), atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_reruns_are_bit_equal_and_leave_the_global_generator_alone(mixture: Tensor, architecture: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(mixture, architecture, steps=20)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = train(mixture, architecture, steps=20), train(mixture, architecture, steps=20, seed=1)
    assert all(torch.equal(tensor, second[name]) for name, tensor in tensors(first).items())
    assert not torch.equal(first["W_dec"], other["W_dec"])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_explains_the_data_whatever_its_scale(mixture: Tensor, architecture: str) -> None:
    small = train(mixture, architecture, steps=300)
    large = train(1000.0 * mixture, architecture, steps=300)
    score = explained_variance(mixture, decode(small, encode(small, mixture)))
    scaled = explained_variance(1000.0 * mixture, decode(large, encode(large, 1000.0 * mixture)))
    assert score > 0.75 and scaled == pytest.approx(score, abs=0.05)
    if architecture not in PENALISED:
        assert l0(encode(small, mixture)) == pytest.approx(4.0, rel=0.25)


def test_files_are_byte_identical_and_sorted(mixture: Tensor, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_dictionary(train(mixture, "batchtopk", steps=10), tmp_path / name)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "a" / "cfg.json").read_text()
    assert text == json.dumps(json.loads(text), indent=1, sort_keys=True) + "\n"
    assert json.loads(text)["architecture"] == "jumprelu"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_in_the_activations_is_reported(mixture: Tensor, value: float) -> None:
    broken = mixture.clone()
    broken[5, 2] = value
    with pytest.raises(UserError, match="1 of 2000 rows of activations hold NaN or infinity"):
        train(broken, "topk")


def test_constant_activations_are_reported() -> None:
    with pytest.raises(UserError, match="constant"):
        train(torch.ones(500, 4), "standard")


def test_fewer_rows_than_a_batch_is_reported(mixture: Tensor) -> None:
    with pytest.raises(UserError, match="batch = 128 does not fit: there are 100 rows"):
        train(mixture[:100], "topk")


def test_divergence_stops_with_step_loss_and_remedy(mixture: Tensor) -> None:
    with pytest.raises(UserError, match=r"training of standard diverged at step \d+ of 60: .* lower lr \(now 10000\)"):
        train(mixture, "standard", lr=1e4)


@pytest.mark.parametrize(
    ("architecture", "changes", "message"),
    [
        ("topk", {"sparsity": 33}, "sparsity = 33 of topk is out of range; allowed: 1 to n_latents = 32"),
        ("topk", {"sparsity": 2.5}, "topk takes whole numbers"),
        ("standard", {"sparsity": 0.0}, "allowed: above 0"),
        ("batchtopk", {"lr": -1.0}, "all must be above 0"),
        ("topk", {"n_latents": 0}, "all must be above 0"),
    ],
)
def test_values_out_of_range_are_reported(
    mixture: Tensor, architecture: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        train(mixture, architecture, **changes)


def test_an_unknown_architecture_and_a_wrong_shape_are_reported(mixture: Tensor) -> None:
    with pytest.raises(UserError, match="'lista' is unknown; known: standard, topk, batchtopk, gated"):
        train_dictionary(mixture, "lista", 8, 1.0, 1, 8, 1e-3, 0)
    with pytest.raises(UserError, match=r"shape \(2000, 4, 4\)"):
        train(mixture.reshape(2000, 4, 4), "topk")


def test_a_dictionary_of_another_width_and_a_damaged_one_are_reported(mixture: Tensor, tmp_path: Path) -> None:
    dictionary = train(mixture, "topk", steps=1)
    with pytest.raises(UserError, match="activations are 5 wide, the dictionary takes 16"):
        encode(dictionary, torch.zeros(2, 5))
    with pytest.raises(UserError, match="'temporal' cannot be encoded"):
        encode({**dictionary, "cfg": {**dictionary["cfg"], "architecture": "temporal"}}, mixture)
    with pytest.raises(UserError, match="holds no cfg.json"):
        load_dictionary(tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    (tmp_path / "sae_weights.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        load_dictionary(tmp_path)


def test_training_metrics_are_logged_at_the_stated_steps(mixture: Tensor) -> None:
    seen: list[int] = []

    def log(metrics: dict[str, float], step: int) -> None:
        assert {"losses/overall_loss", "metrics/l0", "metrics/explained_variance"} <= metrics.keys()
        seen.append(step)

    train_to(mixture, recipe_for("topk", 32, 4, 25, 128, 1e-2), 0, log=log, log_every=10)
    assert seen == [10, 20, 25]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_operation_of_encode_and_decode_has_a_price(mixture: Tensor, architecture: str) -> None:
    dictionary = train(mixture, architecture, steps=1)
    with count_flops() as count:
        decode(dictionary, encode(dictionary, mixture[:10]))
    # Two dense matrix products (matching pursuit: one per iteration, and the decoder's); the rest is per element.
    products = 2 * 10 * 16 * 32 * (5 if architecture == "matching_pursuit" else 2)
    assert products < count.flops < 2 * products
