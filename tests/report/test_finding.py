"""The matrix of methods and tasks, what can be saved, where numbers come from, and finding one's way on the page."""

import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.report import provenance
from stages.report.composing import render
from stages.report.labels import WIDTHS, placed
from stages.report.matrix import matrix
from stages.report.proxies import telling
from stages.report.results import load_results
from stages.report.stage import Config, run
from tests.report.conftest import per_task, proxies
from tests.report.test_browser import opened, pytestmark, report

browser = pytestmark
__all__ = ["report"]


def test_the_matrix_has_every_method_on_every_task_and_says_the_finding() -> None:
    rows = [row for row in per_task(np.random.default_rng(0)) if row.method != "oracle"]
    found = matrix(rows, {"noise_flip": "represent"})
    assert found is not None and matrix([], {}) is None
    assert [column.split for column in found.columns] == ["validation"] * 4 + ["train"] * 3
    assert {column.kind for column in found.columns} >= {"represent", "early exit"}
    by_key = {(row.method, row.family, row.target): row for row in rows}
    assert len(found.rows) == len({row.method for row in rows})
    for shown in found.rows:
        for column, cell in zip(found.columns, shown.cells, strict=True):
            row = by_key[shown.method, column.family.replace(" ", "_"), column.target]
            assert float(cell.key) == pytest.approx(row.reward_mean, abs=1e-6)
            coloured = row.verdict != "not distinguishable" and row.status == "ok"
            assert (cell.heat > 0) == coloured and (cell.verdict in {"better", "worse"}) == coloured
    assert found.n_better == sum(row.verdict == "better" for row in rows)
    means = [row.mean_key for row in found.rows]
    assert means == sorted(means, reverse=True)
    # Within a split, tasks on which some method helps most come first: not the alphabet.
    best = [max(row.reward_mean for row in rows if row.family == c.family.replace(" ", "_") and row.target == c.target)
            for c in found.columns]  # fmt: skip
    assert best[:4] == sorted(best[:4], reverse=True) and best[4:] == sorted(best[4:], reverse=True)


def test_a_method_without_a_validation_task_has_no_mean_and_comes_last() -> None:
    rows = per_task(np.random.default_rng(0))
    alone = [row.model_copy(update={"method": "late", "split": "test", "reward_mean": 9.0}) for row in rows[:1]]
    found = matrix([*rows, *alone], {})
    assert found is not None and found.rows[-1].method == "late" and found.rows[-1].mean == "\u2013"


def test_the_matrix_comes_before_everything_else(results_root: Path) -> None:
    page = render(load_results())
    ids = [part.partition('"')[0] for part in page.split('<section id="')[1:]]
    assert ids[0] == "finding" and ids[1] == "leaderboard"
    assert page.index('data-table="matrix"') < page.index('class="facts"')


def test_kinds_of_questions_are_read_where_the_tasks_are(results_root: Path) -> None:
    folder = results_root / "data" / "tasks" / "noise_flip"
    folder.mkdir(parents=True)
    (folder / "family.json").write_text('{"query_kind": "Represent"}')
    assert load_results().kinds == {"noise_flip": "represent"}
    page = render(load_results())
    assert "<option>represent</option>" in page and 'data-kind="represent"' in page
    (folder / "family.json").write_text("{")
    with pytest.raises(ValueError, match=r"family\.json is not JSON .*dvc repro -f tasks@noise_flip"):
        load_results()


def test_every_section_says_the_file_and_the_command_that_made_its_numbers(results_root: Path) -> None:
    page = render(load_results())
    for name in ("finding", "leaderboard", "tasks", "pareto", "campaign", "test", "fresh", "sensitivity", "controls",
                 "dictionaries", "proxies", "latents", "circuits", "failures"):  # fmt: skip
        section = page.partition(f'<section id="{name}">')[2].partition("</section>")[0]
        assert 'class="from"' in section and ("<code>dvc repro " in section or "<code>lensmith " in section), name
    for name, source in provenance.sources().items():
        assert not Path(source.file).is_absolute() and source.command.startswith(("dvc repro ", "lensmith ")), name
    for table in page.split("<table")[1:]:
        head = table.partition(">")[0]
        if "data-latents" not in head and "data-" in head:
            assert "data-file=" in head and "data-command=" in head, head


def test_headings_are_words_that_people_search_for(results_root: Path) -> None:
    page = render(load_results())
    heads = [part.partition("</h2>")[0].lower() for part in page.split("<h2>")[1:]]
    for word in ("leaderboard", "generalisation gap", "sensitivity", "sealed test", "controls", "dictionaries",
                 "latents", "circuits", "failures", "proxies"):  # fmt: skip
        assert any(word in head for head in heads), word


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", *identity, *words], cwd=root, check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_the_commit_is_the_one_that_made_the_numbers(tmp_path: Path) -> None:
    assert provenance.commit(tmp_path) == "not under git"
    git(tmp_path, "init", "-q")
    assert provenance.commit(tmp_path) == "not committed yet"
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "x.yaml").write_text("a: 1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    first = provenance.commit(tmp_path)
    assert first.startswith("commit ") and "changes" not in first
    (tmp_path / "README.md").write_text("x")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "two")
    assert provenance.commit(tmp_path) == first, "a commit that touches no code changes no byte of the page"
    (tmp_path / "params" / "x.yaml").write_text("a: 2\n")
    assert provenance.commit(tmp_path) == f"{first} with changes on top of it"


