"""The tables of docs/tasks.md, written between its markers, and results/headroom.json, which ``lensmith tasks list``
shows: what an audit of every family found."""

import sys
from collections.abc import Sequence
from pathlib import Path

from stages.base import paths
from stages.base.files import save_json
from stages.base.params import load
from stages.tasks.families import FAMILIES, family
from stages.tasks.stage import Config, settings_of
from stages.tools.audit import AuditRow, audit
from stages.tools.circuit_tables import replace_between, table
from stages.tools.headroom import Known, known, slim

__all__ = ["families_table", "headroom_table", "ladder_table", "update"]

SPLITS = ("train", "validation", "test")


def update(rows: Sequence[AuditRow], page: Path | None = None) -> list[Known]:
    """Put rows in the place of those of their family and target, and write everything anew.

    Rows of what is no longer in params/tasks.yaml are left out.

    Raises:
        UserError: the page has no markers.
    """
    page = page or paths.root() / "docs" / "tasks.md"
    config = load("tasks", Config)
    found = {(row["family"], row["target"]): row for row in [*known(), *map(slim, rows)]}
    order = sorted(FAMILIES.names(), key=lambda name: (SPLITS.index(settings_of(config, name).split), name))
    kept = [
        found[name, target] for name in order for target in settings_of(config, name).targets if (name, target) in found
    ]
    save_json(paths.result_file("headroom"), kept)
    text = page.read_text(encoding="utf-8")
    for name, made in (
        ("families", families_table(order, config)),
        ("ladders", ladder_table(kept)),
        ("headroom", headroom_table(kept)),
    ):
        text = replace_between(text, name, made)
    page.write_text(text, encoding="utf-8")
    return kept


def families_table(names: Sequence[str], config: Config) -> str:
    """Markdown: what is asked by whom about what."""
    lines = []
    for name in names:
        made, settings = family(name), settings_of(config, name)
        targets = ", ".join(settings.targets)
        lines.append([f"[{name}](#{name})", settings.split, made.title, made.query_kind, targets, str(made.n_efforts)])
    return table(["family", "split", "question", "query", "targets", "ladder steps"], lines)


def ladder_table(rows: Sequence[Known]) -> str:
    """Markdown: the score of every step and what the steps cost."""
    n_steps = max(len(row["headroom"]["ladder"]) for row in rows)
    lines = []
    for row in rows:
        steps = row["headroom"]["ladder"]
        scores = [f"{step['score']:.2f}" for step in steps]
        price = f"{_flops(steps[0]['flops_per_instance'])} to {_flops(steps[-1]['flops_per_instance'])}"
        blank = [""] * (n_steps - len(steps))
        truth = _flops(row["truth_flops_per_instance"])
        lines.append([row["family"], row["target"], *scores, *blank, price, truth])
    heads = [f"step {step}" for step in range(n_steps)]
    return table(["family", "target", *heads, "FLOPs first to last", "truth FLOPs"], lines)


def headroom_table(rows: Sequence[Known]) -> str:
    """Markdown: what budgets explain, what is left, and who takes it."""
    lines = []
    for row in rows:
        found = row["headroom"]
        best = f"{found['best_method']} {found['best_reward']:+.3f}" if found["best_method"] else "none"
        lines.append(
            [
                row["family"],
                row["target"],
                f"{found['tight']:.2f} ± {found['tight_se']:.2f}",
                f"{found['medium']:.2f}",
                f"{found['ample']:.2f}",
                f"{found['oracle_gain']:.2f}",
                f"{found['oracle_reward']:.2f}",
                f"{found['cheap_rule']}: {found['cheap_score']:.2f}",
                best,
                "" if found["visible"] is None else f"{found['visible']:.3f}",
                "" if found["retest"] is None else f"{found['retest']:.2f}",
                "; ".join(row["fails"]) or "ok",
            ]
        )
    heads = ["family", "target", "tight", "medium", "ample", "oracle gains", "oracle earns", "best cheap rule"]
    return table([*heads, "best method", "visible", "truth again", "verdict"], lines)


def _flops(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def main() -> None:
    """``python -m stages tools.task_tables`` audits all families (minutes); with names, those alone."""
    rows = update(audit(sys.argv[1:] or None, progress=lambda said: print(said, flush=True)))
    print(f"{len(rows)} tasks, {sum(bool(row['fails']) for row in rows)} with something that fails", flush=True)
