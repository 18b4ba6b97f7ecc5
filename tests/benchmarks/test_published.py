"""Evaluations of others as tasks: their truths by other ways, and the rows of the benchmark."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.base.paths import secret_file
from stages.benchmarks import published, set_faithfulness
from stages.benchmarks.latent_f1 import LatentF1, f1, latent_place
from stages.benchmarks.set_faithfulness import SetFaithfulness, held_at_means, names_of
from stages.contracts.target import Component, Target
from stages.errors import UserError
from stages.targets.storage import load_target, save_target
from stages.tasks.components import mean_activations
from stages.tasks.directions import activations, place_of
from tests.conftest import make_target
from tests.tasks.conftest import small_target
from tests.toy import ROOT, rooted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("published")
    shutil.copytree(ROOT / "params", root / "params")
    with rooted(root):
        secret_file().parent.mkdir(parents=True)
        secret_file().write_text("07" * 32 + "\n", encoding="ascii")  # no number of a test hangs on a draw
        save_target(make_target("digits_mlp", steps=400), root / "data" / "targets" / "digits_mlp")
        yield root


def logits_with_means(target: Target, inputs: torch.Tensor, means: list[torch.Tensor], kept: list[bool]) -> np.ndarray:
    """By hooks that write the mean over each component that is not kept."""
    hooks = []
    for component, mean, stays in zip(target.spec.components, means, kept, strict=True):
        if not stays:

            def write(value, hook, component=component, mean=mean):
                value.select(component.axis, component.index).copy_(mean)
                return value

            hooks.append((component.hook_point, write))
    with torch.no_grad(), target.model.hooks(fwd_hooks=hooks):
        return target.model(inputs).double().numpy()


@pytest.mark.parametrize("name", ["digits_mlp", "context_lm"])
def test_what_a_set_keeps_is_the_share_of_the_margin_with_the_means_written_by_hooks(name: str) -> None:
    target, made, rng = small_target(name), SetFaithfulness(), torch.Generator().manual_seed(0)
    instances = made.generate(target, rng, 3)
    truth = made.ground_truth(target, instances, rng).values
    inputs, labels = instances.arrays["shared_inputs"], instances.arrays["shared_labels"].tolist()
    train = target.corpus("train").inputs
    means = []
    for component in target.spec.components:
        held: list[torch.Tensor] = []
        with (
            torch.no_grad(),
            target.model.hooks(fwd_hooks=[(component.hook_point, lambda value, hook, held=held: held.append(value))]),
        ):
            target.model(train)
        said = held[0].select(component.axis, component.index)
        means.append((said[train[..., 1] > 0.5] if name == "context_lm" else said).mean(0))

    def margin(kept: list[bool]) -> float:
        rows = logits_with_means(target, inputs, means, kept)
        return float(np.mean([row[y] - np.delete(row, y).max() for row, y in zip(rows, labels, strict=True)]))

    n = len(target.spec.components)
    none, whole = margin([False] * n), margin([True] * n)
    for kept, found in zip(instances.arrays["kept"].bool().tolist(), truth[:, 0].tolist(), strict=True):
        assert sum(kept) == n // 2
        assert found == pytest.approx((margin(kept) - none) / (whole - none), abs=2e-3)


def test_a_set_of_all_is_the_target_and_a_component_has_weights_of_its_own() -> None:
    target = small_target("digits_mlp")
    means = mean_activations(target, target.corpus("train").inputs)
    variants = held_at_means(target, means, torch.ones(1, 96, dtype=torch.bool))
    state = target.model.state_dict()
    assert sorted(variants) == [f"layers.{i}.linear.{part}" for i in (0, 1) for part in ("bias", "weight")]
    assert all(torch.equal(stack[0], state[name]) for name, stack in variants.items())
    with pytest.raises(ValueError, match=r"write 'convs.0.hook_post' alone"):
        names_of(Component("convs.0.hook_post", 3, 0))


def test_better_sets_come_from_less_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    target, made = small_target("digits_mlp"), SetFaithfulness()
    kept = {}
    for noise in (0.0, 50.0):
        monkeypatch.setattr(set_faithfulness, "MAX_NOISE", noise)
        rng = torch.Generator().manual_seed(0)
        instances = made.generate(target, rng, 6)
        kept[noise] = float(made.ground_truth(target, instances, rng).values.mean())
        alike = len({tuple(row) for row in instances.arrays["kept"].tolist()})
        assert alike == (1 if noise == 0.0 else 6)
    assert kept[0.0] > kept[50.0] + 0.1


def test_f1_by_counting() -> None:
    generator = torch.Generator().manual_seed(0)
    said, right = (torch.rand(5, 40, generator=generator) < 0.3 for _ in range(2))
    said[4], right[4] = False, False
    for one, other, found in zip(said.tolist(), right.tolist(), f1(said, right).tolist(), strict=True):
        tp = sum(a and b for a, b in zip(one, other, strict=True))
        precision, recall = tp / max(1, sum(one)), tp / max(1, sum(other))
        assert found == pytest.approx(2 * precision * recall / (precision + recall) if tp else 0.0)


@pytest.mark.parametrize("name", ["digits_mlp", "small_cnn"])
def test_a_latent_fires_on_the_tenth_of_inputs_that_have_most_of_it(name: str) -> None:
    target, made, rng = small_target(name), LatentF1(), torch.Generator().manual_seed(1)
    instances = made.generate(target, rng, 6)
    arrays, place = instances.arrays, place_of(instances)
    assert place == latent_place(target.spec) and len(target.spec.hook(place).shape) == 1
    assert "right" not in instances.public().planted and "right" not in arrays

    def held(inputs: torch.Tensor) -> np.ndarray:
        found: list[torch.Tensor] = []
        with torch.no_grad(), target.model.hooks(fwd_hooks=[(place, lambda value, hook: found.append(value))]):
            target.model(inputs)
        return found[0].double().numpy()

    asked = held(arrays["shared_inputs"])
    rights = instances.planted["right"][0].tolist()
    truth = made.ground_truth(target, instances, rng).values[:, 0].tolist()
    for direction, label, found in zip(
        arrays["directions"].double().numpy(), arrays["labels"].tolist(), truth, strict=True
    ):
        strongest = np.argsort(-(asked @ direction))[:40].tolist()
        fires = [place in strongest for place in range(400)]
        hits = sum(on and right == label for on, right in zip(fires, rights, strict=True))
        assert found == pytest.approx(2 * hits / (sum(fires) + rights.count(label)), abs=0.03)
    assert np.std(truth) > 0


def test_a_latents_f1_on_train_images_says_much_of_its_f1_on_fresh_ones(folder: Path) -> None:
    """Room that can be reached: who keeps activations with their labels can count."""
    target, made, rng = load_target("digits_mlp"), LatentF1(), torch.Generator().manual_seed(3)
    instances = made.generate(target, rng, 60)
    truth = made.ground_truth(target, instances, rng).values[:, 0].numpy()
    inputs, labels = target.corpus("train")
    along = instances.arrays["directions"] @ activations(target, place_of(instances), inputs).T
    fires = along >= along.topk(len(labels) // 10, -1).values[:, -1:]
    counted = f1(fires, labels == instances.arrays["labels"].unsqueeze(1)).numpy()
    assert np.corrcoef(counted, truth)[0, 1] > 0.5


def test_rows_of_the_bench(folder: Path) -> None:
    questions = [(LatentF1(), "digits_mlp"), (SetFaithfulness(), "digits_mlp")]
    rows = published.bench_published(lambda said: None, questions, ["gradient", "nothing"], 2, 200)
    assert {(row.question, row.who) for row in rows} >= {
        (question, who)
        for question in ("latent_f1", "set_faithfulness")
        for who in (published.BLACK_BOX, published.TRUTH)
    }
    assert not any(row.who == "nothing" for row in rows), "who declines has no row"
    of = {(row.question, row.who): row for row in rows}
    for question in ("latent_f1", "set_faithfulness"):
        plain, truth = of[question, published.BLACK_BOX], of[question, published.TRUTH]
        for budget in ("tight", "medium", "ample"):
            assert getattr(plain, budget).value + getattr(truth, budget).value > 0.9, "the truth explains itself"
    with pytest.raises(UserError, match="at least 2"):
        published.bench_published(lambda said: None, questions, ["gradient"], 1)
    save_target(make_target("small_cnn", steps=0), folder / "data" / "targets" / "small_cnn")
    with pytest.raises(UserError, match="set_faithfulness means nothing on small_cnn: no weights are known"):
        published.bench_published(lambda said: None, [(SetFaithfulness(), "small_cnn")], ["inputs"], 2, 40)
