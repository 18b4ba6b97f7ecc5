"""Arms that are read from the store are those that would be computed, and anything they depend on is in the key."""

import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.base import code, paths
from stages.contracts.arms import Answered, Baseline, MethodArms
from stages.contracts.target import Target
from stages.contracts.task import Instances, Truth
from stages.execution import runs, store
from stages.execution.arms import budgets_of
from stages.execution.results import load_baseline, save_baseline
from stages.execution.settings import ExecutorConfig
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.storage import Task

CONFIG = ExecutorConfig(n_seeds=2, n_calibration=20)


@pytest.fixture
def task(mlp: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    made = make(family("noise_flip"), mlp, "train", 60, 0, "test", b"key")
    return Task(family("noise_flip"), mlp.name, "train", made.instances.public(), made.truth)


@pytest.fixture
def answered(task: Task) -> Answered:
    rows = np.random.default_rng(0).normal(size=(60, 1, 3)) + task.truth.values.numpy()[..., None]
    return Answered("ok", rows, 10.0, 1.0)


def same(one: Baseline | MethodArms, two: Baseline | MethodArms) -> bool:
    names = ("first", "second") if isinstance(one, Baseline) else ("assisted", "placebo")
    return all(
        np.array_equal(a.predictions, b.predictions) and replace(a, predictions=b.predictions, index=b.index) == b
        for name in names
        for a, b in zip(getattr(one, name), getattr(two, name), strict=True)
    )


def test_what_is_kept_is_what_is_computed(
    task: Task, mlp: Target, answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = runs.baseline_of(task, mlp, CONFIG)
    arms = runs.arms_of(task, baseline, answered, CONFIG)
    assert len(list(paths.arms_store().glob("??/*.json"))) == 2 * CONFIG.n_seeds

    def never(*args: object) -> None:
        raise AssertionError("it was computed again")

    monkeypatch.setattr(runs, "solve", never)
    again = runs.baseline_of(task, mlp, CONFIG)
    assert same(again, baseline) and same(runs.arms_of(task, again, answered, CONFIG), arms)


def test_one_seed_more_pays_for_that_one_alone(task: Task, mlp: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline, solved, real = runs.baseline_of(task, mlp, CONFIG), [], runs.solve
    monkeypatch.setattr(runs, "solve", lambda *args, **more: solved.append(args[4]) or real(*args, **more))
    more = runs.baseline_of(task, mlp, CONFIG.model_copy(update={"n_seeds": 3}))
    assert solved == [2, 2]  # twice: the second baseline is another draw
    kept = Baseline(more.first[:6], more.second[:6], more.rungs[:2], more.fits[:2])
    assert same(kept, baseline)


def test_everything_an_arm_depends_on_is_in_its_key(task: Task, mlp: Target, answered: Answered) -> None:
    baseline = runs.seed_of(runs.baseline_of(task, mlp, CONFIG), 0)
    instances = Instances({k: v.clone() for k, v in task.instances.arrays.items()}, task.instances.n)
    next(iter(instances.arrays.values())).add_(1e-3)
    other_truth = Truth(task.truth.values + torch.eye(60, 1, dtype=torch.float64))
    assert answered.rows is not None
    newer = type("Newer", (type(task.family),), {"version": 99, "__module__": type(task.family).__module__})
    others = (
        {"status": "failed"}, {"reason": "x"}, {"target_flops": 11.0}, {"unseen_flops": 1.0},
        {"rows": answered.rows.reshape(60, 3, 1)},
    )  # fmt: skip
    first, fit = baseline.first[0], baseline.fits[0][0]
    baselines = (
        replace(baseline, fits=[[replace(fit, score=fit.score + 1e-9), *baseline.fits[0][1:]]]),
        *(
            replace(baseline, first=[replace(first, **other), *baseline.first[1:]])
            for other in ({"flops": first.flops + 1}, {"effort": 99}, {"predictions": first.predictions + 1e-12})
        ),
    )
    keys = {
        store.arms_key(*arguments)
        for arguments in (
            (task, baseline, answered, CONFIG, 0, True),
            (task, baseline, answered, CONFIG, 1, True),
            (task, baseline, answered, CONFIG, 0, False),
            (task, baseline, answered, CONFIG.model_copy(update={"margin": 0.03}), 0, True),
            (task, baseline, replace(answered, rows=answered.rows + 1e-12), CONFIG, 0, True),
            (task, baseline, replace(answered, own_flops=2.0), CONFIG, 0, True),
            (task, replace(baseline, rungs=[list(reversed(baseline.rungs[0]))]), answered, CONFIG, 0, True),
            (replace(task, instances=instances), baseline, answered, CONFIG, 0, True),
            (replace(task, truth=other_truth), baseline, answered, CONFIG, 0, True),
            (replace(task, family=newer()), baseline, answered, CONFIG, 0, True),
            *((task, baseline, replace(answered, **other), CONFIG, 0, True) for other in others),
            *((task, one, answered, CONFIG, 0, True) for one in baselines),
        )
    }
    assert len(keys) == 10 + len(others) + len(baselines)
    more_seeds = CONFIG.model_copy(update={"n_seeds": 9})
    assert store.arms_key(task, baseline, answered, more_seeds, 0, True) in keys
    one = store.baseline_key(task, mlp.digest, CONFIG, 0)
    assert one != store.baseline_key(task, "another", CONFIG, 0) != store.baseline_key(task, "another", CONFIG, 1)


def test_a_damaged_entry_is_computed_again(task: Task, mlp: Target) -> None:
    baseline = runs.baseline_of(task, mlp, CONFIG)
    for file in paths.arms_store().glob("??/*"):
        file.write_bytes(file.read_bytes()[:40])
    assert same(runs.baseline_of(task, mlp, CONFIG), baseline)
    assert same(runs.baseline_of(task, mlp, CONFIG), baseline)


def test_the_oldest_entries_go_first(task: Task, mlp: Target) -> None:
    runs.baseline_of(task, mlp, CONFIG)
    files = sorted(paths.arms_store().glob("??/*.json"), key=lambda file: file.stat().st_mtime)
    size = sum(file.stat().st_size for file in paths.arms_store().glob("??/*"))
    assert store.prune(size) == 0
    assert store.prune(size - 1) == 1
    assert not files[0].exists() and not files[0].with_suffix(".safetensors").exists() and files[1].exists()


def test_two_gibibytes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two entries whose arrays have holes in place of bytes: their sizes count, and the disk is not filled."""
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    folder = paths.arms_store() / "ab"
    folder.mkdir(parents=True)
    for name, age in (("old", 100), ("new", 200)):
        (folder / f"{name}.json").write_text("{}")
        with (folder / f"{name}.safetensors").open("wb") as file:
            file.truncate((1 << 30) - 2)
        os.utime(folder / f"{name}.json", (age, age))
    assert store.prune() == 0
    (folder / "new.json").write_text("{} ")
    os.utime(folder / "new.json", (200, 200))
    assert store.prune() == 1 and sorted(file.name for file in folder.iterdir()) == ["new.json", "new.safetensors"]


def test_an_entry_without_arrays_goes_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    file = paths.arms_store() / "ab" / "half.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert store.prune(2) == 0 and store.prune(1) == 1 and not file.exists()


def test_the_code_of_executor_and_family_is_in_the_digest() -> None:
    reached = code.closure(["stages.execution.runs", "stages.tasks.families.noise_flip"])
    assert {"stages.execution.arms", "stages.execution.calibrator", "stages.tasks.black_box"} <= reached
    assert {"stages.metering.op_table", "stages.metering.prices"} <= reached, "what the ladder is charged"
    assert not {"stages.tasks.families.early_exit", "stages.interpretation.methods.pca"} & reached


def test_an_answer_without_a_score_has_no_arms(task: Task, mlp: Target) -> None:
    baseline = runs.baseline_of(task, mlp, CONFIG)
    with pytest.raises(ValueError, match="no arms"):
        runs.arms_of(task, baseline, Answered("void", None, 0.0, 0.0, "it cheated"), CONFIG)


def test_another_version_of_a_library_is_another_key(task: Task, mlp: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store.baseline_key(task, mlp.digest, CONFIG, 0)
    assert store.baseline_key(task, mlp.digest, CONFIG, 0) == before
    store._libraries.cache_clear()
    monkeypatch.setattr(store, "version", lambda name: "0.0.0")
    try:
        assert store.baseline_key(task, mlp.digest, CONFIG, 0) != before
    finally:
        store._libraries.cache_clear()


def test_code_that_changed_is_another_key(
    task: Task, mlp: Target, answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = runs.seed_of(runs.baseline_of(task, mlp, CONFIG), 0)

    def keys() -> tuple[str, str]:
        return (
            store.baseline_key(task, mlp.digest, CONFIG, 0),
            store.arms_key(task, baseline, answered, CONFIG, 0, True),
        )

    before, asked, digest = keys(), [], store.code_digest
    monkeypatch.setattr(store, "code_digest", lambda *modules: asked.append(modules) or digest(*modules) + "edited")
    assert all(one != other for one, other in zip(before, keys(), strict=True))
    assert set(asked) == {("stages.execution.runs", "stages.tasks.families.noise_flip")}


def test_a_baseline_read_back_poses_the_same_budgets_and_gives_the_same_arms(task, mlp, tmp_path):
    """Every field of a ladder step is kept: an arm on the stored baseline is the arm on the one in memory."""
    baseline = runs.baseline_of(task, mlp, CONFIG)
    save_baseline(baseline, tmp_path, "it")
    again = load_baseline(tmp_path, "it")
    for seed, steps in enumerate(baseline.rungs):
        assert budgets_of(again.rungs[seed]) == budgets_of(steps)
        for step, read in zip(steps, again.rungs[seed], strict=True):
            assert step.look > 0
            for field in fields(step):
                assert np.array_equal(getattr(step, field.name), getattr(read, field.name)), field.name
