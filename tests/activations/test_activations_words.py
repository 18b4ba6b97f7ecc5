"""Targets of words: no row for an absent word or for an input's first, however much memory there is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.activations import stage, writer
from stages.activations.cache import ActivationCache
from stages.activations.manifest import MANIFEST, Manifest
from stages.activations.writer import n_positions, row_width, write_caches
from stages.contracts.target import Target
from stages.errors import UserError
from tests.activations.test_activations_cache import digest_of_folder

HOOKS = ("hook_embed", "blocks.0.attn.hook_z", "blocks.2.mlp.hook_post", "blocks.1.hook_resid_post")


@pytest.fixture(scope="module")
def words(make_target: Callable[..., Target]) -> Target:
    return make_target("facts_lm", n=40)


def test_rows_are_of_present_words_but_the_first(words: Target, tmp_path: Path) -> None:
    write_caches(words, "train", dtype="float32", root=tmp_path)
    corpus = words.corpus("train")
    present = corpus.inputs[..., 1] > 0.5
    wanted = {
        (example, place)
        for example in range(40)
        for place in range(present.shape[1])
        if present[example, place] and place != int(present[example].long().argmax())
    }
    assert 0 < len(wanted) == int(present.sum()) - 40
    with torch.no_grad():
        _, cache = words.model.run_with_cache(corpus.inputs)
    for hook in HOOKS:
        rows = ActivationCache.open(words.name, hook, "train", root=tmp_path).read()
        assert set(zip(rows.example.tolist(), rows.position.tolist(), strict=True)) == wanted
        assert len(rows.acts) == len(wanted)
        expected = cache[hook].flatten(2)[rows.example, rows.position]
        torch.testing.assert_close(rows.acts, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(rows.label, corpus.labels[rows.example])
        manifest = Manifest.load(tmp_path / hook / "train")
        assert manifest.n_rows == len(wanted) and manifest.left_out == 40 * present.shape[1] - len(wanted)
        assert rows.example[:17].unique().numel() > 5, "shuffled"
    one, other = (ActivationCache.open(words.name, hook, "train", root=tmp_path).read() for hook in HOOKS[:2])
    assert torch.equal(one.example, other.example) and torch.equal(one.position, other.position)


def test_a_giant_first_activation_does_not_decide_the_type(words: Target, tmp_path: Path) -> None:
    """Real models hold an activation of tens of thousands at an input's first place."""

    def giant(acts: torch.Tensor, hook: object) -> torch.Tensor:
        first = (words.corpus("train").inputs[..., 1] > 0.5).long().argmax(1)
        out = acts.clone()
        out[torch.arange(len(out)), first] = 1e6
        return out

    with words.model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", giant)]):
        found = {m.hook: m.max_abs for m in write_caches(words, "train", roles=("residual",), root=tmp_path)}
    assert found["blocks.1.hook_resid_post"] < 100


def test_small_passes_and_rows_in_a_file_give_the_same_cache(
    words: Target, few_shot: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for target in (words, few_shot):
        write_caches(target, "train", dtype="float32", root=tmp_path / target.name / "a")
    sizes: list[int] = []
    for target in (words, few_shot):
        run = target.model.run_with_hooks
        monkeypatch.setattr(
            target.model, "run_with_hooks", lambda x, *, run=run, **k: (sizes.append(len(x)), run(x, **k))
        )
    monkeypatch.setattr(writer, "PASS_BYTES", 2_000_000)
    monkeypatch.setattr(writer, "HELD_BYTES", 1000)
    for target in (words, few_shot):
        folder = tmp_path / target.name / "b"
        write_caches(target, "train", dtype="float32", root=folder)
        assert {file.name for file in folder.iterdir()} == {hook.parent.name for hook in folder.glob("*/train")}
    assert 1 <= max(sizes) < 40 and sum(sizes) == 40 + 60
    for target in (words, few_shot):
        for hook in target.hook_points:
            if (tmp_path / target.name / "a" / hook).is_dir():
                one, other = (
                    ActivationCache.open(target.name, hook, "train", root=tmp_path / target.name / k).read()
                    for k in "ab"
                )
                assert torch.equal(one.position, other.position) and torch.equal(one.example, other.example)
                torch.testing.assert_close(one.acts, other.acts, rtol=1e-4, atol=1e-5)


def test_two_writings_are_byte_identical(words: Target, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_caches(words, "validation", rows_per_shard=100, root=tmp_path / name)
    assert digest_of_folder(tmp_path / "a") == digest_of_folder(tmp_path / "b")


def test_manifests_of_targets_without_words_are_what_they_were(mlp: Target, tmp_path: Path) -> None:
    write_caches(mlp, "train", root=tmp_path)
    said = json.loads((tmp_path / "layers.0.hook_post" / "train" / MANIFEST).read_text())
    assert "left_out" not in said and Manifest.load(tmp_path / "layers.0.hook_post" / "train").left_out == 0


def test_several_hook_points_come_from_one_pass_that_ends_at_the_last(
    words: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes, reached = [], []
    run = words.model.run_with_hooks

    def counted(*args: object, **kwargs: object) -> object:
        passes.append(1)
        return run(*args, **kwargs)

    monkeypatch.setattr(words.model, "run_with_hooks", counted)
    later = words.model.hook_dict["blocks.2.hook_resid_post"]
    later.add_hook(lambda acts, hook: reached.append(1))
    names = ("blocks.0.attn.hook_z", "blocks.1.hook_resid_post")
    manifests = write_caches(words, "train", names=names, dtype="float32", root=tmp_path / "two")
    assert [one.hook for one in manifests] == list(names)
    assert len(passes) == 1 and not reached, "40 inputs, two hook points, one pass that does not go on"
    write_caches(words, "train", dtype="float32", root=tmp_path / "all")
    assert len(passes) == 2 and reached
    later.remove_hooks()
    for name in names:
        one, every = (ActivationCache.open(words.name, name, "train", root=tmp_path / of) for of in ("two", "all"))
        assert one.manifest == every.manifest


def test_too_much_is_refused_with_its_size_and_what_to_do(
    words: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    monkeypatch.setattr(stage, "load_target", lambda name: words)
    values = {"dtype": "float16", "roles": ["residual", "mlp", "head"], "splits": ["train", "validation"]}
    values |= {"max_examples": 4096, "rows_per_shard": 1000, "seed": 0}
    hooks = [hook for hook in words.spec.hooks if hook.role in values["roles"]]
    bound = sum(2 * 40 * n_positions(hook) * row_width(hook) * 2 for hook in hooks)
    with pytest.raises(UserError, match=r"hooks: \{facts_lm: \[blocks.0.mlp.hook_post\]\}.* or lower max_examples"):
        stage.run(stage.Config(**values, max_bytes=bound - 1), "facts_lm")
    assert not (tmp_path / "data").exists(), "refused before anything is written"
    assert len(stage.run(stage.Config(**values, max_bytes=bound), "facts_lm")) == 2 * len(hooks)
    one = stage.Config(**values, max_bytes=bound - 1, hooks={"facts_lm": ["blocks.1.hook_resid_post"]})
    assert {found.hook for found in stage.run(one, "facts_lm")} == {"blocks.1.hook_resid_post"}
    wrong = stage.Config(**values, hooks={"facts_lm": ["blocks.1.hook_resid"]})
    with pytest.raises(UserError, match=r"near it are blocks.1.hook_resid_post"):
        stage.run(wrong, "facts_lm")