def test_without_the_program_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.commit(tmp_path) == "not under git"


def test_the_page_names_versions_machine_and_results_and_no_date(results_root: Path) -> None:
    page = render(load_results())
    line = page.partition('<p class="provenance">')[2].partition("</p>")[0]
    assert "Python 3." in line and "torch " in line and "sha256 " in line and "Linux" in line
    before = provenance._digest()
    path = results_root / "metrics" / "controls.json"
    path.write_text(path.read_text() + "\n")
    assert provenance._digest() != before


@pytest.mark.parametrize("seed", range(6))
def test_no_label_hides_another_at_any_width(seed: int) -> None:
    rng = np.random.default_rng(seed)
    # As crowded as a leaderboard whose methods all cost and gain about the same.
    points = [(float(x), float(y)) for x, y in zip(rng.normal(0.3, 0.03, 12), rng.normal(280, 8, 12), strict=True)]
    found = placed(points, 340, 9.5)
    for width in WIDTHS:
        at = [(x * width + dx, y + dy) for (x, y), (dx, dy) in zip(points, found, strict=True)]
        assert min(math.dist(a, b) for i, a in enumerate(at) for b in at[:i]) >= 19 - 1e-6
        assert all(9 <= y <= 331.5 for _, y in at)
    assert placed([(0.1, 100.0), (0.9, 200.0)], 340, 9.5) == [(0, 0), (0, 0)], "a label with room stays at its point"


def test_metrics_that_tell_nothing_are_folded_away() -> None:
    rows = proxies()
    shown = telling(rows)
    assert {row.metric for row in rows if row.spearman.excludes_zero} <= {row.metric for row in shown}
    assert 4 <= len(shown) < len(rows)


def test_it_stays_small(results_root: Path) -> None:
    run(Config(n_gallery=2000, max_failures=100))
    assert (results_root / "report" / "index.html").stat().st_size < 1_250_000


HARNESS = Path(__file__).with_name("finding.html").read_text(encoding="utf-8")
"""Works the page as a reader would, in a frame of some width, and writes down what it sees."""


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.browser
@browser[1]
def test_saving_filtering_and_finding_ones_way(report: Path, tmp_path: Path, width: int) -> None:
    harness = report.with_name("harness.html")
    harness.write_text(HARNESS.replace("WIDTH", str(width)), encoding="utf-8")
    page, console = opened(harness, tmp_path / "profile")
    assert console == ""
    seen: dict[str, Any] = page.body
    assert seen["data-tables"] == seen["data-saved"] and int(seen["data-tables"]) >= 14
    assert seen["data-figures"] == seen["data-drawn"] and int(seen["data-figures"]) > 30
    rows = json.loads(seen["data-rows"])
    board = load_results().leaderboard
    assert {row["method"]: row["reward [95%]"] for row in rows} == {
        row.method: pytest.approx(row.reward_mean, abs=1e-6) for row in board
    }
    assert all("[" in row["reward [95%] as shown"] for row in rows)
    assert seen["data-csv"].splitlines() == ["a,b,c,d,e", '"x,""y",\'=1+1,-0.5,"-0.5 [1, 2]",']
    assert seen["data-svg"].startswith('<svg xmlns="http://www.w3.org/2000/svg"') and "var(" not in seen["data-svg"]
    assert seen["data-image"] not in (None, "refused")
    assert seen["data-given"].split()[:2] == ["lensmith-leaderboard.csv", "lensmith-leaderboard.json"]
    assert seen["data-given"].split()[2].startswith("lensmith-forest-")
    assert int(seen["data-all"]) == int(seen["data-again"]) == 9
    assert seen["data-target"] == "digits_mlp 4"
    assert seen["data-both"] == "digits_mlp train" and set(seen["data-panels"].split(",")) == {"digits_mlp train"}
    assert seen["data-mean"] == "true" and seen["data-cell"] == "true"
    assert (seen["data-controls"], seen["data-finding"], seen["data-failures"]) == (
        "#controls",
        "#finding",
        "#failures",
    )
    assert abs(int(seen["data-sticky"])) <= 1
    assert seen["data-unsaid"] == "" and int(seen["data-cut"]) > 0
    assert seen["data-inside"] == ""
    if width == 1280:
        assert seen["data-ends"] == ""


def test_what_a_method_is_called_cannot_leave_its_place(results_root: Path) -> None:
    evil = '</td><script>alert(1)</script>"'
    path = results_root / "metrics" / "per_task.json"
    rows = json.loads(path.read_text())
    path.write_text(
        json.dumps([row | {"method": evil, "family": evil} if row["method"] == "pca" else row for row in rows])
    )
    page = render(load_results())
    assert "<script>alert(1)" not in page and "&lt;script&gt;alert(1)" in page
