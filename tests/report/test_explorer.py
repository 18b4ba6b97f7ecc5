"""The explorer of latents in headless Chromium: found, sorted, linked, drawn; 2,000 latents, two widths."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.base.text import shown_word
from stages.contracts.dictionary_rows import GALLERY, Galleries, Gallery, Latent
from stages.report.latents import N_HEAT
from stages.report.stage import Config, run
from tests.report.conftest import gallery_of, latents, word_pages, write_results
from tests.report.test_browser import opened, pytestmark, report
from tests.report.test_sections import other_inputs

__all__ = ["pytestmark", "report"]  # a fixture and marks that are shared

# Works the explorer of latents as a reader would, and writes down what it shows.
EXPLORER = """<!doctype html><title>explorer</title>
<iframe id="f" src="index.html#latent=CHOSEN" style="width:WIDTHpx;height:1400px;border:0"></iframe>
<script>
f.onload = async () => {
  const d = f.contentDocument, w = f.contentWindow, out = document.body.dataset;
  const root = d.getElementById("explorer"), form = root.querySelector("form");
  const control = (name) => form.elements.namedItem(name);
  const title = () => root.querySelector(".detail h3").textContent;
  const column = (key) => [...root.querySelectorAll(`tbody td[data-key="${key}"]`)].map((c) => c.textContent).join(" ");
  const numbers = () => [...root.querySelectorAll("tbody a")].map((a) => a.textContent).join(" ");
  const set = (name, value, event) => {
    control(name).value = value;
    control(name).dispatchEvent(new w.Event(event, {bubbles: true}));
  };
  const pixels = (canvas) => canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
  const inked = (canvas) => new Set(pixels(canvas)).size > 2;
  const click = async (element) => { element.click(); await new Promise((done) => setTimeout(done, 50)); };
  out.linked = title();
  out.dictionary = control("dictionary").value;
  out.rows = root.querySelectorAll("tbody tr").length;
  out.painted = [...root.querySelectorAll("tbody canvas, .picture canvas:first-child")].every(inked);
  out.pictures = root.querySelectorAll(".detail .picture").length;
  out.heat = root.querySelectorAll(".detail .heat-map, .detail .heat-strip").length;
  out.bars = root.querySelectorAll(".detail .by-class .bar").length;
  out.logits = root.querySelectorAll(".detail .logits rect").length;
  out.scores = root.querySelectorAll(".detail dl div").length;
  out.near = root.querySelectorAll(".detail .near:not(.alike) li").length;
  out.alike = [...root.querySelectorAll(".detail .alike a")].map((a) => decodeURIComponent(a.hash)).join(" ");
  const outside = (e) => !e.closest(".scroll") && e.getBoundingClientRect().right > WIDTH + .5;
  const wide = [...root.querySelectorAll("*")].filter(outside);
  out.wide = wide.map((e) => e.outerHTML.slice(0, 80)).join(" ");
  for (const key of ["density", "monosemanticity", "class"]) {
    set("sort", key, "change");
    out["sort" + key] = column(key);
  }
  set("sort", "latent", "change"); out.first = numbers();
  await click(root.querySelector("[name=on]")); out.second = numbers();
  set("class", "3", "change"); out.classes = column("class"); out.count = root.querySelector(".count").textContent;
  set("class", "", "change");
  set("search", "class 7 density<0.05", "input"); out.both = column("class") + "|" + column("density");
  set("search", "#" + WANTED, "input"); out.exact = numbers();
  set("search", "nonsense", "input"); out.unknown = root.querySelector(".count").textContent;
  set("search", "", "input");
  const links = root.querySelectorAll("tbody a");
  links[0].focus();
  links[0].dispatchEvent(new w.KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true, cancelable: true}));
  out.focused = d.activeElement.textContent; out.next = links[1].textContent;
  await click(d.activeElement); out.shown = title(); out.hash = w.location.hash;
  await click(root.querySelector(".detail [name=compare]"));
  out.alone = root.querySelector(".beside h3").textContent;
  const first = d.activeElement;
  await click(root.querySelectorAll("tbody a")[5]);
  await click(root.querySelector(".detail [name=compare]"));
  const beside = root.querySelector(".beside");
  out.beside = [...beside.querySelectorAll("article")].map((a) => a.dataset.latent).join(" ");
  out.parts = [...beside.querySelectorAll("article")].map((a) => a.querySelectorAll("section").length).join(" ");
  out.address = decodeURIComponent(beside.querySelector("nav a").hash);
  await click(root.querySelector(".detail [name=compare]"));
  out.fewer = beside.querySelectorAll("article").length;
  w.location.hash = out.address; await new Promise((done) => setTimeout(done, 100));
  out.reopened = beside.querySelectorAll("article").length;
  const saved = [];
  const hand = w.lensmithSave.hand;
  w.lensmithSave.hand = (name, kind, content) => saved.push(content);
  root.querySelector(".tools [data-save=json]").click();
  root.querySelector(".tools [data-save=csv]").click();
  w.lensmithSave.hand = hand;
  out.saved = `${JSON.parse(saved[0]).rows.length} ${saved[1].trim().split("\\r\\n").length - 1}`;
  const other = control("dictionary").options[0].value;
  set("dictionary", other, "change"); out.other = title(); out.otherrows = root.querySelectorAll("tbody tr").length;
  out.done = "yes";
};
</script>"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Gallery]]:
    """A report with a dictionary of 2,000 latents on a 6 x 6 grid, and that dictionary's gallery."""
    root = tmp_path_factory.mktemp("large")
    write_results(root)
    pages = latents(np.random.default_rng(0), 2000, 2400, (6, 6))
    made = gallery_of(pages, "z_conv", "conv.hook_post", n_latents=2400)
    GALLERY.save(Galleries(target="z_conv", dictionaries=[made]), root / "data/dictionaries/z_conv/gallery.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_ROOT", str(root))
        size = run(Config(n_gallery=2000, max_failures=100))
        assert size < 5_000_000
        yield root / "report" / "index.html", made


