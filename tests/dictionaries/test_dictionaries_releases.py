"""Dictionaries of SAELens beside a target's own: releases, objects, transcoders, what is scaled, what does not fit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from sae_lens.saes.transcoder import SkipTranscoder, SkipTranscoderConfig, Transcoder, TranscoderConfig
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from flows.command import app
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.storage import load_dictionary
from stages.errors import UserError
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import save_target
from stages.tools import attaching
from tests.tasks.conftest import small_target

TARGET, HOOK, WIDTH = "digits_mlp", "layers.0.hook_post", 64
PLACE = {"target": TARGET, "hook": HOOK}
RELEASE, ID, REPOSITORY = "gpt2-small-res-jb", "blocks.8.hook_resid_pre", "jbloom/GPT2-Small-SAEs-Reformatted"


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy with one target, and a cache of the hub that is all there is of it."""
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    save_target(small_target(TARGET), tmp_path / "data" / "targets" / TARGET)
    checkout = Path(__file__).resolve().parents[2]
    shutil.copytree(checkout / "params", tmp_path / "params")
    shutil.copy(checkout / "dvc.yaml", tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def an_sae(width: int = WIDTH, **options) -> StandardSAE:
    sae = StandardSAE(StandardSAEConfig(d_in=width, d_sae=96, **options))
    generator = torch.Generator().manual_seed(1)
    for value in sae.parameters():
        value.data = torch.randn(value.shape, generator=generator) * 0.2
    return sae


def cached(root: Path, repository: str, folder: str, sae: SAE, **about) -> Path:
    """The hub's cache as a download leaves it: refs and a snapshot."""
    base = root / "hub" / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("0" * 40)
    place = base / "snapshots" / ("0" * 40) / folder
    sae.save_model(place)
    cfg = json.loads((place / "cfg.json").read_text())
    cfg["metadata"] |= about
    (place / "cfg.json").write_text(json.dumps(cfg))
    return place


def latents_of(attached: attaching.Attached, root: Path, acts: torch.Tensor) -> torch.Tensor:
    return encode(load_dictionary(root / ".lensmith" / "dictionaries" / attached.name), acts)


def rows() -> torch.Tensor:
    target = small_target(TARGET)
    access = MeteredAccess(target, Ledger(), free=True)
    return access.forward(target.corpus("train").inputs, capture=[HOOK]).captured[HOOK]


def test_a_release_of_the_registry_is_read_through_saelens_from_the_cache(root: Path) -> None:
    sae = an_sae()
    cached(root, REPOSITORY, ID, sae, model_name="gpt2-small", hook_name=HOOK)
    with pytest.raises(UserError, match=r"of model 'gpt2-small' .* not of 'digits_mlp'.*--model gpt2-small"):
        attaching.attach((RELEASE, ID), "theirs", **PLACE)
    found = attaching.attach((RELEASE, ID), "theirs", target=TARGET, known_as="gpt2-small")
    assert found.name == f"{TARGET}/{HOOK}/theirs" and found.n_latents == 96
    torch.testing.assert_close(latents_of(found, root, rows()), sae.encode(rows()))
    again = attaching.attach((RELEASE, ID), "theirs", target=TARGET, known_as="gpt2-small")
    assert again == found, "to attach it again changes nothing"


def test_a_repository_outside_the_registry_is_read_too_and_the_command_says_where_it_is(root: Path) -> None:
    cached(root, "somebody/saes", "layer_0", an_sae(), model_name=TARGET, hook_name=HOOK)
    done = CliRunner().invoke(
        app,
        ["dictionaries", "attach", "--release", "somebody/saes", "--id", "layer_0", "--json"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["name"] == f"{TARGET}/{HOOK}/somebody-saes-layer_0"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("gpt2-smal-res-jb", ID), "knows no release 'gpt2-smal-res-jb': there are gpt2-small-res-jb"),
        ((RELEASE, "blocks.88.hook_resid_pre"), "has no dictionary 'blocks.88.hook_resid_pre': there are blocks"),
        ((RELEASE, ID), f"{ID} of {REPOSITORY} is not in the hub's cache and was not downloaded .*hf download"),
        (("nobody/nothing", "x"), "x of nobody/nothing is not in the hub's cache"),
        ("nowhere", "nowhere is no dictionary: give a folder with cfg.json"),
        (torch.nn.Linear(2, 2), "Linear is no dictionary: give a folder"),
    ],
)
def test_what_is_not_there_is_one_line_with_the_remedy(given: object, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        attaching.attach(given, "theirs", **PLACE)
    assert "\n" not in str(raised.value)


def test_a_file_that_is_missing_or_damaged_is_named(root: Path) -> None:
    place = cached(root, "somebody/saes", "one", an_sae())
    (place / "sae_weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"one of somebody/saes is not in the hub's cache"):
        attaching.attach(("somebody/saes", "one"), "theirs", **PLACE)
    with pytest.raises(UserError, match=r"holds no sae_weights.safetensors"):
        attaching.attach(str(place), "theirs", **PLACE)
    (place / "sae_weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"is damaged|cannot be read") as raised:
        attaching.attach(str(place), "theirs", **PLACE)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("how", ["layer_norm", "constant_norm_rescale"])
def test_rows_are_normalised_as_saelens_does_it(root: Path, how: str) -> None:
    sae = an_sae(normalize_activations=how)
    found = attaching.attach(sae, "scaled", **PLACE)
    acts = rows() + 0.5
    torch.testing.assert_close(latents_of(found, root, acts), sae.encode(acts), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(latents_of(found, root, acts), latents_of(found, root, acts + acts.square()))


def test_a_scale_that_is_not_saved_is_measured_and_said(root: Path) -> None:
    sae = an_sae(normalize_activations="expected_average_only_in")
    found = attaching.attach(sae, "scaled", **PLACE)
    factor = WIDTH**0.5 / rows().norm(dim=-1).mean()
    acts = rows()
    torch.testing.assert_close(latents_of(found, root, acts), sae.encode(acts * factor), rtol=1e-4, atol=1e-4)
    kept = load_dictionary(root / ".lensmith" / "dictionaries" / found.name)
    torch.testing.assert_close(
        decode(kept, encode(kept, acts)), sae.decode(sae.encode(acts * factor)) / factor, rtol=1e-3, atol=1e-3
    )
    assert f"measured on {len(acts)} rows here: {factor:.4g}" in found.notes[0]


def test_what_was_otherwise_where_it_was_trained_is_noted(root: Path) -> None:
    sae = an_sae()
    sae.cfg.metadata.prepend_bos = True
    folder = root / "half"
    sae.save_model(folder)
    weights = {name: value.half() for name, value in load_file(folder / "sae_weights.safetensors").items()}
    save_file(weights, folder / "sae_weights.safetensors")
    cfg = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(cfg | {"dtype": "float16"}))
    found = attaching.attach(str(folder), "half", **PLACE)
    assert len(found.notes) == 2 and "BOS" in found.notes[0] and "float16" in found.notes[1]


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_of_saelens_is_attached_and_its_latents_are_its_own(root: Path, skip: bool) -> None:
    kind, config = (SkipTranscoder, SkipTranscoderConfig) if skip else (Transcoder, TranscoderConfig)
    made = kind(config(d_in=WIDTH, d_out=32, d_sae=48, apply_b_dec_to_input=False))
    made.cfg.metadata.hook_name_out = "layers.1.hook_post"
    found = attaching.attach(made, "between", **PLACE)
    torch.testing.assert_close(latents_of(found, root, rows()), made.encode(rows()))
    made.cfg.metadata.hook_name_out = HOOK
    with pytest.raises(UserError, match=r"predicts rows of 32, layers.0.hook_post of digits_mlp has 64"):
        attaching.attach(made, "wrong", **PLACE)


@pytest.mark.parametrize(
    ("width", "about", "place", "said"),
    [
        (32, {}, PLACE, r"takes rows of 32, layers.0.hook_post .* has 64: .* of that width are layers.1.hook_post"),
        (
            64,
            {},
            {"target": TARGET, "hook": "layers.0.hook_pots"},
            r"no hook point of digits_mlp; it has layers.0.hook_post",
        ),
        (64, {"hook_name": "layers.1.hook_post"}, PLACE, r"of hook point 'layers.1.hook_post'"),
        (64, {"model_name": "gpt2"}, PLACE, r"of model 'gpt2'"),
        (64, {}, {"target": TARGET, "hook": None}, r"does not say .* \(metadata.hook_name\): give --hook"),
        (64, {"hook_name": HOOK}, {"target": None, "hook": None}, r"\(metadata.model_name\): give --target"),
        (64, {}, {"target": "digits_mpl", "hook": HOOK}, r"digits_mpl"),
    ],
)
def test_what_does_not_fit_is_one_line(width: int, about: dict, place: dict, said: str) -> None:
    sae = an_sae(width)
    for key, value in about.items():
        setattr(sae.cfg.metadata, key, value)
    with pytest.raises(UserError, match=said) as raised:
        attaching.attach(sae, "theirs", **place)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("words", [[], ["x", "--release", "a", "--id", "b"], ["--release", "a"], ["x", "--id", "b"]])
def test_the_command_takes_a_folder_or_a_release(words: list[str]) -> None:
    for command in ("attach", "score"):
        done = CliRunner().invoke(app, ["dictionaries", command, *words])
        assert isinstance(done.exception, UserError) and "a folder, or --release and --id" in str(done.exception)


def test_names_that_nobody_gave_are_taken_from_where_it_lies() -> None:
    assert attaching.name_for("some/where/my sae (2)") == "my-sae-2"
    assert attaching.name_for(("gpt2-small-res-jb", ID)) == f"gpt2-small-res-jb-{ID}"
    assert attaching.name_for("a/topk") == "given-topk"
