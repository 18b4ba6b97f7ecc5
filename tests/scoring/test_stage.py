"""The stage of built-in methods: what it reads, what it writes and what it says."""

import pytest

from stages.base import paths
from stages.contracts.arms import Answered
from stages.errors import UserError
from stages.execution.results import load_arms
from stages.scoring import stage
from stages.scoring.settings import settings


def test_it_writes_the_arms_of_every_train_and_validation_task(graph, capsys):
    names = ["active_learning.digits_mlp", "few_shot_shapley.digits_few_shot"]
    folder = paths.execution_dir("attention")
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    for file in folder.iterdir():
        file.unlink()
    stage.run(settings().execution, "attention")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in said] == names
    for name, line in zip(names, said, strict=True):
        arms = load_arms(folder, name)
        used = sum(arm.used_answer for arm in arms.assisted)
        told = [arms.status, *([arms.reason] if arms.reason else []), f"used in {used} of {len(arms.assisted)} runs"]
        assert line == f"attention: {name}: {' '.join(told)}"


def test_what_is_frozen_is_read_or_named_as_missing(graph):
    found = stage.stage_frozen("gradient", ["digits_mlp", "digits_few_shot"])
    folder = paths.interpretation_dir("gradient")
    assert list(found) == ["digits_mlp", "digits_few_shot"]
    for name, frozen in found.items():
        assert frozen.arrays == (folder / f"{name}.safetensors").read_bytes()
        assert frozen.text == (folder / f"{name}.json").read_bytes()
    for kind in ("safetensors", "json"):
        (folder / f"digits_mlp.{kind}").unlink()
        with pytest.raises(UserError, match="interpretation"):
            stage.stage_frozen("gradient", ["digits_mlp"])


def test_an_answer_that_is_no_score_stops_the_stage(graph, monkeypatch):
    void = Answered("void", None, 0.0, 0.0, "it changed the target")
    monkeypatch.setattr(stage.InProcess, "ask", lambda *of: void)
    with pytest.raises(RuntimeError, match=r"attention on active_learning.digits_mlp: it changed the target"):
        stage.run(settings().execution, "attention")


def test_one_method_is_named(monkeypatch, graph):
    asked = []
    monkeypatch.setattr(stage, "run", lambda config, method: asked.append((config.n_seeds, method)))
    for words in ([], ["pca", "sae"]):
        monkeypatch.setattr("sys.argv", ["scoring", *words])
        with pytest.raises(UserError, match="one method is needed"):
            stage.main()
    monkeypatch.setattr("sys.argv", ["scoring", "pca"])
    stage.main()
    assert asked == [(3, "pca")]