@pytest.mark.parametrize("width", [390, 1280])
def test_two_thousand_latents_can_be_sorted_searched_and_linked(
    large: tuple[Path, Gallery], width: int, tmp_path: Path
) -> None:
    report, made = large
    pages = made.latents
    chosen, wanted = pages[1234], pages[77]
    harness = report.with_name(f"explorer-{width}.html")
    text = EXPLORER.replace("CHOSEN", f"z_conv/conv.hook_post/topk/{chosen.latent}").replace("WIDTH", str(width))
    harness.write_text(text.replace("WANTED", str(wanted.latent)), encoding="utf-8")
    page, console = opened(harness, tmp_path / "profile")
    assert console == ""
    seen = {key.removeprefix("data-"): str(value) for key, value in page.body.items()}
    assert seen["done"] == "yes" and seen["wide"] == ""
    assert seen["linked"] == f"Latent {chosen.latent} class {chosen.class_}"
    assert seen["dictionary"] == "z_conv/conv.hook_post/topk"
    assert seen["rows"] == "25" and seen["painted"] == "true"
    assert int(seen["pictures"]) == len(chosen.images) and int(seen["heat"]) == min(N_HEAT, len(chosen.images))
    assert int(seen["bars"]) == sum(n > 0 for counts in chosen.histogram for n in counts)
    assert int(seen["logits"]) == 20 and int(seen["scores"]) == 11
    assert int(seen["near"]) == len(chosen.neighbours)

    def numbers(text: str) -> list[float]:
        return [float(value.replace("\u2212", "-")) for value in text.split()]

    def shown(value: float) -> float:
        return float(f"{value:.3f}") if value >= 0.001 else float(f"{value:.1e}")

    for key in ("density", "monosemanticity"):
        best = sorted((getattr(one, key) for one in pages if getattr(one, key) is not None), reverse=True)[:25]
        assert numbers(seen[f"sort{key}"]) == pytest.approx([shown(value) for value in best], abs=0.0011)
    assert numbers(seen["sortclass"]) == [0.0] * 25
    ordered = sorted(one.latent for one in pages)
    assert numbers(seen["first"]) == ordered[:25] and numbers(seen["second"]) == ordered[25:50]
    assert set(seen["classes"].split()) == {"3"}
    assert seen["count"] == f"{sum(one.class_ == 3 for one in pages)} of 2,000 found."
    classes, _, densities = seen["both"].partition("|")
    assert set(classes.split()) == {"7"} and max(numbers(densities)) <= 0.05
    assert seen["exact"] == str(wanted.latent)
    assert seen["unknown"].startswith("Not understood: nonsense.")
    assert seen["focused"] == seen["next"] and seen["shown"].startswith(f"Latent {seen['next']} ")
    assert seen["hash"] == f"#latent=z_conv/conv.hook_post/topk/{seen['next']}"
    assert seen["alone"] == "Choose another to compare it with"
    assert len(seen["beside"].split()) == 2 and seen["parts"] == "4 4"
    assert seen["address"] == f"#compare={seen['beside'].replace(' ', '+')}"
    assert (seen["fewer"], seen["reopened"]) == ("1", "2") and seen["saved"] == "2000 2000"
    mine = set(chosen.images)

    def alike(one: Latent) -> float:
        shared = len(mine & set(one.images))
        return shared / (len(mine) + len(one.images) - shared)

    best = sorted((one for one in pages if one is not chosen and alike(one)), key=lambda one: (-alike(one), one.latent))
    assert seen["alike"].split() == [f"#latent=z_conv/conv.hook_post/topk/{one.latent}" for one in best[:5]]
    assert seen["other"] and seen["otherrows"] == "14"


