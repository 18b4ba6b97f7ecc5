"""The stage from caches to files, on untrained targets."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from stages.activations.cache import ActivationCache
from stages.activations.writer import write_caches
from stages.base import paths
from stages.base.params import load
from stages.benchmarks import dictionaries as bench
from stages.contracts.dictionary_rows import DICTIONARIES, DICTIONARY_METRICS, SWEEP_METRICS, DictionaryRow
from stages.contracts.record import Estimate
from stages.contracts.target import TWIN, Target
from stages.dictionaries import stage
from stages.dictionaries.architectures.codec import encode
from stages.dictionaries.evaluation.evaluate import (
    codec_of,
    evaluate,
    held_out,
    load_codec,
)
from stages.dictionaries.evaluation.rows import with_stability
from stages.dictionaries.evaluation.splicing import spliced_logits
from stages.dictionaries.evaluation.subjects import distinct_examples, subjects
from stages.dictionaries.storage import load_dictionaries
from stages.dictionaries.sweep import sweep
from stages.errors import UserError
from stages.proxies.stage import summarise
from stages.targets.storage import freeze, save_target
from stages.targets.zoo import ZOO
from stages.tools import dictionaries as inspect
from stages.tools.transcoders import aligned

HOOKS = {"digits_mlp": "layers.0.hook_post", "digits_few_shot": "blocks.0.hook_resid_post"}


class Finished(NamedTuple):
    root: Path
    targets: dict[str, Target]
    config: stage.Config
    rows: dict[str, list[dict[str, Any]]]


def untrained(name: str, n: int) -> Target:
    definition = ZOO.find(name)()
    generator = torch.Generator().manual_seed(0)
    images = definition.data(0)
    data = {split: definition.sample(images, split, n, generator) for split in ("train", "validation")}
    return freeze(name, definition.build(generator), data | {"tasks": images["tasks"]})


def make_config(**changes: Any) -> stage.Config:
    targets = {name: {"hooks": [hook], "n_latents": 48, "steps": 60} for name, hook in HOOKS.items()}
    architectures = [
        {"name": "standard", "sparsity": 1.0},
        {"name": "topk", "sparsity": 6},
        {"name": "batchtopk", "sparsity": 6},
    ]
    values = {
        "trained_on": targets, "architectures": architectures, "batch": 64, "lr": 3e-3, "dead_window_rows": 1000,
        "seeds": [0], "n_resamples": 50, "n_probe_rows": 200, "n_gallery": 6,
        "sweep": {"architectures": {"topk": [6, 3]}, "baselines": ["identity", "pca"], "k": [3, 999], "sizes": [0.5]},
    }  # fmt: skip
    return stage.Config(**values | changes)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("working_copy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_ROOT", str(root))
        patch.setenv("LENSMITH_TRACKING", "off")
        targets = {"digits_mlp": untrained("digits_mlp", 400), "digits_few_shot": untrained("digits_few_shot", 40)}
        config = make_config()
        rows = {}
        for name, target in targets.items():
            save_target(target, root / "data" / "targets" / name)
            for split in ("train", "validation"):
                write_caches(target, split)
            rows[name] = stage.run(config, name)
            sweep(config, name)
            rewards = paths.downstream_file(name)
            rewards.parent.mkdir(parents=True, exist_ok=True)
            rewards.write_text("[]", encoding="utf-8")
        yield Finished(root, targets, config, rows)


METRICS = (
    "l0", "explained_variance", "dead_ratio", "reconstruction_bias", "loss_recovered", "loss_clean", "loss_spliced",
    "loss_ablated", "kl_recovered", "accuracy_drop", "top1_agreement", "monosemanticity", "class_purity",
    "class_entropy", "monosemanticity_shuffled", "class_purity_shuffled", "class_entropy_shuffled",
    "probe_1_sparse", "probe_5_sparse", "probe_full", "probe_raw", "l2_ratio", "max_cosine", "description_length",
    "description_length_codes", "description_length_raw",
)  # fmt: skip


def row_of(finished: Finished, target: str, architecture: str) -> DictionaryRow:
    return next(row for row in finished.rows[target] if row.architecture == architecture)


@pytest.mark.parametrize("target", HOOKS)
def test_every_row_has_every_metric_with_interval_and_null(finished: Finished, target: str) -> None:
    rows = finished.rows[target]
    assert {row.architecture for row in rows} == {"standard", "topk", "batchtopk", "random"}
    assert rows == DICTIONARY_METRICS.load(finished.root / "data/dictionaries" / target / "metrics.json")
    for row in rows:
        assert (row.target, row.hook_point, row.n_latents, row.seed) == (target, HOOKS[target], 48, 0)
        for name in METRICS:
            assert row.metrics()[name].facts().keys() == {"value", "low", "high", "null"}
            assert row.metrics()[name].value is not None, name
        for name in ("l0", "explained_variance", "loss_spliced", "top1_agreement", "probe_full", "monosemanticity"):
            found = row.metrics()[name]
            assert found.low <= found.value <= found.high, name


@pytest.mark.parametrize("target", HOOKS)
def test_trained_dictionaries_beat_the_random_one(finished: Finished, target: str) -> None:
    for architecture in ("standard", "topk", "batchtopk"):
        value = row_of(finished, target, architecture).explained_variance
        assert value.value > value.null  # of a random one with as many latents per row
        assert value.value > 0.3
    of_topk = row_of(finished, target, "topk").explained_variance.null
    assert of_topk == row_of(finished, target, "random").explained_variance.value
    assert row_of(finished, target, "topk").l0.value <= 6.0


def test_saved_dictionaries_are_found_by_name_and_load_in_sae_lens(finished: Finished) -> None:
    from sae_lens import SAE

    found = load_dictionaries("digits_mlp")
    assert sorted(found) == [f"layers.0.hook_post/{name}" for name in ("batchtopk", "standard", "topk")]
    acts = ActivationCache.open("digits_mlp", "layers.0.hook_post", "validation").read().acts
    for name, dictionary in found.items():
        theirs: Any = SAE.load_from_disk(str(finished.root / "data/dictionaries/digits_mlp" / name))
        with torch.no_grad():
            torch.testing.assert_close(encode(dictionary, acts), theirs.encode(acts), atol=1e-6, rtol=0)
        assert dictionary["cfg"]["metadata"]["target_digest"] == finished.targets["digits_mlp"].digest


@pytest.mark.parametrize("target", HOOKS)
def test_an_identity_dictionary_does_no_harm(finished: Finished, target: str) -> None:
    held = held_out(finished.targets[target], HOOKS[target], 100)
    width = held.rows.acts.shape[1]
    eye = torch.cat([torch.eye(width), -torch.eye(width)])
    cfg = {"architecture": "standard", "d_in": width, "d_sae": 2 * width, "apply_b_dec_to_input": True}
    zeros = {"b_enc": torch.zeros(2 * width), "b_dec": torch.zeros(width)}
    values = evaluate(codec_of({"cfg": cfg, "W_enc": eye.T, "W_dec": eye, **zeros}), held, 20, 0)
    assert values.explained_variance.value == 1.0 and values.top1_agreement.value == 1.0
    assert values.loss_spliced.value == pytest.approx(values.loss_clean.value, abs=1e-5)
    assert values.kl_recovered.value == pytest.approx(1.0, abs=1e-5)


def test_splicing_zeros_is_ablation(finished: Finished) -> None:
    target = finished.targets["digits_mlp"]
    held = held_out(target, "layers.0.hook_post", 100)
    zeroed = spliced_logits(target, "layers.0.hook_post", held.inputs, torch.zeros_like)
    assert torch.equal(zeroed, zeroed[:1].expand_as(zeroed)) and torch.equal(zeroed, held.ablated)


def test_splicing_heads_keeps_their_shape(finished: Finished) -> None:
    target = finished.targets["digits_few_shot"]
    inputs = target.corpus("validation").inputs[:3]
    same = spliced_logits(target, "blocks.0.attn.hook_z", inputs, lambda rows: rows)
    assert torch.equal(same, target.model(inputs))


def test_repeated_inputs_are_measured_once(finished: Finished) -> None:
    inputs = torch.tensor([[1.0, 2.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0], [3.0, 1.0]])
    assert distinct_examples(inputs).tolist() == [0, 1, 4]
    held = held_out(finished.targets["digits_mlp"], "layers.0.hook_post", 100)
    assert len(held.inputs) < 300  # 400 draws from 300 images
    assert len(held.inputs.unique(dim=0)) == len(held.inputs) == held.n_examples
    assert torch.equal(held.cluster.sort().values, torch.arange(held.n_examples))


def test_a_tokens_subject_is_the_image_of_its_segment(finished: Finished) -> None:
    target = finished.targets["digits_few_shot"]
    rows = ActivationCache.open(target.name, HOOKS[target.name], "validation").read()
    about = subjects(target, "validation", rows)
    inputs = target.corpus("validation").inputs
    for row in range(0, len(rows.acts), 97):
        segment = int(rows.position[row]) // 2
        expected = (inputs[rows.example[row], segment, :64] * 16).round().long()
        assert torch.equal(about.pixels[row], expected)
    assert about.classes.min() >= 0 and about.classes.max() <= 9
    query = (rows.position == 16).nonzero().flatten()[0]
    shots = [row for row in range(len(rows.acts)) if rows.example[row] == rows.example[query] and row != query]
    same = [row for row in shots if rows.position[row] % 2 == 0 and about.classes[row] == about.classes[query]]
    assert same  # every episode shows the query's class


def test_classes_looked_up_are_the_labels(finished: Finished) -> None:
    target = finished.targets["digits_mlp"]
    rows = ActivationCache.open(target.name, HOOKS[target.name], "validation").read()
    assert torch.equal(subjects(target, "validation", rows).classes, rows.label)


def test_a_rerun_writes_the_same_bytes(finished: Finished) -> None:
    folder = finished.root / "data/dictionaries/digits_mlp"
    before = {file.name + file.parent.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    stage.run(finished.config, "digits_mlp")
    after = {file.name + file.parent.name: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert before == after


def test_the_summary_joins_the_targets_in_params_and_no_other(finished: Finished) -> None:
    rows = summarise(list(finished.config.trained_on))
    assert rows == DICTIONARIES.load()
    swept = {name: json.loads((finished.root / "data/sweep" / name / "metrics.json").read_text()) for name in HOOKS}
    # The kept topk dictionary is a point of the sweep too, and stands there once.
    assert len(rows) == sum(map(len, finished.rows.values())) + sum(map(len, swept.values())) - len(HOOKS)
    assert len({row.order() for row in rows}) == len(rows)
    assert {row.target for row in summarise(["digits_mlp"])} == {"digits_mlp"}
    with pytest.raises(UserError, match="stage 'dictionaries' makes it"):
        summarise(["absent"])


def test_a_hook_point_that_does_not_exist_leaves_old_results(finished: Finished) -> None:
    config = make_config(trained_on={"digits_mlp": {"hooks": ["layers.7"], "n_latents": 8, "steps": 1}})
    with pytest.raises(UserError, match=r"'layers\.7' is no cached hook point of digits_mlp; cached: layers\.0"):
        stage.run(config, "digits_mlp")
    with pytest.raises(UserError, match="target 'other' has no entry"):
        stage.run(config, "other")
    assert len(load_dictionaries("digits_mlp")) == len(load_dictionaries(f"digits_mlp{TWIN}")) == 3
    assert not list((finished.root / "data/dictionaries").glob(".*"))


def test_the_files_in_params_are_valid() -> None:
    from stages.activations.stage import Config

    repository = Path(__file__).parents[2]
    config = load("dictionaries", stage.Config, repository / "params/dictionaries.yaml")
    assert len(config.seeds) >= 3 and set(HOOKS) < set(config.trained_on)
    assert load("activations", Config, repository / "params/activations.yaml").splits == ("train", "validation")


def test_the_room_is_imported_without_sae_lens() -> None:
    code = (
        "import sys, stages.dictionaries; sys.exit('sae_lens' in sys.modules or 'sklearn.linear_model' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_dictionaries_are_listed_trained_measured_and_compared(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    monkeypatch.setattr(inspect, "load", lambda *_: config)
    listed = inspect.list_dictionaries()
    assert [row.name.rpartition("/")[2] for row in listed] == ["batchtopk", "standard", "topk"] * 2
    saved = row_of(finished, "digits_mlp", "topk")
    name = "digits_mlp/layers.0.hook_post/topk"
    assert inspect.evaluate_dictionary(name).explained_variance.value == saved.explained_variance.value
    made = inspect.train_one(
        "digits_mlp", "layers.0.hook_post", "topk", n_latents=48, sparsity=6, steps=60, batch=64, lr=3e-3, seed=0,
        out=tmp_path / "mine",
    )  # fmt: skip
    assert made.explained_variance.value == pytest.approx(saved.explained_variance.value, abs=0.02)
    same = inspect.compare_dictionaries(name, name)
    assert same.likeness.value == same.share_matched.value == 1.0 > same.likeness.null
    assert {"l0", "description_length"} <= {row.metric for row in same.metrics}
    with pytest.raises(UserError, match="is no dictionary: give a folder"):
        inspect.evaluate_dictionary("nothing")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        inspect.train_one(
            "digits_mlp", "x", "topk", n_latents=8, sparsity=2, steps=1, batch=8, lr=1e-3, seed=0,
            out=tmp_path / "full",
        )  # fmt: skip


def test_stability_over_seeds_is_next_to_its_null() -> None:
    decoders = {seed: torch.randn(10, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)}
    decoders[2] = -decoders[0]

    def measured(seed: int, others: dict[int, torch.Tensor]) -> DictionaryRow:
        return with_stability(DictionaryRow.model_construct(seed=seed), others, 50)

    one, other = (measured(seed, decoders) for seed in (0, 1))
    assert one.stability.value > other.stability.value
    assert one.stability.low <= one.stability.value <= one.stability.high
    assert 0.0 < one.stability.null < 1.0 and one.stability_matched.value >= 0.5
    assert measured(0, {0: decoders[0]}).stability == Estimate(value=None)


def test_the_benchmark_measures_both_to_the_same_loss(tmp_path: Path) -> None:
    cache = bench.write_mixture(tmp_path, 16, n_rows=2000)
    for architecture, sparsity in (("standard", 1.0), ("topk", 4.0), ("batchtopk", 4.0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(bench.SPARSITY, architecture, sparsity)
            row = bench.compare_training(cache, architecture, 32, 200, 20, 1)
        assert row["final_loss"] == pytest.approx(row["peer_final_loss"], rel=0.01)
        assert row["samples_per_s"] > 0 and row["peer_samples_per_s"] > 0 and row["ratio"] > 0


def test_a_dictionary_is_measured_on_what_it_says_it_is_of_and_on_nothing_else(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "load", lambda *_: finished.config)
    name = f"digits_mlp/{HOOKS['digits_mlp']}/topk"
    kept = inspect.evaluate_dictionary(name)
    for target, hook, said in (
        ("digits_few_shot", HOOKS["digits_few_shot"], "of model 'digits_mlp'.*not of 'digits_few_shot'"),
        ("digits_mlp", "layers.1.hook_post", "takes rows of 64"),
    ):
        with pytest.raises(UserError, match=said):
            inspect.evaluate_dictionary(name, target, hook)
    assert inspect.evaluate_dictionary(name, "digits_mlp", HOOKS["digits_mlp"]) == kept
    copy = tmp_path / "copy"
    shutil.copytree(finished.root / "data/dictionaries" / name, copy)
    cfg = json.loads((copy / "cfg.json").read_text())
    about = cfg["metadata"]
    (copy / "cfg.json").write_text(json.dumps(cfg | {"metadata": about | {"target_digest": "f" * 64}}))
    with pytest.raises(UserError, match=r"digest ffffffffffff.*trained again"):
        inspect.evaluate_dictionary(str(copy))
    # SAELens before version 6: everything at the top.
    old = {key: value for key, value in cfg.items() if key not in ("metadata", "architecture", "k")}
    old |= {"model_name": about["model_name"], "hook_point": about["hook_name"], "activation_fn_str": "topk"}
    (copy / "cfg.json").write_text(json.dumps(old | {"activation_fn_kwargs": {"k": cfg["k"]}}))
    found = inspect.evaluate_dictionary(str(copy))
    assert (found.target, found.hook_point, found.architecture) == ("digits_mlp", HOOKS["digits_mlp"], "topk")
    assert found.l0 == kept.l0
    (copy / "cfg.json").write_text(json.dumps(old | {"activation_fn_kwargs": {"k": cfg["k"]}, "model_name": None}))
    with pytest.raises(UserError, match="does not say which target"):
        inspect.evaluate_dictionary(str(copy))


def test_caches_of_one_target_are_aligned_and_others_refused(finished: Finished) -> None:
    def cache(target: str, hook: str, split: str = "train") -> ActivationCache:
        return ActivationCache.open(target, hook, split)

    one, other = aligned(cache("digits_mlp", "layers.0.hook_post"), cache("digits_mlp", "layers.1.hook_post"))
    assert len(one) == len(other) and one.shape[1] != 0
    for wrong in (
        cache("digits_few_shot", HOOKS["digits_few_shot"]),
        cache("digits_mlp", "layers.1.hook_post", "validation"),
    ):
        with pytest.raises(UserError, match="do not belong to the same examples"):
            aligned(cache("digits_mlp", "layers.0.hook_post"), wrong)


@pytest.mark.parametrize("target", HOOKS)
def test_a_sweep_has_every_sparsity_size_and_baseline_once_and_saves_what_it_measured(
    finished: Finished, target: str
) -> None:
    folder = finished.root / "data/sweep" / target
    rows = SWEEP_METRICS.load(folder / "metrics.json")
    found = [(row.architecture, row.sparsity, row.n_latents) for row in rows]
    width = {"digits_mlp": 64, "digits_few_shot": 64}[target]
    n = 2 * min(width, 24)  # both signs, of 48 latents at most
    assert sorted(found) == [("identity", 3, n), ("pca", 3, n), ("topk", 3, 48), ("topk", 6, 24), ("topk", 6, 48)]
    held = held_out(finished.targets[target], HOOKS[target], 200)
    for row in rows:
        assert row.l0.value <= row.sparsity and set(METRICS) <= set(row.metrics())
        codec = load_codec(folder / HOOKS[target] / row.name)
        again = evaluate(codec, held, 50, row.seed)
        assert again.explained_variance.value == row.explained_variance.value
    kept = row_of(finished, target, "topk")
    same = next(row for row in rows if (row.sparsity, row.n_latents) == (6, 48) and row.architecture == "topk")
    assert same.explained_variance == kept.explained_variance


def test_a_sweep_over_what_does_not_exist_is_refused() -> None:
    for wrong in (
        {"architectures": {"nonsense": [1]}, "baselines": [], "k": [], "sizes": []},
        {"architectures": {"topk": []}, "baselines": [], "k": [], "sizes": []},
        {"architectures": {"topk": [1]}, "baselines": ["nmf"], "k": [], "sizes": []},
    ):
        with pytest.raises(ValueError, match="known:"):
            make_config(sweep=wrong)
