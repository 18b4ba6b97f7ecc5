"""Small targets for truth checks: the classifiers trained (a second), the in-context learner untrained, sharpened."""

import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from stages.base.params import load
from stages.contracts.target import Corpus, Target
from stages.contracts.task import Instances
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import freeze, save_target
from stages.targets.zoo import ZOO
from stages.tasks.families import FAMILIES, family
from stages.tasks.generation import Made, make
from stages.tasks.stage import Config
from stages.tasks.storage import Split
from stages.tasks.word_runs import BlockRuns

SPLIT: Split = "train"
SIZES = {
    "ablation_effect": 3,
    "active_learning": 6,
    "backdoor_detection": 12,
    "early_exit": 32,
    "elicited_ability": 16,
    "sandbag_or_unable": 16,
    "circuit_membership": 3,
    "noise_flip": 6,
    "responsible_component": 3,
    "trigger_recovery": 12,
}
PARAMS = load("tasks", Config, Path(__file__).resolve().parents[2] / "params" / "tasks.yaml").families
# An untrained model of words has nothing to lock and nothing to lose: test_untaught_words.py and test_word_runs.py.
TAUGHT_ALONE = {("sandbag_or_unable", "facts_lm"), ("relearning_speed", "facts_lm")}
CASES = [(name, of) for name in FAMILIES.names() for of in PARAMS[name].targets if (name, of) not in TAUGHT_ALONE]
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
    """facts_lm whose last block alone was trained (three CPU seconds): it knows its train prompts, and no others. So
    its ``tasks`` prompts are those."""
    definition, rng = ZOO.find("facts_lm")(), torch.Generator().manual_seed(3)
    data, model = definition.data(3), definition.build(rng)
    train, validation = (definition.sample(data, split, n, rng) for split, n in (("train", 700), ("validation", 80)))
    blank = freeze("facts_lm", model, {"train": train, "validation": validation, "tasks": train})
    runs = BlockRuns(blank, train.inputs, torch.tensor([3e-3]))
    for _ in range(500):
        index = torch.randint(len(train.labels), (1, 48), generator=rng)
        runs.step(index, train.labels[index])
    model.load_state_dict({name: value[0] for name, value in runs.full().items()}, strict=False)
    return freeze("facts_lm", model, {"train": train, "validation": validation, "tasks": train})


@cache
def made_small(name: str, target: str, seed: int = 0) -> Made:
    return make(family(name), small_target(target), SPLIT, SIZES.get(name, 8), seed, "test", b"key")


def climbs(name: str, target: Target, public: Instances) -> bool:
    """Whether every rung of the ladder costs more than the one below and tells what it tells, and more."""
    last, lower = 0, torch.zeros(0)
    for effort in range(family(name).n_efforts):
        ledger = Ledger()
        access = MeteredAccess(target, ledger, variants=public.variants)
        features = family(name).behavioural(access, public, effort, torch.Generator().manual_seed(11))
        columns = [
            bool(torch.isclose(features, one.unsqueeze(-1), atol=1e-4).all((0, 1)).any()) for one in lower.unbind(-1)
        ]
        if ledger.flops <= last or not bool(features.isfinite().all()) or not all(columns):
            return False
        last, lower = ledger.flops, features
    return True


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