def test_a_model_of_tokens_with_three_classes_is_shown_as_text(results_root: Path, tmp_path: Path) -> None:
    n = len(latents(np.random.default_rng(1), 5, 64, None).images)
    words = other_inputs(
        images=("",) * n, texts=tuple(f"<i>the token {i}</i>" for i in range(n)), class_names=("noun", "verb", "<b>")
    )
    wide = other_inputs(images=tuple(f"0Z{i:04d}"[:6] for i in range(n)), shape=(2, 3), levels=62)
    made = [gallery_of(words, "a_words", "h.0"), gallery_of(wide, "a_words", "h.1")]
    GALLERY.save(
        Galleries(target="a_words", dictionaries=made), results_root / "data/dictionaries/a_words/gallery.json"
    )
    run(Config(n_gallery=9, max_failures=100))
    harness = results_root / "report" / "tokens.html"
    harness.write_text(
        """<!doctype html><iframe id="f" src="index.html#latent=a_words/h.0/topk/LATENT"
        style="width:1280px;height:900px"></iframe><script>f.onload = () => {
        const d = f.contentDocument, out = document.body.dataset, root = d.getElementById("explorer");
        out.texts = [...root.querySelectorAll(".detail .token-text")].map((t) => t.textContent).join("|");
        out.classes = [...root.querySelectorAll("[name=class] option")].map((o) => o.textContent).join("|");
        out.rows = root.querySelectorAll(".by-class .grid").length;
        out.logits = root.querySelectorAll(".detail .logits rect").length;
        const select = root.querySelector("[name=dictionary]");
        select.value = "a_words/h.1/topk"; select.dispatchEvent(new Event("change"));
        const canvas = root.querySelector(".detail .picture canvas");
        out.size = `${canvas.width}x${canvas.height}`;
        out.pixels = [...canvas.getContext("2d").getImageData(0, 0, 2, 1).data].join();
        };</script>""".replace("LATENT", str(words.latents[0].latent)),
        encoding="utf-8",
    )
    page, console = opened(harness, tmp_path / "profile")
    assert console == ""
    seen = {key.removeprefix("data-"): str(value) for key, value in page.body.items()}
    assert seen["texts"].startswith("<i>the token ") and seen["classes"] == "any|noun|verb|<b>"
    assert (seen["rows"], seen["logits"], seen["size"]) == ("3", "4", "3x2")
    assert seen["pixels"] == "255,255,255,255,0,0,0,255", "a Z is the darkest of 62 levels"


WORDS = """<!doctype html><title>words</title>
<iframe id="f" src="index.html#latent=a_words/h.0/topk/LATENT" style="width:WIDTHpx;height:1400px;border:0"></iframe>
<script>
f.onload = () => {
  const d = f.contentDocument, w = f.contentWindow, out = document.body.dataset, root = d.getElementById("explorer");
  const form = root.querySelector("form"), control = (name) => form.elements.namedItem(name);
  const all = (selector) => [...root.querySelectorAll(selector)];
  const set = (name, value, event) => {
    control(name).value = value;
    control(name).dispatchEvent(new w.Event(event, {bubbles: true}));
  };
  const detail = ".detail .contexts .context";
  const lines = all(detail).map((line) => [...line.querySelectorAll(".word")]);
  out.contexts = JSON.stringify(lines.map((line) => line.map((x) => x.textContent)));
  out.marks = JSON.stringify(lines.map((line) => line.findIndex((x) => x.tagName === "MARK")));
  out.shades = JSON.stringify(lines.map((line) => line.map((x) => x.style.backgroundColor)));
  out.titles = lines.flat().every((x) => x.title.startsWith(x.textContent) && x.title.length > x.textContent.length);
  out.bars = all(".detail .logits rect").length;
  out.named = all(".detail .logits text:not(.soft)").map((t) => t.textContent).join("|");
  out.effect = root.querySelector(".detail .pair").parentElement.querySelector("p").textContent;
  out.histogram = all(".detail .by-class .grid").length;
  out.glimpses = all("tbody .context").length;
  out.scripts = d.querySelectorAll("#latents script:not([type])").length;
  const outside = (e) => !e.closest(".scroll") && e.getBoundingClientRect().right > WIDTH + .5;
  out.wide = all("*").filter(outside).map((e) => e.outerHTML.slice(0, 80)).join(" ");
  const numbers = () => all("tbody a").map((a) => a.textContent).join(" ");
  set("token", "WORD7", "input"); out.exact = numbers();
  set("token", "word", "input"); out.begins = numbers();
  set("token", "no such word", "input"); out.none = root.querySelector(".count").textContent;
  set("token", "", "input"); out.every = numbers();
  set("dictionary", control("dictionary").options[1].value, "change");
  const box = control("token").closest("label");
  out.hidden = `${box.hidden} ${w.getComputedStyle(box).display}`;
  out.done = "yes";
};
</script>"""


