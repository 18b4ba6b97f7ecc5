"""The report: what it shows, what it says where something is missing, and that it is the same every time."""

import base64
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from stages.contracts.reward_rows import LeaderboardRow, StatementRow
from stages.errors import UserError
from stages.report.comparing import pareto_front
from stages.report.composing import render
from stages.report.figure import leaderboard_svg
from stages.report.images import strip
from stages.report.results import Results, load_results
from stages.report.scales import linear, logarithmic
from stages.report.stage import Config, figure, run
from stages.report.wording import flops, number, placebo_note, signed, summary

CONFIG = Config(n_gallery=12, max_failures=100)


def test_it_is_one_small_file_that_needs_no_network(results_root: Path) -> None:
    size = run(CONFIG)
    page = (results_root / "report" / "index.html").read_text(encoding="utf-8")
    assert size < 6_000_000
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert not re.findall(r"url\((?!data:)", page) and "@import" not in page and '<link rel="stylesheet' not in page


def test_it_is_the_same_every_time(results_root: Path) -> None:
    run(CONFIG)
    first = (results_root / "report" / "index.html").read_bytes()
    run(CONFIG)
    assert (results_root / "report" / "index.html").read_bytes() == first
    assert str(results_root).encode() not in first


def test_it_shows_every_method_with_interval_and_n(results_root: Path) -> None:
    results = load_results()
    page = render(results)
    for row in results.leaderboard:
        assert f"{signed(row.reward_mean)} [{signed(row.reward_low)}, {signed(row.reward_high)}]" in page
        rest = f"{row.n_seeds} seeds, {row.n_instances} instances"
        assert f'{row.n_tasks} tasks <span class="iv">{rest}</span>' in page
    assert results.missing == []


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("leaderboard", "dvc repro reward"),
        ("train", "dvc repro reward"),
        ("per_task", "dvc repro reward"),
        ("sensitivity", "dvc repro reward"),
        ("controls", "dvc repro reward"),
        ("campaign", "dvc repro research"),
        ("test", "dvc repro sealed_test"),
        ("test_per_task", "dvc repro sealed_test"),
        ("test_path", "dvc repro sealed_test"),
        ("compare", "lensmith compare"),
        ("labels", "lensmith labels"),
        ("scenarios", "lensmith scenarios"),
        ("fresh", "dvc repro fresh"),
        ("dictionaries", "dvc repro proxies"),
        ("proxies", "dvc repro proxies"),
        ("circuits", "dvc repro circuits"),
    ],
)
@pytest.mark.parametrize("empty", [False, True])
def test_a_missing_result_is_named_with_the_command_that_makes_it(
    results_root: Path, name: str, command: str, empty: bool
) -> None:
    path = results_root / "metrics" / f"{name}.json"
    if empty and name in ("sensitivity", "campaign", "compare"):
        pytest.skip("one object, which is never empty")
    if empty:
        path.write_text("[]", encoding="utf-8")
    else:
        path.unlink()
    results = load_results()
    note = results.lacks(name)
    assert note is not None and note.made_by == command and note.empty == empty
    assert f"<code>{command}</code>" in render(results)


def test_galleries_may_be_missing(results_root: Path) -> None:
    for file in results_root.glob("data/dictionaries/*/gallery.json"):
        file.unlink()
    assert "<code>dvc repro dictionaries</code>" in render(load_results())


def test_half_written_folders_are_not_read(results_root: Path) -> None:
    partial = results_root / "data" / "dictionaries" / ".digits_mlp.partial"
    partial.mkdir()
    (partial / "gallery.json").write_text("{", encoding="utf-8")
    assert len(load_results().galleries) == 12


def test_without_any_result_it_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    with pytest.raises(UserError, match="lensmith run"):
        load_results()


