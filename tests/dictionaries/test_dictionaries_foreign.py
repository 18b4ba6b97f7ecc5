"""Rows and files of somebody else: they work, or one line says what is wrong and what to do."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from flows.command import app
from stages.base.progress import listening
from stages.contracts.target import Target
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.baselines import baseline
from stages.dictionaries.evaluation.codecs import load_codec
from stages.dictionaries.foreign import check_place
from stages.dictionaries.storage import load_dictionary, save_dictionary
from stages.dictionaries.training.train import ARCHITECTURES, recipe_for, train, train_dictionary
from stages.dictionaries.training.trainer import Trainer
from stages.errors import UserError


def rows(n: int = 600) -> Tensor:
    return torch.randn(n, 16, generator=torch.Generator().manual_seed(0))


def trained(acts: Any, architecture: str = "topk", lr: float = 3e-3) -> Any:
    return train_dictionary(acts, architecture, 32, 4, 60, 64, lr, 0)


def explained(dictionary: Any, acts: Tensor) -> float:
    residual = acts - decode(dictionary, encode(dictionary, acts))
    return 1.0 - float(residual.square().sum() / (acts - acts.mean(0)).square().sum())


# ---- D1: uneven rows are no divergence ----


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("ratio", [30.0, 300.0])
def test_a_large_row_is_no_divergence(architecture: str, ratio: float) -> None:
    acts = rows()
    acts[599] *= ratio
    made = trained(acts, architecture)
    assert all(bool(torch.isfinite(value).all()) for value in made.values() if isinstance(value, Tensor))
    if ratio == 30.0:
        others = acts[:599]
        assert explained(made, others) > explained(trained(rows(), architecture), others) - 0.1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_a_row_that_would_be_learned_alone_is_named(architecture: str, ratio: float) -> None:
    acts = rows()
    acts[599] *= ratio
    times = float(acts[599].norm() / acts.norm(dim=1).median())
    with pytest.raises(
        UserError, match=rf"row 599 is {times:.2g}".replace("+", r"\+") + r" times the median row \(1 of"
    ):
        trained(acts, architecture)


def test_rows_of_zeros_do_not_make_others_large() -> None:
    acts = rows()
    acts[:400] = 0.0
    assert math.isfinite(explained(trained(acts), acts))


def test_divergence_is_still_told_from_data() -> None:
    with pytest.raises(UserError, match=r"diverged at step \d+ of 60.*lower lr"):
        trained(rows(), "standard", lr=30.0)


# ---- D4: results are finite, or an error ----


@pytest.mark.parametrize("architecture", [*ARCHITECTURES])
@pytest.mark.parametrize("size", [1e20, 1e30, 1e-20, 1e-30])
def test_rows_out_of_reach_are_told(architecture: str, size: float) -> None:
    with pytest.raises(UserError, match=r"out of float32's reach.*scale them to about 1"):
        trained(rows() * size, architecture)


def test_rows_within_reach_are_learned_alike() -> None:
    for size in (1e-6, 1e6):
        assert explained(trained(rows() * size), rows() * size) == pytest.approx(
            explained(trained(rows()), rows()), abs=0.02
        )


def test_a_dictionary_that_is_not_finite_is_not_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Trainer.step

    def ruined(trainer: Trainer, *given: Tensor) -> Any:
        out = step(trainer, *given)
        trainer.weights.decoder[0, 0] = float("nan") if trainer.n_steps == trainer.recipe.steps else 0.0
        return out

    monkeypatch.setattr(Trainer, "step", ruined)
    with pytest.raises(UserError, match=r"topk dictionary is not finite \(.*W_dec"):
        trained(rows())


# ---- D5: what is given as rows ----


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda: rows().numpy(), r"activations are numpy.ndarray: .*torch.from_numpy\(activations\)"),
        (lambda: rows().tolist(), r"activations are list: .*torch.tensor\(activations\)"),
        (lambda: {"acts": rows()}, "activations are dict"),
        (lambda: rows().to("meta"), r"on meta: training runs on the CPU, give activations.cpu\(\)"),
        (lambda: rows().to_sparse(), "give activations.to_dense"),
        (lambda: rows().to(torch.complex64), "complex64: give real numbers"),
        (lambda: rows()[0], r"shape \(16,\); give \(rows, width\)"),
    ],
)
def test_what_is_given_as_rows_is_looked_at(given: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        trained(given())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_rows_of_any_float_dtype_are_taken(dtype: torch.dtype) -> None:
    made = trained(rows().to(dtype))
    assert made["W_dec"].dtype == torch.float32 and explained(made, rows()) > 0.2


def test_encode_looks_at_what_it_is_given() -> None:
    made = trained(rows())
    with pytest.raises(UserError, match="activations are ndarray"):
        encode(made, rows().numpy())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="normalises activations"):
        encode({**made, "cfg": made["cfg"] | {"normalize_activations": "expected_average_only_in"}}, rows())


def test_outputs_of_a_transcoder_are_looked_at_too() -> None:
    with pytest.raises(UserError, match=r"outputs are numpy.ndarray"):
        train(rows(), recipe_for("topk", 32, 4, 60, 64, 3e-3), 0, outputs=rows().numpy())  # type: ignore[arg-type]


# ---- D7, D8, D10: files of other versions and other architectures ----


def saved(folder: Path, kind: str = "standard", **changed: Any) -> Path:
    save_dictionary(trained(rows(), kind), folder)
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({key: v for key, v in (cfg | changed).items() if v != "absent"}))
    return folder


def weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    held = load_file(folder / "sae_weights.safetensors")
    change(held)
    save_file({name: value.contiguous() for name, value in held.items()}, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.parametrize("point", ["hook_name", "hook_point"])
@pytest.mark.parametrize("metadata", ["absent", {}, None])
def test_cfg_of_before_version_6_is_read_as_saelens_reads_it(tmp_path: Path, point: str, metadata: object) -> None:
    top = {"model_name": "digits_mlp", point: "layers.0.hook_post", "metadata": metadata}
    folder = saved(tmp_path / "one", apply_b_dec_to_input="absent", **top)
    if metadata is None:  # SAELens itself cannot read that
        assert load_dictionary(folder)["cfg"]["metadata"]["model_name"] == "digits_mlp"
        return
    about = load_codec(folder).about
    assert (about["model_name"], about["hook_name"]) == ("digits_mlp", "layers.0.hook_post")
    acts = rows(50)
    torch.testing.assert_close(load_codec(folder).encode(acts), encode(load_dictionary(folder), acts))


def test_an_old_topk_is_a_topk(tmp_path: Path) -> None:
    old = {"architecture": "absent", "k": "absent", "activation_fn_str": "topk", "activation_fn_kwargs": {"k": 4}}
    folder = saved(tmp_path / "one", "topk", metadata="absent", rescale_acts_by_decoder_norm="absent", **old)
    made = load_dictionary(folder)
    assert (made["cfg"]["architecture"], made["cfg"]["k"]) == ("topk", 4)
    acts = rows(50)
    torch.testing.assert_close(load_codec(folder).encode(acts), encode(made, acts), rtol=1e-4, atol=1e-5)


def without(name: str) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.pop(name)


def with_(name: str, value: Tensor) -> Callable[[dict[str, Tensor]], object]:
    return lambda held: held.update({name: value})


@pytest.mark.parametrize(
    ("architecture", "change", "said"),
    [
        (
            "standard",
            with_("threshold", torch.zeros(32)),
            "says standard.*hold threshold as well; they are those of jumprelu",
        ),
        ("standard", without("b_enc"), "lack b_enc; save it again"),
        ("topk", without("W_dec"), "lack W_dec"),
        ("jumprelu", without("threshold"), "lack threshold; they are those of standard or topk"),
        (
            "jumprelu",
            lambda w: w.update(log_threshold=w.pop("threshold").log()),
            "save torch.exp.log_threshold. as threshold",
        ),
        ("standard", with_("scaling_factor", torch.full((32,), 2.0)), "multiply the rows of W_dec by it"),
        ("gated", with_("extra", torch.zeros(3)), "hold extra as well; leave them out"),
        ("standard", with_("W_enc", torch.zeros(32, 16)), "transposed, save W_enc.T"),
        ("standard", with_("W_dec", torch.zeros(32, 17)), r"W_dec has shape \(32, 17\), cfg.json says d_in = 16"),
        ("standard", with_("b_dec", torch.full((16,), math.nan)), "b_dec holds NaN"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, architecture: str, change: Any, said: str) -> None:
    folder = weights(saved(tmp_path / "one", architecture), change)
    for read in (load_dictionary, load_codec):
        with pytest.raises(UserError, match=said) as error:
            read(folder)
        assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"architecture": "crosscoder"}, "'crosscoder' cannot be encoded; known: standard, topk"),
        ({"architecture": "matryoshka"}, "how it was trained.*saved as jumprelu"),
        ({"d_in": "absent"}, "lacks d_in"),
        ({"normalize_activations": "expected_average_only_in"}, "fold it in with SAELens"),
        ({"normalize_activations": "by_hand"}, "cannot be read by SAELens"),
        ({"architecture": "topk", "k": 99}, "k = 99 of 32 latents"),
    ],
)
def test_a_cfg_that_cannot_be_used_is_one_line(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_codec(saved(tmp_path / "one", **changed))


def test_a_cfg_that_is_no_object_is_told(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one")
    (folder / "cfg.json").write_text("[1, 2]")
    with pytest.raises(UserError, match="holds no object"):
        load_dictionary(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_any_float_dtype_are_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = saved(tmp_path / "one", dtype=str(dtype).removeprefix("torch."))
    weights(folder, lambda held: held.update({name: value.to(dtype) for name, value in held.items()}))
    codec, made = load_codec(folder), load_dictionary(folder)
    assert codec.encode(rows(5)).dtype == codec.decoder.dtype == made["W_dec"].dtype == torch.float32
    torch.testing.assert_close(codec.encode(rows(5)), encode(made, rows(5)))


def test_what_older_versions_wrote_to_no_effect_is_passed_over(tmp_path: Path) -> None:
    folder = saved(tmp_path / "one", normalize_activations=False, metadata="absent")
    wanted = load_codec(folder).encode(rows(5))
    weights(folder, with_("scaling_factor", torch.ones(32)))
    torch.testing.assert_close(load_codec(folder).encode(rows(5)), wanted)
    torch.testing.assert_close(encode(load_dictionary(folder), rows(5)), wanted)
    with pytest.raises(UserError, match="fold it in with SAELens"):
        load_codec(saved(tmp_path / "other", normalize_activations=True))


@pytest.mark.parametrize("name", ["identity", "pca", "random"])
def test_baselines_are_read(tmp_path: Path, name: str) -> None:
    save_dictionary(baseline(name, rows(), 20, 4, 0), tmp_path / "one")
    assert load_codec(tmp_path / "one").encode(rows(5)).shape == (5, 20)


# ---- D12: what it says it is of ----


def test_only_what_is_said_is_compared(mlp: Target) -> None:
    check_place({}, mlp, "layers.0.hook_post")
    check_place({"model_name": "digits_mlp", "hook_name": "layers.0.hook_post", "target_digest": mlp.digest}, mlp,
                "layers.0.hook_post")  # fmt: skip
    for about, said in (
        ({"model_name": "gpt2"}, "of model 'gpt2'"),
        ({"hook_name": "layers.1.hook_post"}, "of hook point 'layers.1.hook_post'"),
        ({"model_name": "digits_mlp", "target_digest": "b" * 64}, "train the dictionary again"),
    ):
        with pytest.raises(UserError, match=said):
            check_place(about, mlp, "layers.0.hook_post")


# ---- the command ----


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--architecture", "pca", "--steps", "5"], "--steps 5 does nothing with --architecture pca"),
        (["--architecture", "ica", "--lr", "0.1"], "--lr 0.1 does nothing"),
        (["--architecture", "random", "--batch", "8"], "--batch 8 does nothing"),
        (["--architecture", "identity", "--sparsity", "2.5"], "whole number"),
    ],
)
def test_options_that_do_nothing_are_refused(tmp_path: Path, words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["dictionaries", "train", "t", "h", "--out", str(tmp_path / "x"), *words])
    assert isinstance(done.exception, UserError) and said in str(done.exception)


def test_target_and_hook_go_together() -> None:
    for option in ("--target", "--hook"):
        done = CliRunner().invoke(app, ["dictionaries", "eval", "somewhere", option, "x"])
        assert isinstance(done.exception, UserError) and "go together" in str(done.exception)


def test_training_reports_how_far_it_has_come() -> None:
    said: list[tuple[str, int, int]] = []
    with listening(lambda *given: said.append(given)):
        trained(rows())
    assert said[0] == ("training topk", 0, 60) and len(said) == 60
    trained(rows())
    assert len(said) == 60, "nobody listens any more"
