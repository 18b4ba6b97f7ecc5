"""The tables of docs/targets.md, written between its markers: what the language models of the zoo learned, by seed; and
which methods answer which questions about which targets."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from stages.base import paths
from stages.base.params import load
from stages.contracts.reward_rows import PER_TASK, TEST_PER_TASK, TaskRow
from stages.targets.stage import Config, train
from stages.targets.zoo import ZOO, trained
from stages.tasks.families import family
from stages.tools.circuit_tables import replace_between, table

__all__ = ["answer_table", "skill_table", "write_answers", "write_tables"]

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


def write_answers(page: Path | None = None) -> None:
    """Write what every method answered in the last run, test split included once it is open, into the page.

    Raises:
        UserError: nothing has been run, or the page has no markers.
    """
    page = page or paths.root() / "docs" / "targets.md"
    rows = [*PER_TASK.load()]
    methods = {row.method for row in rows}  # the sealed test has a campaign's and the truth itself as well
    rows += [row for row in (TEST_PER_TASK.load() if TEST_PER_TASK.path().is_file() else ()) if row.method in methods]
    text = replace_between(page.read_text(encoding="utf-8"), "answers", answer_table(rows))
    page.write_text(text, encoding="utf-8")


def answer_table(rows: Sequence[TaskRow]) -> str:
    """Markdown: a line for each method, a column for each target: kinds of question that it answered in at least one
    family; struck through those it declined in all; and what failed."""
    kinds = {name: family(name).query_kind for name in {row.family for row in rows}}
    targets, methods = sorted({row.target for row in rows}), sorted({row.method for row in rows})
    lines = []
    for method in methods:
        cells = []
        for target in targets:
            mine = [row for row in rows if row.method == method and row.target == target]
            answered = {kinds[row.family] for row in mine if row.status == "ok"}
            failed = sorted({f"{row.family} fails" for row in mine if row.status == "failed"})
            declined = {kinds[row.family] for row in mine} - answered
            cells.append(", ".join([*sorted(answered), *(f"~~{kind}~~" for kind in sorted(declined)), *failed]))
        lines.append([f"`{method}`", *cells])
    return table(["method", *(f"`{target}`" for target in targets)], lines)


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
    """``python -m stages tools.target_tables`` for both, ``... answers`` for the second alone."""
    if sys.argv[1:] != ["answers"]:
        write_tables()
    write_answers()