@pytest.mark.parametrize(
    ("content", "message"), [("{", "is not JSON"), ("3", "holds int"), ('[{"method": 3}]', "has 0.method = '3'")]
)
def test_a_damaged_result_is_an_error_with_the_remedy(results_root: Path, content: str, message: str) -> None:
    (results_root / "metrics" / "leaderboard.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_results()
    assert "make it anew with `dvc repro -f reward`" in str(error.value)


def test_text_of_a_method_cannot_become_part_of_the_page(results_root: Path) -> None:
    path = results_root / "metrics" / "per_task.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    evil = "<script>alert(1)</script>"
    for row in rows:
        row["method"] = evil if row["method"] == "pca" else row["method"]
        row["reason"] = evil
    path.write_text(json.dumps(rows), encoding="utf-8")
    page = render(load_results())
    assert evil not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_the_oracle_is_a_control_and_wins_nothing(results_root: Path) -> None:
    page = render(load_results())
    section = page[page.index('id="test"') : page.index('id="sensitivity"')]
    assert "oracle has the highest reward" not in section and "given the truth, at +0.620 [+0.550, +0.700]" in section
    assert "The campaign&#39;s best, search-" in section


def test_failures_are_listed_with_their_reason(results_root: Path) -> None:
    page = render(load_results())
    section = page[page.index('id="failures"') :]
    assert "mat1 and mat2 shapes cannot be multiplied" in section
    assert "the target was never called" in section
    assert "control placebo of pca" in section
    assert "more are in" in render(load_results(), max_failures=1)


def not_told(results: Results) -> list[StatementRow]:
    return [row.model_copy(update={"verdict": "not distinguishable"}) for row in results.statements]


def test_the_headline_says_plainly_that_nothing_helps_and_what_would_have_been_seen(results_root: Path) -> None:
    results = load_results()
    nothing = {"reward_mean": 0.004, "reward_low": -0.01, "reward_high": 0.02, "verdict": "not distinguishable"}
    rows = [row.model_copy(update=nothing) for row in results.leaderboard]
    said = not_told(results)
    title, detail = summary(rows, said)
    here = next(row for row in said if (row.scope, row.split, row.method) == ("tasks", "validation", rows[0].method))
    assert title == (
        "No method is told apart from the agent alone on these 4 validation tasks;"
        f" a reward of {here.visible:.3f} would have been seen."
    )
    assert "+0.004 [\u22120.010, +0.020] (n = 4 tasks" in detail
    assert summary(rows, [])[0] == "What may be said of the methods has not been worked out yet."


def test_the_headline_is_the_widest_sentence_that_is_true(results_root: Path) -> None:
    results = load_results()
    best = {"verdict": "better", "low": 0.2, "high": 0.4, "value": 0.3, "p": 0.001, "p_holm": 0.004}

    def with_better(*wanted: tuple[str, str, str]) -> str:
        keys = [(scope, split, method) for scope, split, method in wanted]
        said = [
            row.model_copy(update=best) if (row.scope, row.split, row.method) in keys else row
            for row in not_told(results)
        ]
        return summary(results.leaderboard, said)[0]

    tasks, kind = ("tasks", "validation", "pca"), ("kind", "train+validation", "attention")
    families = ("families", "train", "gradient")
    assert with_better(tasks).startswith("On these 4 validation tasks pca is better than the agent alone: +0.300 [+0.2")
    assert with_better(tasks, kind).startswith("On questions of kind ") and "attention is better" in with_better(kind)
    assert with_better(tasks, kind, families).startswith("On families like these (2 train families) gradient is better")
    assert with_better(tasks, ("tasks", "train", "sae")).startswith("On these 4 validation tasks"), "seen by fewest"
    assert with_better(("families", "train", "random_features")).startswith("No method"), "a control claims nothing"
    assert "smallest visible" in with_better(tasks)


@pytest.mark.parametrize(
    ("placebo_high", "note"),
    [
        (0.2, "its placebo did as well"),
        (0.07, "its placebo is not clearly below it"),
        (0.01, "its placebo is clearly below it"),
    ],
)
def test_the_placebo_is_compared(placebo_high: float, note: str) -> None:
    row = LeaderboardRow.model_construct(reward_mean=0.1, reward_low=0.05, placebo_high=placebo_high)
    assert placebo_note(row) == note


def test_numbers_are_said_the_same_way_everywhere() -> None:
    assert signed(0.1234) == "+0.123" and signed(-0.1234) == "\u22120.123"
    assert signed(-0.0001) == "0.000" and signed(0.0001) == "0.000"
    assert number(None) == "\u2013" and number(float("nan")) == "\u2013"
    assert flops(4.2e6) == "4.2 MFLOP" and flops(12) == "12 FLOP"


@pytest.mark.parametrize("values", [[0.0], [1.0, 1.0], [-3.0, 7.0], [1e-9, 2e-9], [1e6, 5e9], [0.1, 0.3, None]])
def test_a_linear_scale_holds_its_values_and_has_ticks(values: list[float]) -> None:
    scale = linear(values)
    known = [value for value in values if value is not None]
    assert all(0 <= scale.at(value) <= 1 for value in known)
    assert all(0 <= scale.at(tick) <= 1 for tick in scale.ticks) and 2 <= len(scale.ticks) <= 12
    assert len({scale.label(tick) for tick in scale.ticks}) == len(scale.ticks)


@pytest.mark.parametrize("values", [[1.0], [0.001, 1000.0], [0.2, 1.1], [7.0, 15.0], [1e-6, 1e6]])
def test_a_log_scale_holds_its_values_and_has_ticks(values: list[float]) -> None:
    scale = logarithmic(values)
    assert all(0 <= scale.at(value) <= 1 for value in values)
    assert 1 <= len(scale.ticks) <= 12 and all(0 <= scale.at(tick) <= 1 for tick in scale.ticks)


def test_pareto_front_is_what_nothing_dominates() -> None:
    rng = np.random.default_rng(0)
    points = [(float(a), float(b)) for a, b in rng.uniform(size=(60, 2))]
    front = pareto_front(points)
    dominated = {
        i for i, (cost, gain) in enumerate(points)
        if any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
    }  # fmt: skip
    assert set(front) == set(range(len(points))) - dominated
    assert front == sorted(front, key=lambda i: points[i][0])


def test_images_come_back_out_of_their_png() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 17, (5, 8, 8))
    data = base64.b64decode(strip(images.tolist()).removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", data[16:24]) == (40, 8)
    start = data.index(b"IDAT")
    raw = zlib.decompress(data[start + 4 : start + 4 + struct.unpack(">I", data[start - 4 : start])[0]])
    rows = np.frombuffer(raw, np.uint8).reshape(8, 21)[:, 1:]
    shades = np.stack([rows >> 4, rows & 15], -1).reshape(8, 40)
    wanted = 15 - np.minimum(15, np.round(np.concatenate(list(images), axis=1) * 15 / 16))
    assert np.array_equal(shades, wanted.astype(np.uint8))
    with pytest.raises(ValueError, match="each must be"):
        strip([[[0] * 7] * 8, [[0] * 8] * 8])


@pytest.mark.parametrize(("height", "width", "n", "top"), [(3, 5, 2, 16), (28, 28, 9, 255), (120, 200, 9, 61)])
def test_images_may_have_any_shape_and_greys(height: int, width: int, n: int, top: int) -> None:
    images = np.random.default_rng(0).integers(0, top + 1, (n, height, width))
    data = base64.b64decode(strip(images.tolist(), top).removeprefix("data:image/png;base64,"))
    assert struct.unpack(">II", data[16:24]) == (n * width, height)
    start = data.index(b"IDAT")
    raw = zlib.decompress(data[start + 4 : start + 4 + struct.unpack(">I", data[start - 4 : start])[0]])
    rows = np.frombuffer(raw, np.uint8).reshape(height, -1)[:, 1:]
    shades = np.stack([rows >> 4, rows & 15], -1).reshape(height, -1)[:, : n * width]
    wanted = 15 - np.minimum(15, np.round(np.concatenate(list(images), axis=1) * 15 / top))
    assert np.array_equal(shades, wanted.astype(np.uint8))


def test_the_figure_is_written_and_stable(results_root: Path) -> None:
    figure()
    text = (results_root / "docs" / "leaderboard.svg").read_text(encoding="utf-8")
    rows = load_results().leaderboard
    assert text == leaderboard_svg(rows, load_results().statements)
    assert text.count("<circle") == 2 * len(rows) and all(row.method in text for row in rows)


def test_the_figure_needs_a_leaderboard(results_root: Path) -> None:
    (results_root / "metrics" / "leaderboard.json").unlink()
    with pytest.raises(UserError, match="lensmith run"):
        figure()


@pytest.mark.parametrize("n_ticks", [2, 3, 5])
@pytest.mark.parametrize(
    ("low", "high"), [(0.18, 0.78), (-0.2, 0.95), (0.83, 0.86), (0, 1), (-0.004, 0.003), (12, 4000)]
)
def test_every_axis_has_two_ticks_that_read_apart(low, high, n_ticks):
    scale = linear([low, high], n_ticks=n_ticks)
    labels = [scale.label(tick) for tick in scale.ticks]
    assert len(labels) >= 2 and len(set(labels)) == len(labels)
    for tick, label in zip(scale.ticks, labels, strict=True):
        assert float(label.replace("\u2212", "-")) == pytest.approx(tick, abs=1e-9)
