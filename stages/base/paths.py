"""Where everything lies on disk. No other module joins path strings.

The root is the working copy: the directory with dvc.yaml, found from the current directory upwards
(DVC runs every command there). ``LENSMITH_ROOT`` overrides it.
"""

import os
from pathlib import Path

from stages.errors import UserError

__all__ = [
    "activations_dir",
    "arms_store",
    "campaign_dir",
    "circuits_dir",
    "dictionaries_dir",
    "downstream_file",
    "execution_dir",
    "interpretation_dir",
    "metrics_file",
    "mlruns_dir",
    "models_dir",
    "params_file",
    "prices_file",
    "report_file",
    "require",
    "result_file",
    "root",
    "secret_file",
    "sweep_dir",
    "target_dir",
    "task_dir",
    "work_dir",
]


def root() -> Path:
    """Top of the working copy.

    Raises:
        UserError: no dvc.yaml in the current directory or above it.
    """
    given = os.environ.get("LENSMITH_ROOT")
    if given:
        return Path(given).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "stages").is_dir():
            return folder
    raise UserError(f"{here} is not inside a Lensmith working copy: change into the folder that holds dvc.yaml")


def models_dir() -> Path:
    """Models read from files, dequantised, by digest: outside DVC's cache, since the file has them already."""
    return root() / ".lensmith" / "models"


def attached_dir(target: str) -> Path:
    """Dictionaries from elsewhere that were attached to a target; outside the graph, which would remove them."""
    return work_dir() / "dictionaries" / target


def params_file(stage: str) -> Path:
    return root() / "params" / f"{stage}.yaml"


def prices_file() -> Path:
    """Prices of language models; no stage reads them."""
    return root() / "params" / "llm" / "prices.yaml"


def target_dir(target: str) -> Path:
    """weights.safetensors, target.json, data.safetensors, metrics.json of one target."""
    return root() / "data" / "targets" / target


def activations_dir(target: str) -> Path:
    """``<hook point>/shard-NNN.safetensors`` and ``manifest.json``, written last."""
    return root() / "data" / "activations" / target


def circuits_dir() -> Path:
    """cards.json and drawings.json: known circuits, and found ones for the report to draw."""
    return root() / "data" / "circuits"


def dictionaries_dir(target: str) -> Path:
    """``<hook point>/<architecture>/`` in SAELens format, and ``metrics.json``."""
    return root() / "data" / "dictionaries" / target


def sweep_dir(target: str) -> Path:
    """``<hook point>/<architecture>-<sparsity>-<latents>-s<seed>/`` in SAELens format, and ``metrics.json``."""
    return root() / "data" / "sweep" / target


def secret_file() -> Path:
    """What tasks are drawn with; see ``stages.tasks.secret``."""
    return root() / "data" / "secret" / "key"


def task_dir(family: str) -> Path:
    """``<target>.public.safetensors``, ``<target>.truth.safetensors`` and ``family.json`` of one family."""
    return root() / "data" / "tasks" / family


def interpretation_dir(method: str) -> Path:
    """``<target>.safetensors`` and ``<target>.json``: I(M) of one method on every target."""
    return root() / "data" / "interpretation" / method


def downstream_file(target: str) -> Path:
    """Reward of the method built on each dictionary of a target's sweep."""
    return root() / "data" / "downstream" / f"{target}.json"


def execution_dir(arm: str) -> Path:
    """Predictions and charged FLOPs: ``baseline`` for the baseline arm, else the method's name."""
    return root() / "data" / "execution" / arm


def campaign_dir(name: str) -> Path:
    """``events.jsonl`` (the truth), ``theta.json`` and method specs of one campaign."""
    return root() / "data" / "research" / name


def metrics_file(name: str) -> Path:
    return root() / "metrics" / f"{name}.json"


def result_file(name: str) -> Path:
    """The copy of a small metric file that git keeps."""
    return root() / "results" / f"{name}.json"


def report_file() -> Path:
    return root() / "report" / "index.html"


def mlruns_dir() -> Path:
    return root() / "mlruns"


def work_dir() -> Path:
    """Work in progress that is neither an output nor worth keeping: unfinished campaigns, stage times."""
    return root() / ".lensmith"


def arms_store() -> Path:
    """Arms of every (task, seed, answer) that was computed here; see stages/execution/store.py."""
    return work_dir() / "arms"


def require(path: Path, made_by: str) -> Path:
    """``path`` if it exists.

    Raises:
        UserError: it does not; names the stage that makes it.
    """
    if not path.exists():
        raise UserError(f"{path} is missing: stage {made_by!r} makes it; run `lensmith run` (or `dvc checkout`)")
    return path
