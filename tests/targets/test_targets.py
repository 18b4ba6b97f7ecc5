"""Targets: what is saved is what was trained; what did not learn is refused."""

import json

import pytest
import torch

from stages.base import paths
from stages.contracts.target import (
    Objective,
    TargetSpec,
    keep_segments,
    objective_values,
)
from stages.errors import UserError
from stages.targets.few_shot_data import digit_splits, draw_episodes
from stages.targets.stage import Config, Entry, run
from stages.targets.storage import load_target, save_target
from stages.targets.zoo import ZOO
from tests import toy
from tests.conftest import make_target


def test_a_saved_target_is_the_one_that_was_trained(mlp, tmp_path):
    save_target(mlp, tmp_path)
    again = load_target("digits_mlp", tmp_path)
    inputs = mlp.corpus("validation").inputs
    assert again.digest == mlp.digest and again.spec == mlp.spec
    assert torch.equal(again.model(inputs), mlp.model(inputs))
    assert torch.equal(again.corpus("tasks").inputs, mlp.corpus("tasks").inputs)


def test_saving_twice_gives_the_same_bytes(mlp, tmp_path):
    for name in ("a", "b"):
        save_target(mlp, tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_training_twice_gives_the_same_digest():
    assert make_target("digits_mlp", 30).digest == make_target("digits_mlp", 30).digest
    assert make_target("digits_mlp", 30).digest != make_target("digits_mlp", 31).digest


@pytest.mark.parametrize("file", ["weights.safetensors", "target.json"])
def test_a_changed_file_is_noticed(mlp, tmp_path, file):
    save_target(mlp, tmp_path)
    if file == "target.json":
        spec = json.loads((tmp_path / file).read_text())
        (tmp_path / file).write_text(json.dumps(spec | {"n_outputs": 9}))
    else:
        raw = bytearray((tmp_path / file).read_bytes())
        raw[-1] ^= 1
        (tmp_path / file).write_bytes(raw)
    with pytest.raises(UserError, match="does not match its digest"):
        load_target("digits_mlp", tmp_path)


def test_missing_and_unknown_targets_say_what_to_do(tmp_path):
    with pytest.raises(UserError, match="stage 'targets' makes it"):
        load_target("digits_mlp", tmp_path)
    with pytest.raises(
        UserError,
        match=r"known: context_lm, cued_digits, digits_few_shot, digits_mlp, facts_lm, gguf, .*repro targets@imagenet",
    ):
        load_target("imagenet", tmp_path)


def test_a_target_that_did_not_learn_stops_the_run_and_leaves_nothing(tmp_path):
    config = Config(targets={"digits_mlp": Entry(source="digits_mlp", steps=2, seed=0)}, n_corpus=64)
    with toy.rooted(tmp_path):
        with pytest.raises(UserError, match=r"did not learn: held-out accuracy 0\.\d+, at least 0.9.*raise targets"):
            run(config, "digits_mlp")
        assert not paths.target_dir("digits_mlp").exists()


def test_a_trained_target_is_measured_on_held_out_images(tmp_path):
    config = Config(targets={"digits_mlp": Entry(source="digits_mlp", steps=400, seed=0)}, n_corpus=64)
    with toy.rooted(tmp_path):
        metrics = run(config, "digits_mlp")
        saved = json.loads((paths.target_dir("digits_mlp") / "metrics.json").read_text())
    assert metrics["accuracy"] >= ZOO.find("digits_mlp")().minimum["accuracy"]
    assert saved["accuracy"] == pytest.approx(metrics["accuracy"], abs=1e-6)


def test_splits_share_no_image():
    splits = digit_splits(0)
    rows = {name: {tuple(row) for row in corpus.inputs.tolist()} for name, corpus in splits.items()}
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == 1797
    assert {name: len(c.labels) for name, c in splits.items()} == {"train": 900, "validation": 300, "tasks": 597}


def test_an_episode_can_be_answered_from_its_examples():
    """The query's digit stands among the examples, under the label that is the right answer; labels are a renaming."""
    images = digit_splits(0)["train"]
    inputs, labels = draw_episodes(images, 50, torch.Generator().manual_seed(1))
    digit_of = {tuple(row): int(label) for row, label in zip(images.inputs.tolist(), images.labels, strict=True)}
    for episode, label in zip(inputs, labels, strict=True):
        digits = [digit_of[tuple(row[:64].tolist())] for row in episode]
        shown = episode[:8, 64].long().tolist()
        assert len({(d, s) for d, s in zip(digits[:8], shown, strict=True)}) == len(set(digits[:8]))
        assert (digits[8], int(label)) in set(zip(digits[:8], shown, strict=True))
        assert episode[8, 64] == 0 and bool((episode[:, 65] == 1).all())


def test_a_hidden_example_has_no_influence(few_shot):
    inputs = few_shot.corpus("train").inputs[:6]
    keep = torch.ones(6, 9, dtype=torch.bool)
    keep[:, 3] = False
    hidden = keep_segments(few_shot.spec, inputs, keep)
    other = hidden.clone()
    other[:, 3, :64], other[:, 3, 64] = torch.rand(6, 64), 2.0
    assert torch.allclose(few_shot.model(hidden), few_shot.model(other), atol=1e-5)
    assert not torch.allclose(few_shot.model(hidden), few_shot.model(inputs), atol=1e-4)


def test_hidden_pixels_are_zero(mlp):
    inputs = mlp.corpus("train").inputs[:3]
    keep = torch.zeros(3, 64, dtype=torch.bool)
    keep[:, :10] = True
    assert torch.equal(keep_segments(mlp.spec, inputs, keep), torch.cat([inputs[:, :10], torch.zeros(3, 54)], 1))


def test_specs_survive_json(few_shot, mlp):
    for target in (few_shot, mlp):
        assert TargetSpec.from_json(json.loads(json.dumps(target.spec.to_json()))) == target.spec


def test_declared_hooks_and_components_are_real(few_shot, mlp):
    for target in (few_shot, mlp):
        _, cache = target.model.run_with_cache(target.corpus("train").inputs[:2])
        for hook in target.spec.hooks:
            assert tuple(cache[hook.name].shape[1:]) == hook.shape and hook.shape[-1] == hook.width
        for hook_point, axis, index in target.spec.components:
            assert index < cache[hook_point].shape[axis]


def test_objectives_by_hand():
    outputs, labels = torch.tensor([[1.0, 3.0, 0.0], [2.0, 2.5, -1.0]]), torch.tensor([0, 1])
    probs = outputs.softmax(-1)
    wanted = {
        "logit": [1.0, 2.5],
        "log_prob": [probs[0, 0].log(), probs[1, 1].log()],
        "loss": [-probs[0, 0].log(), -probs[1, 1].log()],
        "entropy": [-(p * p.log()).sum() for p in probs],
        "margin": [-2.0, 0.5],
    }
    for kind, values in wanted.items():
        assert objective_values(outputs, Objective(kind, labels)).tolist() == pytest.approx([float(v) for v in values])
    assert objective_values(outputs, Objective("margin")).tolist() == pytest.approx([2.0, 0.5])
    with pytest.raises(ValueError, match="unknown"):
        objective_values(outputs, Objective("guess", labels))