@pytest.mark.parametrize("width", [390, 1280])
def test_contexts_of_words_are_marked_shaded_and_searched(results_root: Path, width: int, tmp_path: Path) -> None:
    pages = word_pages(np.random.default_rng(3), 20, 64)
    made = gallery_of(pages, "a_words", "h.0")
    GALLERY.save(
        Galleries(target="a_words", dictionaries=[made]), results_root / "data/dictionaries/a_words/gallery.json"
    )
    run(Config(n_gallery=30, max_failures=100))
    chosen, words = pages.latents[6], [shown_word(word) for word in pages.words]
    harness = results_root / "report" / f"words-{width}.html"
    text = WORDS.replace("LATENT", str(chosen.latent)).replace("WIDTH", str(width))
    harness.write_text(text, encoding="utf-8")
    page, console = opened(harness, tmp_path / "profile")
    assert console == ""
    seen = {key.removeprefix("data-"): str(value) for key, value in page.body.items()}
    assert seen["done"] == "yes" and seen["wide"] == "" and seen["titles"] == "true" and seen["scripts"] == "0"
    assert json.loads(seen["contexts"]) == [[words[k] for k in pages.contexts[n]] for n in chosen.images]
    assert json.loads(seen["marks"]) == list(chosen.marked)
    for heat, shades in zip(chosen.heat, json.loads(seen["shades"]), strict=True):
        assert shades[0] == "" and (shades[1] == "") == (heat[1] < 2)
        strongest = max(range(len(heat)), key=lambda k: heat[k])
        assert float(shades[strongest].rstrip(")").split(",")[3]) == pytest.approx(
            0.06 + 0.005 * heat[strongest], abs=0.02
        )
    moved = chosen.moved
    shown = [*moved.added_up, *reversed(moved.added_down), *moved.ablated_up, *reversed(moved.ablated_down)]
    assert seen["bars"] == "20" and seen["named"].split("|") == [words[k][:12] for k, _ in shown]
    assert "nats" in seen["effect"] and seen["histogram"] == "4" and seen["glimpses"] == "20"

    def holding(test: Callable[[str], bool]) -> set[int]:
        numbers = {k for k, word in enumerate(words) if test(word.strip())}
        return {one.latent for one in pages.latents if any(numbers & {*pages.contexts[n]} for n in one.images)}

    assert set(map(int, seen["exact"].split())) == holding(lambda word: word == "word7")
    assert set(map(int, seen["begins"].split())) == holding(lambda word: word.startswith("word"))
    assert 0 < len(seen["exact"].split()) < len(seen["every"].split()) == 20
    assert seen["none"] == "0 of 20 found." and seen["hidden"] == "true none"


def test_a_link_to_a_latent_that_is_not_there_does_no_harm(report: Path, tmp_path: Path) -> None:
    for number, hash_ in enumerate(("latent=digits_mlp/layers.0.hook_post/topk/99999", "latent=no/such/1", "latent=%")):
        harness = report.with_name(f"dead-{number}.html")
        harness.write_text(
            f'<iframe id="f" src="index.html#{hash_}"></iframe><script>f.onload = () => document.body.dataset.title ='
            ' f.contentDocument.querySelector(".detail h3").textContent</script>',
            encoding="utf-8",
        )
        page, console = opened(harness, tmp_path / f"profile-{number}")
        assert console == "" and str(page.body["data-title"]).startswith("Latent ")
