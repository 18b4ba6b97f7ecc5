"""Targets of words: no row for an absent word or for an input's first, however much memory there is."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.activations import writer
from stages.activations.cache import ActivationCache
from stages.activations.manifest import MANIFEST, Manifest
from stages.activations.writer import write_caches
from stages.contracts.target import Target
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
