"""Stage ``report``: metrics/*.json, data/dictionaries/*/gallery.json, data/circuits/drawings.json -> report/index.html.

Byte-stable: the same result files give the same page, so it carries no date and no random identifiers. A result file
that is not there leaves its section empty, with the command that makes it. ``figure`` writes docs/leaderboard.svg.
"""

import sys
from pathlib import Path

from pydantic import Field

from stages import tracking
from stages.base import paths
from stages.base.params import Params, load
from stages.errors import UserError
from stages.report.composing import render
from stages.report.figure import leaderboard_svg
from stages.report.results import load_results
from stages.report.wording import summary

__all__ = ["Config", "figure", "main", "project", "refresh", "run"]


class Config(Params):
    n_gallery: int = Field(ge=0, le=2000)
    """Latents shown per dictionary, most class-selective first; each adds about 1 kB."""
    max_failures: int = Field(ge=1, le=10_000)
    """Failures listed one by one; the rest are counted."""


def run(config: Config) -> int:
    """Write report/index.html; returns its size in bytes.

    Raises:
        UserError: not one result file is there, or one of them is damaged.
    """
    page = render(load_results(), n_gallery=config.n_gallery, max_failures=config.max_failures).encode()
    path = paths.report_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)
    return len(page)


def refresh() -> Path | None:
    """Make the page anew where there is one: a command wrote a result that it shows. Returns its place."""
    path = paths.report_file()
    if not path.is_file():
        return None
    run(load("report", Config))
    return path


def figure() -> None:
    """Write docs/leaderboard.svg from metrics/leaderboard.json.

    Raises:
        UserError: there is no leaderboard.
    """
    results = load_results()
    rows = results.leaderboard
    if not rows:
        raise UserError(f"{paths.metrics_file('leaderboard')} is missing or empty: make it with `lensmith run`")
    path = paths.root() / "docs" / "leaderboard.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(leaderboard_svg(rows, results.statements), encoding="utf-8")
    print(f"figure: {path}")


def project() -> None:
    """The page and the leaderboard's figure as artifacts of an MLflow run; one of these is current."""
    if not tracking.enabled():
        return
    tracking.supersede(**{"lensmith.kind": "report"})
    with tracking.stage_run("report") as log:
        log.tag({"lensmith.kind": "report", tracking.CURRENT: "yes"})
        log.artifact(paths.report_file())
        results = load_results()
        rows = results.leaderboard
        if rows:
            log.text("leaderboard.svg", leaderboard_svg(rows, results.statements))
            log.describe(" ".join(summary(rows, results.statements)))


def main() -> None:
    if sys.argv[1:] == ["figure"]:
        figure()
    elif sys.argv[1:]:
        raise UserError(f"{' '.join(sys.argv[1:])!r} is unknown: give nothing, or `figure`")
    else:
        size = run(load("report", Config))
        print(f"report: {paths.report_file()} ({size / 1e6:.2f} MB)")
        project()
