"""What is written is what the target computes; what is damaged is noticed."""

import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stages.activations.cache import ActivationCache
from stages.activations.order import write_order
from stages.activations.writer import (
    cached_hooks,
    n_positions,
    row_width,
    rows_of,
    to_dtype,
    write_caches,
)
from stages.contracts.target import Target
from stages.errors import UserError

HOOK = "layers.0.hook_post"
HEADS = "blocks.1.attn.hook_z"


@pytest.fixture
def written(mlp: Target, tmp_path: Path) -> Path:
    write_caches(mlp, "train", rows_per_shard=25, root=tmp_path)
    return tmp_path


def digest_of_folder(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("hook_name", ["blocks.0.hook_resid_post", "blocks.0.mlp.hook_post", HEADS])
def test_rows_are_the_targets_own_activations(few_shot: Target, tmp_path: Path, hook_name: str) -> None:
    write_caches(few_shot, "validation", root=tmp_path)
    rows = ActivationCache.open(few_shot.name, hook_name, "validation", root=tmp_path).read()
    corpus = few_shot.corpus("validation")
    with torch.no_grad():
        _, cache = few_shot.model.run_with_cache(corpus.inputs)
    expected = cache[hook_name].flatten(2)[rows.example, rows.position]
    torch.testing.assert_close(rows.acts, expected, rtol=2e-3, atol=1e-3)
    assert torch.equal(rows.label, corpus.labels[rows.example])
    assert len(rows.acts) == 60 * 17 and len(torch.stack([rows.example, rows.position]).unique(dim=1).T) == 60 * 17


def test_rows_are_shuffled_over_positions_and_aligned_between_hook_points(few_shot: Target, tmp_path: Path) -> None:
    write_caches(few_shot, "train", root=tmp_path)
    one, other = (
        ActivationCache.open(few_shot.name, hook, "train", root=tmp_path).read()
        for hook in ("blocks.0.hook_resid_post", HEADS)
    )
    assert len(one.position[:17].unique()) > 5 and len(one.example[:17].unique()) > 5
    assert torch.equal(one.example, other.example) and torch.equal(one.position, other.position)


def test_patterns_and_values_are_not_cached_and_heads_are_flattened(few_shot: Target) -> None:
    hooks = cached_hooks(few_shot.spec, ("residual", "mlp", "head"))
    assert {hook.role for hook in hooks} == {"residual", "mlp", "head"}
    heads = few_shot.spec.hook(HEADS)
    assert row_width(heads) == 64 and rows_of(heads, torch.zeros(3, 17, 4, 16)).shape == (51, 64)


def test_two_writings_are_byte_identical(mlp: Target, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_caches(mlp, "train", rows_per_shard=25, root=tmp_path / name)
    assert digest_of_folder(tmp_path / "a") == digest_of_folder(tmp_path / "b")


def test_a_whole_cache_is_kept_and_another_seed_replaces_it(mlp: Target, written: Path) -> None:
    marker = written / HOOK / "train" / "kept"
    marker.touch()
    write_caches(mlp, "train", rows_per_shard=25, root=written)
    assert marker.exists()
    write_caches(mlp, "train", rows_per_shard=25, seed=1, root=written)
    assert not marker.exists()


def test_the_key_depends_on_everything_that_determines_the_rows(
    make_target: Callable[..., Target], tmp_path: Path
) -> None:
    target, other = make_target("digits_mlp"), make_target("digits_mlp", seed=1)
    options: list[tuple[Target, str, dict[str, int | str]]] = [
        (target, "train", {}),
        (target, "validation", {}),
        (target, "train", {"seed": 1}),
        (target, "train", {"dtype": "float32"}),
        (target, "train", {"max_examples": 30}),
        (other, "train", {}),
    ]
    keys = [
        manifest.key
        for number, (which, split, extra) in enumerate(options)
        for manifest in write_caches(which, split, root=tmp_path / str(number), **extra)  # type: ignore[arg-type]
    ]
    assert len(set(keys)) == len(keys) == 2 * len(options)


def test_a_subset_is_drawn_where_the_corpus_is_larger(mlp: Target, tmp_path: Path) -> None:
    manifest = write_caches(mlp, "train", max_examples=30, root=tmp_path)[0]
    rows = ActivationCache.open(mlp.name, HOOK, "train", root=tmp_path).read()
    assert manifest.n_examples == 30 == len(rows.example.unique()) and rows.example.max() > 30


def test_batches_can_be_resumed_and_are_the_rows(mlp: Target, written: Path) -> None:
    cache = ActivationCache.open(mlp.name, HOOK, "train", digest=mlp.digest, root=written)
    whole = list(itertools.islice(cache.batches(16, seed=3), 12))
    resumed = list(itertools.islice(cache.batches(16, seed=3, start_step=7), 5))
    assert all(torch.equal(a, b) for a, b in zip(whole[7:], resumed, strict=True))
    every = {tuple(row) for row in cache.read().acts.tolist()}
    assert all(tuple(row) in every for batch in whole for row in batch.tolist())


def test_a_flipped_byte_is_reported_with_file_and_remedy(mlp: Target, written: Path) -> None:
    file = written / HOOK / "train" / "shard-001.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    cache = ActivationCache.open(mlp.name, HOOK, "train", root=written)
    with pytest.raises(UserError, match=r"shard-001\.safetensors is corrupted .*: delete .* and run"):
        cache.read()
    write_caches(mlp, "train", rows_per_shard=25, root=written)  # the remedy mends it
    assert len(ActivationCache.open(mlp.name, HOOK, "train", root=written).read().acts) == 60


def test_a_shard_that_lies_about_its_format_is_reported(mlp: Target, written: Path) -> None:
    folder = written / HOOK / "train"
    file = folder / "shard-000.safetensors"
    file.write_bytes(b"not a shard")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(b"not a shard").hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="cannot be read"):
        ActivationCache.open(mlp.name, HOOK, "train", root=written).read()


def test_a_missing_shard_and_a_missing_or_damaged_manifest_are_reported(mlp: Target, written: Path) -> None:
    folder = written / HOOK / "train"
    (folder / "shard-002.safetensors").unlink()
    with pytest.raises(UserError, match="is missing although the manifest lists it"):
        ActivationCache.open(mlp.name, HOOK, "train", root=written).read()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        ActivationCache.open(mlp.name, HOOK, "train", root=written)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no complete cache is there; run `python -m stages activations"):
        ActivationCache.open(mlp.name, HOOK, "train", root=written)


def test_a_cache_of_another_target_is_refused(mlp: Target, written: Path) -> None:
    with pytest.raises(UserError, match="caches another target"):
        ActivationCache.open(mlp.name, HOOK, "train", digest="0" * 64, root=written)


def test_unknown_hook_split_and_folder_say_what_there_is(mlp: Target, written: Path) -> None:
    with pytest.raises(UserError, match=r"'layers\.9' is no cached hook point .* cached: layers\.0\.hook_post"):
        ActivationCache.open(mlp.name, "layers.9", "train", root=written)
    with pytest.raises(UserError, match=r"'validation' .* is not cached; cached: train"):
        ActivationCache.open(mlp.name, HOOK, "validation", root=written)
    with pytest.raises(UserError, match="stage 'activations' makes it"):
        ActivationCache.open(mlp.name, HOOK, "train", root=written / "nowhere")


def test_fewer_rows_than_a_batch_is_reported(mlp: Target, written: Path) -> None:
    with pytest.raises(UserError, match="batch = 61 does not fit: there are 60 rows"):
        ActivationCache.open(mlp.name, HOOK, "train", root=written).batches(61, seed=0)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7e4, "beyond the 65504 of float16"),
        (-7e4, "magnitude 70000, beyond"),
        (float("nan"), "1 of 5 .* NaN or inf"),
        (float("-inf"), "NaN or infinite"),
    ],
)
def test_overflow_and_nan_are_refused_with_the_hook_point(value: float, message: str) -> None:
    rows = torch.ones(5, 3)
    rows[2, 1] = value
    with pytest.raises(UserError, match=message):
        to_dtype(rows, "float16", "layers.0", "digits_mlp")


def test_an_interrupted_writing_leaves_no_manifest_and_the_old_cache_whole(
    mlp: Target, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digest_of_folder(written / HOOK / "train")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stages.activations.writer.write_shards", fail)
    with pytest.raises(OSError, match="No space left"):
        write_caches(mlp, "train", seed=5, root=written)
    assert digest_of_folder(written / HOOK / "train") == before


def old_writing(target: Target, hook: str, dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    """Columns of a whole split as they were written from the first version on: captured, rounded, then shuffled."""
    corpus = target.corpus("train")
    with torch.no_grad():
        batches = [target.model.run_with_cache(part)[1][hook] for part in corpus.inputs.split(256)]
    spec = target.spec.hook(hook)
    rows = torch.cat([rows_of(spec, batch) for batch in batches])
    order = write_order(len(rows), "train", seed)
    n, positions = len(corpus.inputs), n_positions(spec)
    columns = {
        "example": torch.arange(n).repeat_interleave(positions),
        "position": torch.arange(positions).repeat(n),
        "label": corpus.labels.repeat_interleave(positions),
    }
    return {"acts": rows.to(dtype)[order]} | {name: column[order].int() for name, column in columns.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("hook", ["blocks.0.hook_resid_post", HEADS])
def test_files_are_what_save_file_makes_of_rounded_and_shuffled_rows(
    few_shot: Target, tmp_path: Path, hook: str, dtype: str
) -> None:
    manifests = write_caches(few_shot, "train", dtype=dtype, rows_per_shard=400, root=tmp_path)
    columns = old_writing(few_shot, hook, getattr(torch, dtype))
    manifest = next(one for one in manifests if one.hook == hook)
    assert len(manifest.shards) == 3
    for number, shard in enumerate(manifest.shards):
        cut = {name: column[number * 400 : (number + 1) * 400].contiguous() for name, column in columns.items()}
        save_file(cut, tmp_path / "expected")
        data = (tmp_path / hook / "train" / shard.file).read_bytes()
        assert data == (tmp_path / "expected").read_bytes()
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
    assert manifest.max_abs == pytest.approx(columns["acts"].abs().max().item(), rel=1e-3)


def test_a_broken_target_is_refused_while_it_is_captured(make_target: Callable[..., Target], tmp_path: Path) -> None:
    target = make_target("digits_few_shot")
    with torch.no_grad():
        next(target.model.parameters())[0] = float("nan")
    with pytest.raises(UserError, match=r"of .* activations of digits_few_shot at .* are NaN or infinite"):
        write_caches(target, "train", root=tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))


def test_shards_hold_the_columns_in_the_stated_types(mlp: Target, written: Path) -> None:
    columns = load_file(written / HOOK / "train" / "shard-000.safetensors")
    assert {name: column.dtype for name, column in columns.items()} == {
        "acts": torch.float16,
        "example": torch.int32,
        "position": torch.int32,
        "label": torch.int32,
    }
    save_file(columns, written / "copy.safetensors")
    assert (written / "copy.safetensors").read_bytes() == (written / HOOK / "train/shard-000.safetensors").read_bytes()
