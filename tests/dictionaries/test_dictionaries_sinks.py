"""A massive activation at a place that has rows: it does not end a training, decide a metric or get replaced."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from stages.activations.cache import ActivationCache
from stages.activations.writer import write_caches
from stages.contracts.dictionary_rows import DictionaryRow
from stages.contracts.target import Target
from stages.dictionaries import stage
from stages.dictionaries.architectures.codec import decode, encode
from stages.dictionaries.evaluation.evaluate import held_out
from stages.dictionaries.evaluation.metrics import explained_variance
from stages.dictionaries.evaluation.sinks import SINK, largest_size, training_rows
from stages.dictionaries.evaluation.splicing import replaced_logits
from stages.dictionaries.training.train import recipe_for, train
from stages.targets.storage import save_target
from tests.conftest import make_target
from tests.dictionaries.test_dictionaries_stage import make_config

HOOK, PLACE, TIMES = "blocks.0.hook_resid_post", 12, 100.0


def plant(acts: Tensor, hook: Any = None) -> Tensor:
    """Activations of every input whose place 12 has rows a hundred times as large as usual, all in one direction."""
    direction = torch.nn.functional.normalize(
        torch.randn(acts.shape[-1], generator=torch.Generator().manual_seed(1)), dim=0
    )
    out = acts.clone()
    out[:, PLACE] = TIMES * acts.norm(dim=-1).median() * direction
    return out


class Planted(NamedTuple):
    target: Target
    rows: tuple[DictionaryRow, ...]
    usual: tuple[DictionaryRow, ...]
    """Of the same target without the sink."""


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    found = {}
    config = make_config(trained_on={"facts_lm": {"hooks": [HOOK], "n_latents": 48, "steps": 100}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_TRACKING", "off")
        for sink in (False, True):
            root = tmp_path_factory.mktemp("sink")
            patch.setenv("LENSMITH_ROOT", str(root))
            target = make_target("facts_lm", steps=0, n=150)
            save_target(target, root / "data/targets/facts_lm")
            if sink:
                target.model.hook_dict[HOOK].add_hook(plant, is_permanent=True)
            patch.setattr(stage, "load_target", lambda name, of=target: of)
            for split in ("train", "validation"):
                write_caches(target, split)
            found[sink] = target, stage.run(config, "facts_lm")
        yield Planted(*found[True], found[False][1])


def test_a_sink_in_every_input_does_not_decide_what_is_measured(planted: Planted) -> None:
    cache = ActivationCache.open("facts_lm", HOOK, "train").read()
    at = cache.position == PLACE
    sizes = cache.acts.norm(dim=1)
    assert 0.05 < at.double().mean() < 0.2 and float(sizes[at].min()) > 0.9 * TIMES * float(sizes[~at].median())
    for row, usual in zip(planted.rows, planted.usual, strict=True):
        assert row.n_sinks > 0 and usual.n_sinks == 0
        assert row.n_validation_rows + row.n_sinks == usual.n_validation_rows
        # Fewer rows, without those of one place: near and not equal. With the sinks it would read .99.
        assert row.explained_variance.value == pytest.approx(usual.explained_variance.value, abs=0.06)
        assert row.l0.value == pytest.approx(usual.l0.value, rel=0.25)


def test_a_sink_is_left_where_it_is(planted: Planted) -> None:
    target = planted.target
    held = held_out(target, HOOK, 100)
    assert not bool((held.rows.position == PLACE).any()) and held.n_sinks > 0
    seen: list[Tensor] = []

    def watch(acts: Tensor, hook: Any) -> None:
        seen.append(acts.clone())

    hook = target.model.hook_dict["blocks.1.hook_resid_pre"]
    hook.add_hook(watch)
    replaced_logits(target, HOOK, held.inputs[:5], torch.zeros_like, held.largest)
    hook.remove_hooks()
    present = held.inputs[:5, :, 1] > 0.5
    first = present & (present.long().cumsum(1) == 1)
    for example in range(5):
        for place in range(present.shape[1]):
            size = float(seen[0][example, place].norm())
            if present[example, place] and not first[example, place]:
                assert (size > held.largest) == (place == PLACE) and (size == 0.0) == (place != PLACE)


def test_one_row_a_hundred_times_as_large_does_not_end_a_training(planted: Planted) -> None:
    acts = training_rows(planted.target, ActivationCache.open("facts_lm", HOOK, "train"))
    assert not bool((acts.norm(dim=1) > largest_size(planted.target, acts)).any())
    one = acts.clone()
    one[7] = TIMES * acts.norm(dim=1).median() * torch.nn.functional.normalize(one[3], dim=0)
    for architecture, sparsity in (("standard", 1.0), ("topk", 6), ("batchtopk", 6)):
        recipe = recipe_for(architecture, 48, sparsity, 100, 64, 3e-3)
        found = []
        for rows in (acts, one):
            dictionary = train(rows, recipe, 0)
            with torch.no_grad():
                found.append(explained_variance(acts, decode(dictionary, encode(dictionary, acts))))
        assert found[1] > found[0] - 0.15, architecture


def test_images_have_no_sinks():
    target = make_target("digits_mlp", steps=0, n=20)
    assert largest_size(target, torch.ones(3, 4)) == float("inf") and SINK < TIMES
