"""The table of docs/targets.md: what the language models of the zoo learned, by seed, written between its markers."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.base import paths
from stages.base.params import load
from stages.targets.stage import Config, train
from stages.targets.zoo import ZOO, trained
from stages.tools.circuit_tables import replace_between, table

__all__ = ["skill_table", "write_tables"]

SEEDS = (0, 1, 2)
N_CORPUS = 64


def write_tables(page: Path | None = None, seeds: Sequence[int] = SEEDS) -> None:
    """Train every target that has skills once per seed (minutes) and write what it learned into the page.

    Raises:
        UserError: the page has no markers.
    """
    page = page or paths.root() / "docs" / "targets.md"
    settings = load("targets", Config).targets
    found: dict[str, dict[int, dict[str, float]]] = {}
    for name in trained():
        if name in settings and hasattr(ZOO.find(name), "skills"):
            for seed in seeds:
                start = time.process_time()
                chosen = settings[name].model_copy(update={"seed": seed})
                metrics = train(name, chosen, N_CORPUS, lambda metrics, step: None).metrics
                seconds = time.process_time() - start
                print(f"tables: {name}, seed {seed}, {seconds:.0f} CPU seconds", flush=True)
                found.setdefault(name, {})[seed] = metrics
    text = replace_between(page.read_text(encoding="utf-8"), "skills", skill_table(found))
    page.write_text(text, encoding="utf-8")


def skill_table(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Markdown: a line for each metric of each target, a column for each seed.

    Args:
        found: {target: {seed: {metric: value}}}.
    """
    seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
    head = ["target", "held-out number", "at least", *(f"seed {seed}" for seed in seeds)]
    rows = []
    for name, by_seed in found.items():
        minimum = ZOO.find(name).minimum  # type: ignore[attr-defined]
        for metric in next(iter(by_seed.values())):
            least = f"{minimum[metric]:g}" if metric in minimum else ""
            values = [f"{by_seed[seed][metric]:.4g}" if seed in by_seed else "" for seed in seeds]
            rows.append([name, metric.replace("_", " "), least, *values])
    return table(head, rows)


def main() -> None:
    """``python -m stages tools.target_tables``."""
    write_tables()
