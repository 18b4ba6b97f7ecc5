"""Sweeps, proxies, circuits and the data of the explorer: what is drawn is what the rows say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from stages.base.text import shown_word
from stages.contracts.circuit_rows import CircuitDrawing, CircuitRow, DrawnEdge, DrawnNode
from stages.contracts.dictionary_rows import DICTIONARIES, DictionaryRow, Pages
from stages.contracts.record import Estimate
from stages.report.circuits import circuit_table, draw_circuit, fate, fates
from stages.report.composing import render
from stages.report.latents import LEVELS, N_HEAT, _json, _packed, _scaled, explorer, image_of, shape_of
from stages.report.proxies import proxy_forest, proxy_table, ranked
from stages.report.results import load_results
from stages.report.sweeps import BASELINES, points, styles, sweep
from tests.report.conftest import EVIL_WORDS, circuits, dictionary, drawing, gallery_of, latents, proxies, word_pages

METRIC = "monosemanticity"


def _row(
    architecture: str, sparsity: float, seed: int, l0: float, value: Estimate, n_latents: int = 64
) -> DictionaryRow:
    found = Estimate(value=l0)
    return dictionary(architecture, sparsity, seed, l0=found, monosemanticity=value, n_latents=n_latents)


def _value(value: float | None, low: float | None = None, high: float | None = None) -> Estimate:
    return Estimate(value=value, low=low, high=high)


def _edge(source: str, reader: str, score: float, chosen: bool, truth: bool | None) -> DrawnEdge:
    return DrawnEdge(source=source, reader=reader, score=score, in_circuit=chosen, in_truth=truth)


def test_a_point_is_the_mean_over_seeds_and_its_bar_spans_their_intervals() -> None:
    rows = [
        _row("topk", 8, 0, 7.0, _value(0.8, 0.7, 0.9)),
        _row("topk", 8, 1, 9.0, _value(0.6, 0.55, 0.65)),
        _row("topk", 4, 0, 4.0, _value(0.5, 0.4, 0.6)),
        _row("topk", 4, 1, 4.0, _value(None)),
        _row("pca", 8, 0, 8.0, _value(0.3)),
        _row("pca", 8, 0, 0.0, _value(0.3, 0.3, 0.3)),
    ]
    found = points(rows, METRIC)
    assert list(found) == ["pca", "topk"]
    low, high = found["topk"]
    assert (low.l0, low.value, low.n_seeds) == (4.0, 0.5, 1)
    assert (high.l0, high.value, high.low, high.high, high.n_seeds) == (8.0, pytest.approx(0.7), 0.55, 0.9, 2)
    assert [(one.value, one.low) for one in found["pca"]] == [(0.3, None)]
    assert points(rows, "reward") == {} and sweep(rows, "reward", "reward", styles(["topk", "pca"])) is None


def test_a_line_joins_sparsities_of_one_size_only() -> None:
    rows = [_row("topk", k, 0, float(k), _value(0.1 * k, 0.0, 1.0)) for k in (2, 4, 8)]
    rows += [_row("topk", 4, 0, 4.2, _value(0.3, 0.2, 0.4), n_latents=32)]
    plot = sweep(rows, METRIC, "metric", styles(["topk"]))
    assert plot is not None and plot.n_marks == 4
    assert plot.svg().count('class="trace') == 2 and plot.svg().count("pale") == 1


def test_architectures_are_told_apart_and_baselines_look_like_baselines() -> None:
    names = ["random", "topk", "zeta", "pca", "standard", "gated", "batchtopk", "identity", "ica", *"abcdefgh"]
    found = styles(names)
    assert set(found) == set(names) and len(set(found.values())) == len(names)
    assert all(found[name].kind.startswith("untrained") == (name in BASELINES) for name in names)
    assert styles(["topk"])["topk"] == found["topk"]  # its colour is its own


def test_proxies_are_ranked_by_strength_and_drawn_with_their_nulls() -> None:
    rows = ranked(proxies())
    assert [row.metric for row in rows[:2]] == ["probe_5_sparse", "l0"] and rows[-1].metric == "class_purity"
    plot = proxy_forest(rows)
    assert plot.n_marks == 15 and plot.svg().count('class="null"') == 30, "on both sides of 0"
    cells = proxy_table(rows).rows
    assert len(cells) == 6 and "null" in cells[0][1].text and cells[-1][1].text == "\u2013"


@pytest.mark.parametrize(
    ("chosen", "truth", "expected"),
    [
        (True, True, "found"), (False, True, "missed"), (True, False, "extra"), (False, False, "left"),
        (True, None, "chosen"), (False, None, "left"),
    ],
)  # fmt: skip
def test_the_fate_of_an_edge(chosen: bool, truth: bool | None, expected: str) -> None:
    assert fate(_edge("a", "b", 1.0, chosen, truth)) == expected


class Drawn(HTMLParser):
    def __init__(self, svg: str) -> None:
        super().__init__()
        self.edges: list[str] = []
        self.boxes: list[tuple[float, float, float, float]] = []
        self.paths: list[list[float]] = []
        self.size = (0.0, 0.0)
        self.feed(svg)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attrs}
        if tag == "svg":
            self.size = float(given["width"]), float(given["height"])
        if given.get("class", "").startswith("edge"):
            self.edges.append(given["class"].split()[1])
        if tag == "rect":
            self.boxes.append(tuple(float(given[key]) for key in ("x", "y", "width", "height")))  # type: ignore[arg-type]
        if tag == "path":
            self.paths.append([float(value) for value in re.findall(r"-?[\d.]+", given["d"])])


@pytest.mark.parametrize("n_edges", [1, 30, 100])
def test_a_circuit_draws_every_edge_inside_the_frame_and_no_box_over_another(n_edges: int) -> None:
    circuit = drawing(n_edges)
    svg = draw_circuit(circuit)
    assert svg == draw_circuit(circuit.model_copy(update={"edges": circuit.edges[::-1], "nodes": circuit.nodes[::-1]}))
    drawn = Drawn(svg)
    assert len(drawn.edges) == n_edges and {kind: drawn.edges.count(kind) for kind in drawn.edges} == fates(
        circuit.edges
    )
    width, height = drawn.size
    assert len(drawn.boxes) == len(circuit.nodes)
    for i, (x, y, w, h) in enumerate(drawn.boxes):
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
        for x2, y2, w2, h2 in drawn.boxes[:i]:
            assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y
    for x1, y1, xa, ya, xb, yb, x2, y2 in drawn.paths:
        t = np.linspace(0, 1, 50)
        for ends, limit in (((x1, xa, xb, x2), width), ((y1, ya, yb, y2), height)):
            a, b, c, d = ends
            along = a * (1 - t) ** 3 + 3 * b * t * (1 - t) ** 2 + 3 * c * t**2 * (1 - t) + d * t**3
            assert along.min() >= 0 and along.max() <= limit


def test_edges_say_their_scores_and_thickness_follows_them() -> None:
    names = ("in", "a0.1", "out")
    circuit = CircuitDrawing(
        title="<b>x</b>",
        nodes=tuple(DrawnNode(name=name, layer=i, slot=0) for i, name in enumerate(names)),
        edges=(
            _edge("in", "a0.1.q", -0.5, True, True),
            _edge("in", "out", 0.25, False, True),
            _edge("nobody", "out", 1e-3, True, None),
        ),
        note="",
    )
    svg = draw_circuit(circuit)
    assert "in \u2192 a0.1.q: score \u22120.5000, found" in svg and "score +0.2500, missed" in svg
    assert "1 not drawn" in svg and "<b>" not in svg
    thick, thin = (float(re.search(rf'edge {kind}".*?stroke-width="([\d.]+)"', svg)[1]) for kind in ("found", "missed"))  # type: ignore[index]
    assert thick > thin


def test_circuits_are_a_table_with_numbers_to_sort_by() -> None:
    table = circuit_table(circuits())
    assert len(table.rows) == 6
    names = [column.name for column in table.columns]
    assert {"exact recovery", "edge AUC", "forwards", "seeds"} <= set(names)
    assert table.rows[0][names.index("forwards")].text == "1200.0" and table.rows[0][names.index("seeds")].text == "10"
    assert all(
        column.hint == CircuitRow.hint(field)
        for column, field in zip(table.columns[:2], ("card", "method"), strict=True)
    )


def unpacked(text: str, n: int) -> list[int]:
    """As page/latent.js does it."""
    out: list[int] = []
    for number, run in re.findall(r"(\d+)|([a-z])", text):
        out += [int(number)] if number else [0] * (ord(run) - 96)
    return out + [0] * (n - len(out))


def unscaled(packed: tuple[float, str]) -> list[float | None]:
    largest, text = packed
    pairs = [text[i : i + 2] for i in range(0, len(text), 2)]
    return [None if pair == "--" else (int(pair, 36) - 647) / 647 * largest for pair in pairs]


@pytest.mark.parametrize("counts", [[], [0] * 60, [0, 3, 12, 0, 0, 1, 1, 0], [5] * 4, [0] * 27 + [1], [123456, 0, 7]])
def test_packed_counts_come_back(counts: list[int]) -> None:
    assert unpacked(_packed(counts), len(counts)) == counts


@pytest.mark.parametrize("values", [(), (0.0, 0.0), (1.5, -3.0, None, 0.001), (1e-9, -1e-9), (None,)])
def test_scaled_values_come_back(values: tuple[float | None, ...]) -> None:
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    back = unscaled(_scaled(values))
    assert [value is None for value in back] == [value is None for value in values]
    assert all(
        abs(a - b) <= 5e-3 * largest for a, b in zip(back, values, strict=True) if a is not None and b is not None
    )


@pytest.mark.parametrize("grid", [None, (1, 17), (7, 7)])
def test_the_explorer_holds_every_latent_and_each_image_once(grid: "tuple[int, int] | None") -> None:
    made = latents(np.random.default_rng(1), 40, 64, grid)
    found = explorer([gallery_of(made), gallery_of(made, sparsity=4.0)], 30)
    assert found is not None and found.n == 60
    assert [one.name for one in found.dictionaries] == ["t/h/topk/8", "t/h/topk/4"]
    images = json.loads(found.images)
    assert len(set(images)) == len(images) <= len(made.images)
    block = json.loads(found.dictionaries[0].json)
    columns = block["columns"]
    assert all(len(column) == 30 for column in columns.values())
    for i, latent in enumerate(made.latents[:30]):
        assert columns["latent"][i] == latent.latent
        assert [images[n] for n in columns["images"][i]] == [made.images[n] for n in latent.images]
        assert columns["ablation_loss"][i] == pytest.approx(latent.ablation.loss, rel=6e-3)
        assert unpacked(columns["histogram"][i], 100) == [n for counts in latent.histogram for n in counts]
        for key, values in (
            ("activations", latent.activations),
            ("logit_effect", latent.logit_effect),
            ("ablated_logits", latent.ablation.logits),
        ):
            assert unscaled(columns[key][i]) == pytest.approx(values, abs=2e-3 * max(map(abs, values)) + 1e-9)
        if grid:
            percents = [percent for heat in latent.heat[:N_HEAT] for percent in heat]
            levels = [int(level, 36) * 100 / (len(LEVELS) - 1) for level in columns["heat"][i]]
            assert levels == pytest.approx(percents, abs=1.5)
    assert ("heat" in columns) == (grid is not None) == (block["grid"] is not None)


def test_nothing_in_a_result_can_end_a_script_of_the_page() -> None:
    made = latents(np.random.default_rng(1), 3, 64, None)
    evil = "</script><script>alert(1)</script>"
    found = explorer([gallery_of(made, evil, evil, evil)], 3)
    assert found is not None and "<" not in found.dictionaries[0].json and "<" not in found.images
    assert _json([evil]) == '["\\u003c/script\\u003e\\u003cscript\\u003ealert(1)\\u003c/script\\u003e"]'


def test_words_of_a_model_are_text_and_nothing_else() -> None:
    made = word_pages(np.random.default_rng(1), 6, 64)
    found = explorer([gallery_of(made)], 6)
    assert found is not None
    text = found.dictionaries[0].json
    assert "<" not in text and "\\u202e" not in text and "\\u001b" not in text and "\\u200b" not in text
    block = json.loads(text)
    assert block["words"] == [shown_word(word) for word in EVIL_WORDS] + [f" word{i}" for i in range(40)]
    assert block["gap"] == "" and block["texts"] is None and len(block["class_names"]) == 4
    for i, latent in enumerate(made.latents):
        numbers = block["columns"]["images"][i]
        assert [block["contexts"][str(n)] for n in numbers] == [list(made.contexts[n]) for n in latent.images]
        assert [len(heat) for heat in block["columns"]["heat"][i]] == [len(heat) for heat in latent.heat]
        assert all(heat[0] == "-" for heat in block["columns"]["heat"][i])
        assert [len(part) for part in block["columns"]["moved"][i]] == [5, 5, 5, 5]
    plain = found.dictionaries[0].plain[0]
    assert plain.strip == "" and shown_word(EVIL_WORDS[0]) in " ".join(block["words"]) and plain.texts.isprintable()


def test_no_latent_no_explorer() -> None:
    assert explorer([], 5) is None
    made = latents(np.random.default_rng(1), 3, 64, None)
    assert explorer([gallery_of(made)], 0) is None


def test_an_image_has_the_shape_and_the_greys_that_its_gallery_says() -> None:
    assert image_of("0g81", (2, 2)) == [[0, 16], [8, 1]] and image_of("0Za", (1, 3)) == [[0, 61, 10]]
    with pytest.raises(ValueError, match="3 pixels, not 2 x 2"):
        image_of("012", (2, 2))
    made = latents(np.random.default_rng(1), 2, 64, None)
    assert shape_of(made) == (8, 8)
    assert shape_of(made.model_copy(update={"images": ("012",)})) == (1, 3), "no square: one row"
    assert shape_of(made.model_copy(update={"images": ("012345",), "shape": (2, 3)})) == (2, 3)


def other_inputs(**values: object) -> Pages:
    """Three classes, two outputs, inputs of another kind than 8 x 8 pixels of 17 greys."""
    made = latents(np.random.default_rng(1), 5, 64, None)
    fewer = [
        one.model_copy(
            update={
                "class_": one.class_ % 3,
                "classes": tuple(k % 3 for k in one.classes),
                "histogram": tuple(counts[:3] for counts in one.histogram),
                "logit_effect": (0.5, -0.25),
                "ablation": one.ablation.model_copy(update={"logits": (None, 0.125)}),
            }
        )
        for one in made.latents
    ]
    return made.model_copy(update={"latents": tuple(fewer), **values})


def test_the_explorer_takes_galleries_of_any_shape_and_of_texts() -> None:
    n = len(latents(np.random.default_rng(1), 5, 64, None).images)
    wide = other_inputs(
        images=tuple(f"0Z{i:04d}"[:6] for i in range(n)), shape=(2, 3), levels=62, class_names=("a", "b", "c")
    )
    words = other_inputs(images=("",) * n, texts=tuple(f"<b>token {i}</b>" for i in range(n)))
    found = explorer([gallery_of(wide), gallery_of(words, architecture="words")], 9)
    assert found is not None
    first, second = (json.loads(one.json) for one in found.dictionaries)
    assert (first["n_classes"], first["n_bins"], first["shape"], first["levels"]) == (3, 10, [2, 3], 62)
    assert first["class_names"] == ["a", "b", "c"] and first["texts"] is None
    assert [second["texts"][str(k)] for k in second["columns"]["images"][0]] == [
        f"<b>token {k}</b>" for k in words.latents[0].images
    ]
    assert found.dictionaries[0].plain[0].strip.startswith("data:image/png;base64,")
    assert found.dictionaries[1].plain[0].strip == "" and "token" in found.dictionaries[1].plain[0].texts


def test_the_page_works_without_scripts(results_root: Path) -> None:
    page = render(load_results(), n_gallery=14)
    plain = page[page.index("<noscript>") : page.index("</noscript>")]
    assert plain.count("<table") == 12 and plain.count("data:image/png;base64,") == 12 * 4
    assert '<div id="explorer" class="explorer" hidden>' in page


def test_a_metric_that_no_row_has_is_named(results_root: Path) -> None:
    path = results_root / "metrics" / "dictionaries.json"
    rows = DICTIONARIES.load(path)
    assert render(load_results()).count("No row of metrics/dictionaries.json has <code>reward</code>") == 4
    found = {"reward": _value(0.1, 0.0, 0.2)}
    DICTIONARIES.save(tuple(row.model_copy(update=found if row.architecture == "topk" else {}) for row in rows), path)
    page = render(load_results())
    assert "No row of metrics" not in page and page.count('data-plot="dictionary-reward"') == 4


def test_drawings_may_be_missing(results_root: Path) -> None:
    (results_root / "data" / "circuits" / "drawings.json").unlink()
    assert "Drawings of circuits: not there yet. <code>dvc repro circuits</code>" in render(load_results())


def test_a_method_that_does_worse_on_fresh_instances_is_marked(results_root: Path) -> None:
    page = render(load_results())
    section = page.partition('<section id="fresh">')[2].partition("</section>")[0]
    assert "1 of 2 methods that answer have one" in section
    marked = [row for row in section.split("<tr>") if "num bad" in row]
    assert marked and all("memorises" in row and "+0.300 <" in row and "[+0.210, +0.400]" in row for row in marked)


def test_no_edge_of_a_deep_circuit_leaves_its_drawing() -> None:
    nodes = tuple(DrawnNode(name=f"n{layer}", layer=layer, slot=0) for layer in range(12))
    edges = tuple(_edge(f"n{i}", f"n{j}", 1.0, True, None) for i in range(12) for j in range(i + 1, 12))
    svg = draw_circuit(CircuitDrawing(title="deep", nodes=nodes, edges=edges, note=""))
    height = float(re.search(r'height="(\d+)" data-edges', svg).group(1))
    for path in re.findall(r' d="M([^"]+)"', svg):
        y1, c1, c2, y2 = (float(y) for y in re.findall(r"[-\d.]+ ([-\d.]+)", path))
        for t in np.linspace(0, 1, 21):
            y = (1 - t) ** 3 * y1 + 3 * (1 - t) ** 2 * t * c1 + 3 * (1 - t) * t**2 * c2 + t**3 * y2
            assert 0 <= y <= height
