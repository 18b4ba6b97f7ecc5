"""The page in headless Chromium: every plot is drawn, the console is clean, nothing is wider than a phone."""

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from stages.report.results import load_results
from stages.report.stage import Config, run

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH"),
]
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0",
    "--allow-file-access-from-files", "--virtual-time-budget=3000", "--dump-dom",
)  # fmt: skip
PHONE = 390
# Shows the page in a frame of a phone's width, works its tables, and writes down what it sees.
HARNESS = """<!doctype html><title>harness</title>
<iframe id="f" src="index.html" style="width:390px;height:800px;border:0"></iframe>
<script>
f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow, out = document.body.dataset;
  for (const fold of d.querySelectorAll("details")) fold.open = true;
  out.scrollWidth = d.documentElement.scrollWidth;
  const outside = (e) => !e.closest(".scroll") && !e.closest(".skip") && e.getBoundingClientRect().right > 390.5;
  const wide = [...d.querySelectorAll("main *, header *")].filter(outside);
  out.wide = wide.map((e) => e.outerHTML.slice(0, 80)).join(" ");
  const drawn = (e) => { const b = e.getBoundingClientRect(); return b.width > 0 && b.height > 0; };
  out.drawn = [...d.querySelectorAll("figure.plot .mark")].filter(drawn).length;
  const table = d.querySelector('table[data-table="leaderboard"]');
  const heads = [...table.tHead.rows[0].cells];
  const n = heads.findIndex((h) => h.textContent.startsWith("FLOP"));
  heads[n].querySelector("button").click();
  out.sorted = [...table.tBodies[0].rows].map((r) => r.cells[n].dataset.key).join(",");
  out.direction = heads[n].getAttribute("aria-sort");
  const size = (t) => parseFloat(w.getComputedStyle(t).fontSize);
  out.small = [...d.querySelectorAll("main svg text")].filter((t) => size(t) < 10.5).length;
};
</script>"""


class Page(HTMLParser):
    """Counts marks inside each plot container."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.marks: dict[str, list[int]] = {}
        self.body: dict[str, str | None] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "body":
            self.body = given
        if given.get("data-plot"):
            self._open.append((tag, given["data-plot"]))
            self.marks.setdefault(str(given["data-plot"]), []).append(0)
        if "mark" in (given.get("class") or "").split() and self._open:
            self.marks[str(self._open[-1][1])][-1] += 1

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()


def opened(page: Path, profile: Path) -> tuple[Page, str]:
    """(DOM after scripts ran, console lines)."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Page(done.stdout), "\n".join(console)


@pytest.fixture
def report(results_root: Path) -> Path:
    run(Config(n_gallery=12, max_failures=100))
    return results_root / "report" / "index.html"


def test_every_plot_is_drawn_and_the_console_is_clean(report: Path, tmp_path: Path) -> None:
    page, console = opened(report, tmp_path / "profile")
    assert console == ""
    results = load_results()
    n = len(results.leaderboard)
    tasks = {(row.split, row.family, row.target) for row in [*results.per_task, *results.test_per_task]}
    last = max(row.opening for row in results.test)
    assert page.marks["forest"] == [2 * n]
    assert page.marks["forest-train"] == [2 * len(results.train)]
    assert page.marks["forest-test"] == [
        2 * sum(row.opening == last and row.method != "oracle" for row in results.test)
    ]
    assert page.marks["task"] == [2 * n] * len(tasks)
    assert page.marks["pareto"] == [n + 1]
    curves = [row for row in [*results.per_task, *results.test_per_task] if row.status == "ok"]
    assert len(page.marks["cost"]) == len(tasks)
    assert sum(page.marks["cost"]) == 3 * len(tasks) + 3 * len(curves)
    assert page.marks["campaign"] == [len(results.campaign.iterations)]
    assert page.marks["sensitivity"] == [len(results.sensitivity.rows)]
    hooks = sorted({(row.target, row.hook_point) for row in results.dictionaries})
    for metric in ("explained_variance", "loss_recovered", "probe_5_sparse"):
        assert page.marks[f"dictionary-{metric}"] == [
            len({(r.architecture, r.sparsity) for r in results.dictionaries if r.hook_point == hook})
            for _, hook in hooks
        ]
    assert "dictionary-reward" not in page.marks
    assert sum(page.marks["proxies"]) == 3 * sum(row.spearman.value is not None for row in results.proxies)


def test_on_a_phone_nothing_hangs_over_and_tables_sort(report: Path, tmp_path: Path) -> None:
    harness = report.with_name("harness.html")
    harness.write_text(HARNESS, encoding="utf-8")
    page, console = opened(harness, tmp_path / "profile")
    assert console == ""
    seen: dict[str, Any] = page.body
    assert int(seen["data-scroll-width"]) <= PHONE
    assert seen["data-wide"] == ""
    text = report.read_text(encoding="utf-8")
    assert int(seen["data-drawn"]) == sum(int(number) for number in re.findall(r'data-marks="(\d+)"', text)) > 0
    assert int(seen["data-small"]) == 0
    ratios = [float(value) for value in seen["data-sorted"].split(",")]
    assert ratios == sorted(ratios, reverse=True) and seen["data-direction"] == "descending"


def test_a_page_without_results_of_research_is_clean_too(results_root: Path, tmp_path: Path) -> None:
    for name in ("campaign", "test", "sensitivity", "controls", "train"):
        (results_root / "metrics" / f"{name}.json").unlink()
    run(Config(n_gallery=0, max_failures=10))
    page, console = opened(results_root / "report" / "index.html", tmp_path / "profile")
    assert console == "" and "campaign" not in page.marks and page.marks["forest"]
