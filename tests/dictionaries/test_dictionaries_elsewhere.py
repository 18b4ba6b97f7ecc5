"""Dictionaries of words that come from elsewhere and go elsewhere: a folder attached, a batch for Neuronpedia."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flows.command import app
from stages.contracts.method import Budget
from stages.dictionaries.storage import load_dictionaries, load_dictionary
from stages.errors import UserError
from stages.interpretation.methods.sae import Sae
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import load_words
from stages.tools import attaching, dictionaries, neuronpedia
from tests.dictionaries.test_dictionaries_stage import make_config
from tests.dictionaries.test_dictionaries_words import HOOKS, Made, _measured, made

__all__ = ["made"]  # the fixture is shared

TARGET = "facts_lm"
HOOK = HOOKS[TARGET]


@pytest.fixture
def configured(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    entry = {"hooks": [HOOK], "n_latents": 48, "steps": 60, "n_examples": 60}
    config = make_config(trained_on={TARGET: entry, "digits_mlp": entry | {"hooks": ["layers.0.hook_post"]}})
    for module in (dictionaries, neuronpedia):
        monkeypatch.setattr(module, "load", lambda *_: config)
    return made


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What SAELens saves of a dictionary that says nothing of where it belongs."""
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=96, d_sae=64))
    folder = tmp_path_factory.mktemp("theirs") / "sae"
    sae.save_model(str(folder))
    return folder


def test_a_folder_of_saelens_is_measured_on_words_and_attached_to_a_method(configured: Made, theirs: Path) -> None:
    measured = dictionaries.evaluate_dictionary(str(theirs), TARGET, HOOK)
    assert measured.n_latents == 64 and measured.loss_spliced.value is not None and measured.undefined
    found = attaching.attach(str(theirs), "mine", target=TARGET, hook=HOOK)
    assert found.name == f"{TARGET}/{HOOK}/mine" and found.n_latents == 64
    assert found.name in [row.name for row in dictionaries.list_dictionaries()]
    assert dictionaries.evaluate_dictionary(found.name) == measured, "it says now where it belongs"
    assert set(load_dictionaries(TARGET)) == {f"{HOOK}/{name}" for name in ("standard", "topk", "batchtopk", "mine")}
    method = attaching.AttachedSae("mine")
    assert isinstance(method, Sae) and method.name == "sae_mine"
    target = configured.targets[TARGET]
    access = MeteredAccess(target, Ledger(), free=True, dictionaries=lambda: load_dictionaries(TARGET))
    interpretation = method.interpret(access, Budget(60, 8_000_000, 0))
    weights = load_dictionary(theirs)["W_enc"]
    assert torch.equal(interpretation.arrays[f"{HOOK}.W_enc"], weights)


def test_what_does_not_fit_is_not_attached(configured: Made, theirs: Path) -> None:
    for name, hook, said in (
        ("topk", HOOK, "no name of an architecture"),
        ("../x", HOOK, "letters, digits"),
        ("other", "blocks.1.mlp.hook_post", "takes rows of 96, blocks.1.mlp.hook_post of facts_lm has 384"),
        ("other", "blocks.9.hook_resid_post", "is no hook point of facts_lm; it has blocks.2.hook_resid_post"),
    ):
        with pytest.raises(UserError, match=said):
            attaching.attach(str(theirs), name, target=TARGET, hook=hook)
    once = attaching.attach(str(theirs), "twice", target=TARGET, hook=HOOK)
    assert attaching.attach(str(theirs), "twice", target=TARGET, hook=HOOK) == once, "to do so again changes nothing"
    with pytest.raises(UserError, match="does not say which target"):
        attaching.attach(str(theirs), "other", target=None, hook=None)


def test_a_batch_for_neuronpedia_holds_the_activations_of_the_rows(configured: Made, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "batch-0.json"
    done = neuronpedia.export_neuronpedia(f"{TARGET}/{HOOK}/topk", out, n_latents=5)
    batch = json.loads(out.read_text(encoding="utf-8"))
    assert (
        (done.n_features, done.source)
        == (5, "0-lensmith-hook-resid-post-48")
        == (
            len(batch["features"]),
            f"{batch['layer']}-{batch['sae_set']}",
        )
    )
    assert set(batch) == {"model_id", "layer", "sae_set", "sae_id_suffix", "features"} and batch["model_id"] == TARGET
    _, held, latents = _measured(configured, TARGET)
    names = load_words(TARGET)
    inputs = configured.targets[TARGET].corpus("validation").inputs
    written = {
        tuple(names[int(i)] for i, there in inputs[example] if there > 0.5): example for example in range(len(inputs))
    }
    for feature in batch["features"]:
        # What Neuronpedia's converter reads by name, and nothing that SAEDashboard's class would not take.
        assert set(feature) == KEYS
        z = latents[:, feature["feature_index"]]
        assert feature["frac_nonzero"] == pytest.approx(float((z != 0).double().mean()), rel=1e-3)
        assert len(feature["freq_hist_data_bar_values"]) == len(feature["freq_hist_data_bar_heights"]) == 10
        assert sum(feature["freq_hist_data_bar_heights"]) == int((z > 0).sum())
        for side, sign in (("pos", 1), ("neg", -1)):
            assert len(feature[f"{side}_str"]) == len(feature[f"{side}_values"]) == 5
            values = [sign * value for value in feature[f"{side}_values"]]
            assert values == sorted(values, reverse=True)
        assert len({json.dumps(one["tokens"]) for one in feature["activations"]}) == len(feature["activations"])
        for one in feature["activations"]:
            assert set(one) == {"bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"}
            assert len(one["tokens"]) == len(one["values"]) and one["tokens"][1].startswith(" ")
            example = written[tuple(word.removeprefix(" ") for word in one["tokens"])]
            rows = (held.rows.example == example).nonzero().flatten()
            rows = rows[held.rows.position[rows].argsort()]
            assert one["values"][0] == 0.0, "the first word has no row"
            assert one["values"][1:] == pytest.approx(z[rows].tolist(), rel=1e-3)
            assert one["values"][one["qualifying_token_index"]] > 0


KEYS = {
    "feature_index", "frac_nonzero", "pos_str", "pos_values", "neg_str", "neg_values", "freq_hist_data_bar_values",
    "freq_hist_data_bar_heights", "n_prompts_total", "n_tokens_in_prompt", "dataset", "activations",
    "neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices",
    "correlated_neurons_l1", "correlated_neurons_pearson", "correlated_features_indices", "correlated_features_l1",
    "correlated_features_pearson", "logits_hist_data_bar_heights", "logits_hist_data_bar_values",
    "decoder_weights_dist", "vector",
}  # fmt: skip
"""Fields of SAEDashboard's NeuronpediaDashboardFeature."""


def test_what_neuronpedia_cannot_show_is_refused(configured: Made, tmp_path: Path) -> None:
    name = f"{TARGET}/{HOOK}/topk"
    with pytest.raises(UserError, match="is a folder: give a file"):
        neuronpedia.export_neuronpedia(name, tmp_path)
    with pytest.raises(UserError, match="hook_embed is of no layer"):
        neuronpedia.export_neuronpedia(name, tmp_path / "x.json", target=TARGET, hook="hook_embed")
    for given, said in ((["--format", "csv"], "known: neuronpedia"), (["--target", TARGET], "go together")):
        result = CliRunner().invoke(app, ["dictionaries", "export", name, "--out", str(tmp_path / "x.json"), *given])
        assert result.exit_code != 0 and said in str(result.exception) + result.output
    assert not (tmp_path / "x.json").exists()
