"""The gallery's records against slow and plain computations of the same."""

from typing import Any

import pytest
import torch
from torch import Tensor

from stages.contracts.dictionary_rows import GALLERY, Gallery
from stages.dictionaries.evaluation.evaluate import (
    Codec,
    HeldOut,
    held_out,
    load_codec,
)
from stages.dictionaries.evaluation.gallery import (
    N_BINS,
    N_EFFECT,
    directions_of,
    effects_of,
    gallery_of,
    grid_of,
)
from tests.dictionaries.test_dictionaries_stage import HOOKS, Finished, finished

__all__ = ["finished"]  # the fixture is shared

ARCHITECTURES = ("standard", "topk", "batchtopk")


def _gallery(finished: Finished, target: str) -> tuple[Gallery, ...]:
    return GALLERY.load(finished.root / "data/dictionaries" / target / "gallery.json").dictionaries


def _measured(finished: Finished, target: str, architecture: str) -> tuple[Codec, HeldOut, Tensor]:
    held = held_out(finished.targets[target], HOOKS[target], 100)
    codec = load_codec(finished.root / "data/dictionaries" / target / HOOKS[target] / architecture)
    with torch.no_grad():
        return codec, held, codec.encode(held.rows.acts)


@pytest.mark.parametrize("target", HOOKS)
def test_images_are_distinct_strongest_first_and_stored_once(finished: Finished, target: str) -> None:
    galleries = _gallery(finished, target)
    assert [one.architecture for one in galleries] == list(ARCHITECTURES)
    for one in galleries:
        assert 1 <= len(one.latents) <= 6 and one.sparsity > 0
        assert len(set(one.images)) == len(one.images)
        assert all(len(image) == 64 and set(image) <= set("0123456789abcdefg") for image in one.images)
        used = {number for page in one.latents for number in page.images}
        assert used == set(range(len(one.images)))
        for page in one.latents:
            assert len(set(page.images)) == len(page.images) <= 9
            assert page.activations == tuple(sorted(page.activations, reverse=True)) and page.activations[-1] > 0
            assert page.activations[0] == page.max_activation
            assert len(page.classes) == len(page.positions) == len(page.examples) == len(page.images)
            assert max(page.class_histogram) / sum(page.class_histogram) == pytest.approx(page.purity, abs=1e-3)


def test_an_image_is_the_one_of_its_example(finished: Finished) -> None:
    one = _gallery(finished, "digits_mlp")[1]
    inputs = finished.targets["digits_mlp"].corpus("validation").inputs
    for page in one.latents:
        for image, example in zip(page.images, page.examples, strict=True):
            levels = [int(shade, 17) for shade in one.images[image]]
            assert levels == (inputs[example].flatten()[:64] * 16).round().long().tolist()


