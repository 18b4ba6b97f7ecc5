"""Dictionaries of targets of words: what a row is about, what is replaced, what the gallery shows; by plain loops."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stages.activations.cache import ActivationCache
from stages.activations.writer import write_caches
from stages.contracts.dictionary_rows import DICTIONARY_METRICS, GALLERY, DictionaryRow, Gallery
from stages.contracts.target import Target, telling_places
from stages.dictionaries import stage
from stages.dictionaries.evaluation import gallery, splicing
from stages.dictionaries.evaluation.evaluate import Codec, HeldOut, codec_of, evaluate, held_out, load_codec
from stages.dictionaries.evaluation.gallery import effects_of, gallery_of
from stages.dictionaries.evaluation.splicing import replaced_logits
from stages.dictionaries.evaluation.subjects import N_WORDS, contexts, frequent_words, subjects
from stages.dictionaries.evaluation.word_pages import AFTER, BEFORE, WordPages
from stages.targets.storage import load_words, save_target
from tests.conftest import make_target
from tests.dictionaries.test_dictionaries_stage import make_config

HOOKS = {"facts_lm": "blocks.0.hook_resid_post", "context_lm": "blocks.1.attn.hook_z"}


class Made(NamedTuple):
    root: Path
    targets: dict[str, Target]
    rows: dict[str, tuple[DictionaryRow, ...]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("words")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_ROOT", str(root))
        patch.setenv("LENSMITH_TRACKING", "off")
        targets, rows = {}, {}
        trained_on = {
            name: {"hooks": [hook], "n_latents": 48, "steps": 60, "n_examples": 60} for name, hook in HOOKS.items()
        }
        config = make_config(trained_on=trained_on)
        for name in HOOKS:
            targets[name] = make_target(name, steps=0, n=80)
            save_target(targets[name], root / "data" / "targets" / name)
            for split in ("train", "validation"):
                write_caches(targets[name], split)
            rows[name] = stage.run(config, name)
        yield Made(root, targets, rows)


def _measured(made: Made, name: str) -> tuple[Codec, HeldOut, Tensor]:
    held = held_out(made.targets[name], HOOKS[name], 100, n_examples=60)
    codec = load_codec(made.root / "data/dictionaries" / name / HOOKS[name] / "topk")
    with torch.no_grad():
        return codec, held, codec.encode(held.rows.acts)


def _words_at(inputs: Tensor, example: int, place: int) -> tuple[int, ...]:
    """The present words up to a place."""
    return tuple(int(i) for i, there in inputs[example, : place + 1] if there > 0.5)


def test_contexts_are_equal_where_the_words_up_to_a_place_are():
    rows = [[(0, 0), (1, 1), (2, 1)], [(1, 1), (9, 0), (2, 1)], [(2, 1), (1, 1), (2, 1)], [(7, 0), (7, 0), (7, 0)]]
    inputs = torch.tensor(rows, dtype=torch.float32)
    found = contexts(inputs)
    seen: dict[tuple[int, ...], int] = {}
    for example in range(4):
        for place in range(3):
            number = int(found[example, place])
            if inputs[example, place, 1] < 0.5:
                assert number == -1
            else:
                assert seen.setdefault(_words_at(inputs, example, place), number) == number
    assert sorted(seen.values()) == list(range(len(seen))) and len(seen) == 5
    assert contexts(torch.zeros(2, 3, 2)).tolist() == [[-1] * 3] * 2


@pytest.mark.parametrize("name", HOOKS)
def test_a_row_is_about_its_context_and_its_class_is_the_word_at_its_place(made: Made, name: str) -> None:
    target = made.targets[name]
    rows = ActivationCache.open(name, HOOKS[name], "validation").read()
    about, words = subjects(target, "validation", rows), frequent_words(target)
    inputs, train = target.corpus("validation").inputs, target.corpus("train").inputs
    kept = telling_places(target.spec, train)
    counts: dict[int, int] = {}
    for id_, there in zip(train[..., 0].flatten().long().tolist(), kept.flatten().tolist(), strict=True):
        counts[id_] = counts.get(id_, 0) + there
    assert words.tolist() == sorted(counts, key=lambda i: (-counts[i], i))[:N_WORDS] and about.n_classes == N_WORDS
    assert about.pixels is None and about.words.tolist() == words.tolist()
    numbers: dict[tuple[int, ...], int] = {}
    for row in range(0, len(rows.acts), 7):
        example, place = int(rows.example[row]), int(rows.position[row])
        said = _words_at(inputs, example, place)
        assert numbers.setdefault(said, int(about.image[row])) == int(about.image[row])
        assert int(about.classes[row]) == (words.tolist().index(said[-1]) if said[-1] in words.tolist() else -1)
    assert len(set(numbers.values())) == len(numbers)


@pytest.mark.parametrize("name", HOOKS)
def test_every_metric_is_measured_or_says_why_not(made: Made, name: str) -> None:
    assert made.rows[name] == DICTIONARY_METRICS.load(made.root / "data/dictionaries" / name / "metrics.json")
    for row in made.rows[name]:
        assert row.n_validation_examples <= 60
        assert set(row.undefined) == {"monosemanticity", "monosemanticity_shuffled"}
        assert all("words have none" in reason for reason in row.undefined.values())
        for metric, found in row.metrics().items():
            lacks = metric in row.undefined or metric.startswith(("absorption", "splitting", "stability"))
            assert lacks or found.value is not None, metric
        assert row.monosemanticity.value is None and row.n_monosemanticity_latents == 0
    kept = next(row for row in made.rows[name] if row.architecture == "topk")
    assert kept.explained_variance.value > kept.explained_variance.null


@pytest.mark.parametrize("name", HOOKS)
def test_only_rows_are_replaced_and_in_parts_as_in_one_pass(
    made: Made, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, hook = made.targets[name], HOOKS[name]
    inputs = target.corpus("validation").inputs[:20]
    kept = telling_places(target.spec, inputs)

    def zero(acts: Tensor, hook: Any) -> Tensor:
        return torch.where(kept.reshape(*kept.shape, *([1] * (acts.dim() - 2))), 0.0, acts)

    with torch.no_grad():
        expected = target.model.run_with_hooks(inputs, fwd_hooks=[(hook, zero)])
        untouched = target.model(inputs)
    torch.testing.assert_close(replaced_logits(target, hook, inputs, torch.zeros_like), expected, rtol=0, atol=1e-5)
    monkeypatch.setattr(splicing, "PASS_WORDS", 3 * inputs.shape[1])
    torch.testing.assert_close(replaced_logits(target, hook, inputs, torch.zeros_like), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(replaced_logits(target, hook, inputs, lambda rows: rows), untouched)
    assert (expected - untouched).abs().max() > 1e-3


def test_an_identity_dictionary_does_no_harm_to_words(made: Made) -> None:
    held = held_out(made.targets["facts_lm"], HOOKS["facts_lm"], 100)
    width = held.rows.acts.shape[1]
    eye = torch.cat([torch.eye(width), -torch.eye(width)])
    cfg = {"architecture": "standard", "d_in": width, "d_sae": 2 * width, "apply_b_dec_to_input": True}
    zeros = {"b_enc": torch.zeros(2 * width), "b_dec": torch.zeros(width)}
    values = evaluate(codec_of({"cfg": cfg, "W_enc": eye.T, "W_dec": eye, **zeros}), held, 20, 0)
    assert values.explained_variance.value == pytest.approx(1.0) and values.top1_agreement.value == 1.0
    assert values.loss_spliced.value == pytest.approx(values.loss_clean.value, abs=1e-4)


def _gallery(made: Made, name: str) -> tuple[Gallery, ...]:
    return GALLERY.load(made.root / "data/dictionaries" / name / "gallery.json").dictionaries


@pytest.mark.parametrize("name", HOOKS)
def test_contexts_marks_and_heat_are_those_of_the_rows(made: Made, name: str) -> None:
    one = next(one for one in _gallery(made, name) if one.architecture == "topk")
    _, held, latents = _measured(made, name)
    names = load_words(name)
    inputs = made.targets[name].corpus("validation").inputs
    row_of = {
        (int(example), int(place)): row
        for row, (example, place) in enumerate(zip(held.rows.example, held.rows.position, strict=True))
    }
    assert set(one.images) == {""} and len(one.images) == len(one.contexts) and one.grid is None
    assert one.class_names == (*(names[i] for i in frequent_words(made.targets[name]).tolist()), "other words")
    assert len(set(one.words)) == len(one.words)
    for page in one.latents:
        assert len(set(page.examples)) == len(page.examples) == len(page.heat) == len(page.marked) <= 9
        largest = float(latents[:, page.latent].max())
        shown = zip(page.images, page.examples, page.positions, page.heat, page.marked, strict=True)
        for image, example, position, heat, mark in shown:
            places = [place for place in range(inputs.shape[1]) if inputs[example, place, 1] > 0.5]
            said = [names[int(inputs[example, place, 0])] for place in places]
            assert [one.words[number] for number in one.contexts[image]] == said and places[mark] == position
            assert heat[0] == -1 and -1 not in heat[1:]
            for place, level in list(zip(places, heat, strict=True))[1:]:
                z = float(latents[row_of[example, place], page.latent])
                assert abs(level - max(0.0, 100 * z / largest)) <= 0.51
        assert page.heat[0][page.marked[0]] == 100
        fired = (latents[:, page.latent] != 0).double()
        assert len(page.histogram[0]) == len(one.class_names) == N_WORDS + 1 > page.class_ + 1
        assert sum(page.class_histogram) == int(fired.sum()) and page.density == pytest.approx(
            float(fired.mean()), 1e-3
        )


@pytest.mark.parametrize("name", HOOKS)
def test_the_words_that_move_most_are_those_of_one_pass_at_a_time(
    made: Made, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec, held, latents = _measured(made, name)
    chosen = (latents != 0).sum(0).argsort(descending=True)[:3]
    whole = effects_of(codec, held, latents, chosen)
    monkeypatch.setattr(gallery, "EFFECT_LOGITS", 1)  # one latent at a time
    monkeypatch.setattr(gallery, "PASS_WORDS", 1)  # one input at a time
    for one, other in zip(whole, effects_of(codec, held, latents, chosen), strict=True):
        torch.testing.assert_close(one.logit_effect, other.logit_effect, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.ablated_logits, other.ablated_logits, rtol=0, atol=1e-5)
        assert one.ablation.loss == pytest.approx(other.ablation.loss, abs=1e-5)
    direction = gallery.directions_of(codec, chosen)[0]
    kept = telling_places(held.target.spec, held.inputs)
    z = torch.zeros(*kept.shape)
    z[held.cluster, held.rows.position] = latents[:, chosen[0]]
    mean = float(z[z != 0].mean())

    def added(example: int) -> Tensor:
        def hook(acts: Tensor, hook: Any) -> Tensor:
            change = kept[example].float().unsqueeze(-1) * mean * direction
            return acts + change.reshape(acts.shape)

        with torch.no_grad():
            return held.target.model.run_with_hooks(held.inputs[example : example + 1], fwd_hooks=[(held.hook, hook)])[
                0
            ]

    sample = [round(i * (held.n_examples - 1) / 7) for i in range(8)]
    expected = torch.stack([added(i) - held.clean[i] for i in sample]).mean(0)
    torch.testing.assert_close(whole[0].logit_effect.float(), expected, rtol=0, atol=1e-4)
    page = next(page for page in gallery_of(codec, held, 48).latents if page.latent == int(chosen[0]))
    words, names = gallery_of(codec, held, 48).words, load_words(name)
    assert page.logit_effect == () and page.ablation.logits == ()
    best = expected.double().argsort(descending=True)
    assert names[int(best[0])] == words[page.moved.added_up[0][0]]
    assert page.moved.added_up[0][1] == pytest.approx(float(expected[best[0]]), rel=1e-2, abs=1e-4)
    assert len(page.moved.added_up) == len(page.moved.ablated_down) == 5


def test_a_long_context_is_cut_around_its_mark():
    inputs = torch.ones(1, 100, 2)
    inputs[0, :, 0] = torch.arange(100)
    inputs[0, :10, 1] = 0
    pages = WordPages([f"w{i}" for i in range(100)], inputs)
    for place, mark, first in ((11, 1, 10), (99, BEFORE + AFTER, 36), (70, BEFORE, 23)):
        number, places, at = pages.context(0, place)
        assert (at, int(places[0]), len(places)) == (mark, first, BEFORE + AFTER + 1)
        assert pages.words[pages.contexts[number][at]] == f"w{place}"
    assert pages.context(0, 12)[0] == pages.context(0, 11)[0], "the same stretch is stored once"


def test_files_of_words_are_small(made: Made) -> None:
    for name in HOOKS:
        file = made.root / "data/dictionaries" / name / "gallery.json"
        n = sum(len(one["latents"]) for one in json.loads(file.read_text(encoding="utf-8"))["dictionaries"])
        assert file.stat().st_size / n < 6000
