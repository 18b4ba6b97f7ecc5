"""A whole graph in a temporary folder, small enough for tests: real stages, real targets, few instances."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from stages.base import paths

ROOT = Path(__file__).resolve().parents[1]
FAMILIES = {
    "active_learning": {"split": "train", "targets": ["digits_mlp"]},
    "few_shot_shapley": {"split": "validation", "targets": ["digits_few_shot"]},
    "prompt_optimum": {"split": "test", "targets": ["digits_few_shot"]},
}
METHODS = ["attention", "gradient", "nothing", "random_features"]
N_INSTANCES = 50


@contextmanager
def rooted(root: Path) -> Iterator[None]:
    """Everything that asks ``stages.base.paths`` works under ``root``, untracked and in one process."""
    wanted = {"LENSMITH_ROOT": str(root), "LENSMITH_TRACKING": "off", "LENSMITH_JOBS": "1"}
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def write_params(root: Path) -> None:
    shutil.copytree(ROOT / "params", root / "params")

    def change(stage: str, **values: object) -> None:
        file = root / "params" / f"{stage}.yaml"
        file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text(encoding="utf-8")) | values), encoding="utf-8")

    (root / "params" / "profile.yaml").write_text("{}\n", encoding="utf-8")  # the sizes below, whatever the profile
    change("tasks", n_instances=N_INSTANCES, families=FAMILIES)
    change("interpretation", targets=["digits_few_shot", "digits_mlp"])
    change("reward", methods=METHODS, draws=200)
    change("research", budget=3)


def build(root: Path, targets: Path | None = None) -> None:
    """Targets, tasks, I(M), all arms and metrics under ``root``; ``targets``: the toy whose targets are taken."""
    from stages.base.params import load
    from stages.execution.settings import executor
    from stages.execution.stage import run as execute
    from stages.interpretation.settings import Config as InterpretationConfig
    from stages.interpretation.stage import run as interpret
    from stages.reward.settings import Config as RewardConfig
    from stages.reward.stage import run as reward
    from stages.scoring.stage import run as score
    from stages.targets.storage import save_target
    from stages.tasks.stage import Config as TasksConfig
    from stages.tasks.stage import run as make_tasks
    from tests.conftest import make_target

    write_params(root)
    (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")  # what makes a folder a working copy
    # One secret for all runs of the tests: whether a number is above another must not hang on a draw.
    key = root / "data" / "secret" / "key"
    key.parent.mkdir(parents=True)
    key.write_text(hashlib.sha256(b"toy").hexdigest() + "\n", encoding="ascii")
    with rooted(root):
        # Half trained: its attention already says something about its answers, in a tenth of the time.
        for name, steps in (("digits_mlp", 400), ("digits_few_shot", 900)):
            if targets is None:
                save_target(make_target(name, steps), paths.target_dir(name))
            else:
                shutil.copytree(targets / "data" / "targets" / name, paths.target_dir(name))
            (paths.dictionaries_dir(name)).mkdir(parents=True)
        for family in FAMILIES:
            make_tasks(load("tasks", TasksConfig), family)
        for method in METHODS:
            interpret(load("interpretation", InterpretationConfig), method)
        config = executor()
        execute(config)
        for method in METHODS:
            score(config, method)
        reward(load("reward", RewardConfig))