@pytest.mark.parametrize("target", HOOKS)
def test_the_histogram_counts_every_positive_firing_of_its_class(finished: Finished, target: str) -> None:
    codec, held, latents = _measured(finished, target, "topk")
    for page in gallery_of(codec, held, 4).latents:
        counts = page.histogram
        assert len(counts) == N_BINS and all(len(row) == 10 for row in counts)
        assert [sum(row[label] for row in counts) for label in range(10)] == list(page.class_histogram)
        z = latents[:, page.latent]
        half = sum((z[held.about.classes == 3] > float(z.max()) / 2).tolist())
        assert sum(row[3] for row in counts[N_BINS // 2 :]) == half
        assert page.mean_activation == pytest.approx(float(z[z != 0].double().mean()), rel=1e-3)


def test_heat_is_the_activation_at_every_position_of_the_example(finished: Finished) -> None:
    assert all(page.heat is None for page in _gallery(finished, "digits_mlp")[0].latents)
    assert _gallery(finished, "digits_mlp")[0].grid is None
    codec, held, latents = _measured(finished, "digits_few_shot", "topk")
    gallery = gallery_of(codec, held, 3)
    positions = int(held.rows.position.max()) + 1
    assert gallery.grid == (1, positions) and positions > 1
    for page in gallery.latents:
        z = latents[:, page.latent]
        for example, own, heat in zip(page.examples, page.positions, page.heat, strict=True):
            for position in range(positions):
                row = ((held.rows.example == example) & (held.rows.position == position)).nonzero().item()
                assert abs(heat[position] - 100 * float(z[row] / z.max())) <= 0.51
            assert heat[own] == max(heat) or heat[own] > 0


@pytest.mark.parametrize(
    ("shape", "positions", "expected"),
    [
        ((64,), 1, None),
        ((17, 32), 17, (1, 17)),
        ((6, 5, 8), 30, (6, 5)),
        ((8, 6, 5), 30, (6, 5)),
        ((17, 4, 8), 17, (1, 17)),
    ],
)
def test_the_grid_is_the_axes_that_hold_the_positions(shape, positions, expected):
    assert grid_of(shape, positions) == expected


def test_neighbours_are_the_live_latents_of_largest_cosine(finished: Finished) -> None:
    codec, held, latents = _measured(finished, "digits_mlp", "standard")
    live = set((latents != 0).any(0).nonzero().flatten().tolist())
    for page in gallery_of(codec, held, 4).latents:
        own = codec.decoder[page.latent]
        cosines = {
            other: float(torch.cosine_similarity(own, codec.decoder[other], dim=0)) for other in live - {page.latent}
        }
        best = sorted(cosines, key=lambda other: -cosines[other])[:5]
        assert [number for number, _ in page.neighbours] == best
        assert [value for _, value in page.neighbours] == pytest.approx([cosines[b] for b in best], rel=1e-3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_directions_are_what_a_unit_adds(finished: Finished, architecture: str) -> None:
    codec, _, latents = _measured(finished, "digits_mlp", architecture)
    chosen = torch.tensor([0, 7, 31])
    one = latents[:5].clone()
    for latent, direction in zip(chosen.tolist(), directions_of(codec, chosen), strict=True):
        more = one.clone()
        more[:, latent] += 2.0
        torch.testing.assert_close(
            codec.decode(more) - codec.decode(one), 2 * direction.expand(5, -1), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("target", HOOKS)
def test_effects_are_those_of_one_forward_pass_at_a_time(finished: Finished, target: str) -> None:
    """Each example by itself, hooked by hand, the change of every position written out."""
    codec, held, latents = _measured(finished, target, "topk")
    chosen = (latents != 0).sum(0).argsort(descending=True)[torch.tensor([0, 9, 30])]
    found = effects_of(codec, held, latents, chosen)
    positions = int(held.rows.position.max()) + 1

    def logits(example: int, change: Tensor) -> Tensor:
        def hook(acts: Tensor, hook: Any) -> Tensor:
            return acts + change.reshape(acts.shape)

        with torch.no_grad():
            return finished.targets[target].model.run_with_hooks(
                held.inputs[example : example + 1], fwd_hooks=[(held.hook, hook)]
            )[0]

    for latent, effect in zip(chosen.tolist(), found, strict=True):
        direction = directions_of(codec, torch.tensor([latent]))[0]
        z = torch.zeros(held.n_examples, positions)
        for row in range(len(latents)):
            z[held.cluster[row], held.rows.position[row]] = latents[row, latent]
        firing = sorted((n for n in range(held.n_examples) if (z[n] != 0).any()), key=lambda n: -float(z[n].max()))
        n = min(N_EFFECT, len(firing))
        on = [firing[round(i * (len(firing) - 1) / (n - 1)) if n > 1 else 0] for i in range(n)]
        assert effect.ablation.n == n
        changes = torch.stack([logits(i, -z[i].unsqueeze(-1) * direction) - held.clean[i] for i in on])
        assert effect.ablation.logits == pytest.approx(changes.mean(0).tolist(), abs=2e-3)
        losses = [
            float(torch.nn.functional.cross_entropy(held.clean[i] + change, held.labels[i])
                  - torch.nn.functional.cross_entropy(held.clean[i], held.labels[i]))
            for i, change in zip(on, changes, strict=True)
        ]  # fmt: skip
        assert effect.ablation.loss == pytest.approx(sum(losses) / n, abs=2e-3)
        flips = [
            float((held.clean[i] + c).argmax() != held.clean[i].argmax()) for i, c in zip(on, changes, strict=True)
        ]
        assert effect.ablation.changed == pytest.approx(sum(flips) / n, abs=1e-3)
        mean = float(latents[:, latent][latents[:, latent] != 0].mean())
        sample = [round(i * (held.n_examples - 1) / (N_EFFECT - 1)) for i in range(N_EFFECT)]
        added = torch.stack([logits(i, (mean * direction).expand(positions, -1)) - held.clean[i] for i in sample])
        assert effect.logit_effect == pytest.approx(added.mean(0).tolist(), abs=2e-3)
        assert max(map(abs, effect.logit_effect)) > 0


def test_all_live_latents_can_be_had_and_the_rarest_come_last(finished: Finished) -> None:
    codec, held, latents = _measured(finished, "digits_few_shot", "standard")
    gallery = gallery_of(codec, held, 2000)
    live = (latents != 0).any(0).nonzero().flatten().tolist()
    assert sorted(page.latent for page in gallery.latents) == live and gallery.n_live == len(live)
    rare = [page.n_images < 5 for page in gallery.latents]
    assert rare == sorted(rare)
    size = len(gallery.model_dump_json()) / len(live)
    assert size < 3000


def test_a_dictionary_without_live_latents_has_an_empty_gallery(finished: Finished) -> None:
    codec, held, _ = _measured(finished, "digits_mlp", "standard")
    silent = codec._replace(encode=lambda acts: torch.zeros(len(acts), codec.n_latents))
    gallery = gallery_of(silent, held, 5)
    assert gallery.latents == () and gallery.n_live == 0
