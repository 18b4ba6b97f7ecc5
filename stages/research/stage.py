"""Stage ``research``: one campaign over the search space, then the sealed test split, once.

Writes data/research/campaign/ (events.jsonl, theta.json), metrics/campaign.json and metrics/test.json. DVC deletes a
stage's outputs before it runs, so a campaign works in .lensmith/campaigns/<fingerprint>/ and is copied out when it is
complete: killed and run again with nothing changed, it continues; complete, it is a new one.
"""

import hashlib
import json
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from stages import paths
from stages.errors import UserError
from stages.execution.stage import Config as ExecutionConfig
from stages.interpretation.stage import Config as InterpretationConfig
from stages.params import Params, load
from stages.research.campaign import Campaign, Progress
from stages.research.opening import best_found, open_test
from stages.research.projection import Projection
from stages.research.researchers import make_researcher
from stages.research.trial import Settings
from stages.reward.stage import Config as RewardConfig
from stages.reward.stage import write_rows
from stages.targets import load_target
from stages.tasks import list_tasks

__all__ = ["Config", "campaign", "jobs", "main", "run", "settings"]


class Config(Params):
    researcher: Literal["search", "random"]
    budget: int = Field(ge=1, le=10_000)
    """Iterations."""
    seed: int = Field(ge=0)


def jobs() -> int:
    """Worker processes: LENSMITH_JOBS, else one per core."""
    return max(1, int(os.environ.get("LENSMITH_JOBS") or os.cpu_count() or 1))


def settings() -> tuple[Settings, tuple[str, ...]]:
    """The stages' configurations, and the methods on the leaderboard."""
    reward = load("reward", RewardConfig)
    return Settings(
        load("interpretation", InterpretationConfig), load("execution", ExecutionConfig), reward
    ), reward.methods


def fingerprint(config: Config, chosen: Settings) -> str:
    """What a campaign depends on: its settings, the targets, and the baseline arm it is measured against."""
    sha = hashlib.sha256()
    for part in (config, chosen.interpretation, chosen.execution, chosen.reward):
        sha.update(part.model_dump_json().encode())
    for name in chosen.interpretation.targets:
        sha.update(load_target(name).digest.encode())
    for file in sorted(paths.require(paths.execution_dir("baseline"), "baseline").glob("*.json")):
        sha.update(file.read_bytes())
    for file in sorted((Path(__file__).parent.parent).rglob("*.py")):
        sha.update(file.read_bytes())  # half a campaign by old code and half by new would be no campaign
    return sha.hexdigest()


def _conduct(config: Config, folder: Path, progress: Progress, key: str) -> tuple[Campaign, Projection]:
    chosen, _ = settings()
    splits = {split: list_tasks(split) for split in ("train", "validation")}
    researcher = make_researcher(config.researcher, config.seed)
    one = Campaign(folder, researcher, splits, chosen, config.budget, progress, jobs())
    started = one.journal.first("started")
    if started is not None and one.journal.first("fingerprint", key=key) is None:
        raise UserError(
            f"campaign {folder.name} was started with other settings, targets or code:"
            f" choose another --name, or delete {folder}"
        )
    if started is None:
        one.journal.append("fingerprint", key=key)
    resumed = len(one.journal.of("result"))
    if resumed:
        progress(f"continuing after iteration {resumed} of {config.budget}")
    projection = Projection(key, config.model_dump())

    def project(result: dict[str, Any]) -> None:
        both = [*one.judged(result["iteration"], "train"), *one.judged(result["iteration"], "validation")]
        projection.iteration(result, both)

    one.run(project)
    return one, projection


def summary(one: Campaign, config: Config, name: str) -> dict[str, Any]:
    """metrics/campaign.json."""
    iterations, best = [], 0.0
    for result in one.journal.of("result"):
        best = max(best, result["feedback"]) if result["accepted"] else best
        iterations.append(
            {
                key: result[key]
                for key in ("iteration", "name", "spec", "status", "reason", "accepted", "interpret_bytes")
            }
            | {
                "train_reward": result["train"]["reward_mean"],
                "validation_reward": result["feedback"],
                "validation_low": result["validation"]["reward_low"],
                "validation_high": result["validation"]["reward_high"],
                "flop_ratio": result["validation"]["flop_ratio"],
                "best_so_far": best,
            }
        )
    star, leaders = best_found(one), _leaderboard()
    found = None
    if star is not None:
        found = {"name": star["name"], "spec": star["spec"], "iteration": star["iteration"]}
        found |= {"validation_reward": star["feedback"], "accepted": star["accepted"]}
    return {
        "campaign": name,
        "researcher": config.researcher,
        "seed": config.seed,
        "iterations": iterations,
        "incumbent": found,
        "best_built_in": {k: leaders[0][k] for k in ("method", "reward_mean")} if leaders else None,
        "openings": [{"campaign": name, "methods": e["methods"]} for e in one.journal.of("test_opened")],
    }


def _leaderboard() -> list[dict[str, Any]]:
    file = paths.metrics_file("leaderboard")
    rows: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return rows


def campaign(researcher: str, budget: int, seed: int, name: str, progress: Progress = print) -> dict[str, Any]:
    """A campaign of one's own, in data/research/<name>/; it never opens the test split."""
    config = Config(researcher=make_researcher(researcher, seed).name, budget=budget, seed=seed)
    chosen, _ = settings()
    key = fingerprint(config.model_copy(update={"budget": 1}), chosen)  # a larger budget continues the same campaign
    one, _ = _conduct(config, paths.campaign_dir(name), progress, key)
    return summary(one, config, name)


def run(config: Config, progress: Progress = print) -> dict[str, Any]:
    """The campaign of the graph, and the sealed test split."""
    chosen, methods = settings()
    key = fingerprint(config, chosen)
    folder = paths.work_dir() / "campaigns" / key[:16]
    one, projection = _conduct(config, folder, progress, key)
    test = open_test(one, methods, list_tasks("test"), chosen)
    projection.test(test["rows"])
    out = paths.campaign_dir("campaign")
    out.mkdir(parents=True, exist_ok=True)
    for file in ("events.jsonl", "theta.json"):
        shutil.copyfile(folder / file, out / file)
    result = summary(one, config, "campaign")
    write_rows(result, "campaign")
    write_rows(test["rows"], "test")
    write_rows(test["per_task"], "test_per_task")
    shutil.rmtree(folder)
    return result


def main() -> None:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    # joblib replaces a worker whose memory has grown and says so each time; nothing is lost by it.
    warnings.filterwarnings("ignore", message="A worker stopped while some jobs")
    run(load("research", Config))
