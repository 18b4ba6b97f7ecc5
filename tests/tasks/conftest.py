"""Small targets for truth checks: the classifiers trained (a second), the in-context learner untrained, sharpened."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from stages.base.params import load
from stages.contracts.target import Corpus, Target
from stages.targets.storage import freeze, save_target
from stages.targets.zoo import ZOO
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import Made, make
from stages.tasks.stage import Config
from stages.tasks.storage import Split

SPLIT: Split = "train"
SIZES = {
    "ablation_effect": 3,
    "active_learning": 6,
    "backdoor_detection": 12,
    "elicited_ability": 16,
    "sandbag_or_unable": 16,
    "circuit_membership": 3,
    "noise_flip": 6,
    "responsible_component": 3,
    "trigger_recovery": 12,
}
PARAMS = load("tasks", Config, Path(__file__).resolve().parents[2] / "params" / "tasks.yaml").families
CASES = [(name, target) for name in FAMILIES.names() for target in PARAMS[name].targets]
torch.set_num_threads(1)


@cache
def small_target(name: str) -> Target:
    definition, generator = ZOO.find(name)(), torch.Generator().manual_seed(3)
    data = definition.data(3)
    model = definition.build(generator)
    if name in ("digits_mlp", "cued_digits"):
        definition.fit(model, data, 600, generator, lambda metrics, step: None)
    elif name == "small_cnn":
        definition.fit(model, data, 150, generator, lambda metrics, step: None)
    elif name == "digits_few_shot":
        # Untrained outputs hardly vary; with larger final weights confidence spans (0.25, 1).
        model.unembed.weight.data.mul_(12.0)
    else:
        model.unembed.W_U.data.mul_(4.0)
    train = definition.sample(data, "train", 300, generator)
    validation = definition.sample(data, "validation", 80, generator)
    return freeze(name, model, {"train": train, "validation": validation, "tasks": Corpus(*data["tasks"])})


@cache
def taught_facts() -> Target:
    """facts_lm after 150 steps (15 CPU seconds): it knows most facts, also when they are asked in unseen words."""
    definition, generator = ZOO.find("facts_lm")(), torch.Generator().manual_seed(3)
    data, model = definition.data(3), definition.build(generator)
    definition.fit(model, data, 150, generator, lambda metrics, step: None)
    corpora = {
        split: definition.sample(data, split, n, generator) for split, n in (("train", 2000), ("validation", 300))
    }
    return freeze("facts_lm", model, {**corpora, "tasks": Corpus(*data["tasks"])})


@cache
def made_small(name: str, target: str, seed: int = 0) -> Made:
    return make(family(name), small_target(target), SPLIT, SIZES.get(name, 8), seed, "test", b"key")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working copy with two trained targets, and the real params of the families that run on them."""
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    monkeypatch.setenv("LENSMITH_TRACKING", "off")
    for name in ("digits_mlp", "digits_few_shot"):
        save_target(small_target(name), tmp_path / "data" / "targets" / name)
    real = Path(__file__).resolve().parents[2] / "params"
    shutil.copytree(real, tmp_path / "params")
    params = yaml.safe_load((real / "tasks.yaml").read_text(encoding="utf-8"))
    for settings in params["families"].values():
        there = [name for name in settings["targets"] if name in ("digits_mlp", "digits_few_shot")]
        settings["targets"] = there or settings["targets"]
    (tmp_path / "params" / "tasks.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    return tmp_path
