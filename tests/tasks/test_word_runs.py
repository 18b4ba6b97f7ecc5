"""Last blocks trained side by side, and the families about them: one at a time, in the whole model, by torch's Adam."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from stages.tasks.families import family, relearning_speed
from stages.tasks.families.relearning_speed import WORD_EDITS
from stages.tasks.generation import make, pool_of
from stages.tasks.inputs import kinds_of
from stages.tasks.word_runs import BlockRuns
from tests.tasks.conftest import climbs, small_target, taught_facts

LAST = "blocks.2."
TRAINED = ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O", "b_O", "W_in", "b_in", "W_out", "b_out")


def alone(target, weights, rate):
    """A model of one run's weights, of which the last block's matrices are trained, and its optimiser."""
    model = copy.deepcopy(target.model)
    model.load_state_dict(weights, strict=False)
    names = [name for name, _ in model.named_parameters() if name.startswith(LAST) and name.split(".")[-1] in TRAINED]
    model.requires_grad_(False)
    for name in names:
        model.get_parameter(name).requires_grad_(True)
    return model, names, torch.optim.Adam([model.get_parameter(name) for name in names], lr=rate)


def test_runs_of_a_block_are_what_adam_does_to_the_whole_model_alone():
    target, rng = small_target("facts_lm"), torch.Generator().manual_seed(0)
    inputs, labels = target.corpus("train")
    rates = torch.tensor([1e-3, 3e-3])
    runs, batches = BlockRuns(target, inputs, rates), torch.randint(len(labels), (5, 2, 12), generator=rng)
    for index in batches:
        runs.step(index, labels[index])
    found, outputs = runs.full(), runs.outputs(batches[0])
    for i in range(2):
        model, names, optimiser = alone(target, {}, float(rates[i]))
        for index in batches[:, i]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(inputs[index]), labels[index]).backward()
            optimiser.step()
        assert set(found) == set(names)
        for name in names:
            if not name.endswith("b_K"):  # its slope is 0 but for rounding, and Adam makes steps of that
                close = (found[name][i] - model.get_parameter(name)).abs() < 1e-4
                assert close.double().mean() > 0.98, name
        with torch.no_grad():
            expected = model(inputs[batches[0, i]])
        assert (outputs[i] - expected).abs().mean() < 0.01 * expected.std()


def test_training_diff_of_words_is_the_share_of_one_kind_in_what_was_trained_on(monkeypatch):
    target, seen = small_target("facts_lm"), []
    step = BlockRuns.step

    def recorded(self, index, labels):
        seen.append((index, labels))
        step(self, index, labels)

    monkeypatch.setattr(BlockRuns, "step", recorded)
    made = make(family("training_diff"), target, "train", 8, 0, "test", b"key")
    corpus, truth = target.corpus("train"), made.truth.values[:, 0]
    kinds = kinds_of(target, corpus)
    index = torch.stack([rows for rows, _ in seen])
    for i, favoured in enumerate(made.truth.groups["favoured"]):
        drawn = kinds[index[:, i].flatten()]
        base = float((kinds == torch.unique(kinds)[favoured]).double().mean())
        share = float((drawn == torch.unique(kinds)[favoured]).double().mean())
        assert (share - base) / (1 - base) == pytest.approx(float(truth[i]), abs=0.05)
    changed = torch.stack([labels != corpus.labels[rows] for rows, labels in seen]).double().mean()
    assert 0 < float(changed) < 0.05
    assert all(name.startswith(LAST) for name in made.instances.variants)


@pytest.mark.parametrize("edit", WORD_EDITS)
def test_an_edit_takes_what_a_kind_is_answered_with_from_one_weight(edit, monkeypatch):
    target = taught_facts()
    monkeypatch.setattr(relearning_speed, "NOISE", 0.0)
    monkeypatch.setattr(relearning_speed, "LEAST_PROMPTS", 12)
    monkeypatch.setattr(relearning_speed, "WORD_EDITS", (edit,))
    made = family("relearning_speed").generate(target, torch.Generator().manual_seed(2), 6)
    corpus, own = target.corpus("train"), dict(target.model.named_parameters())
    kinds, unembed = kinds_of(target, corpus), target.model.unembed.W_U.detach().double().numpy()
    for i, kind in enumerate(made.planted["class"].tolist()):
        changed = [name for name, stack in made.variants.items() if not torch.equal(stack[i], own[name])]
        assert changed == [LAST + edit[0]]
        answers = torch.unique(corpus.labels[kinds == kind]).numpy()
        towards = unembed[:, answers] - unembed.mean(1, keepdims=True)
        before = own[changed[0]].detach().double().numpy()
        after = made.variants[changed[0]][i].double().numpy()
        if before.ndim == 1:
            size, mean = np.linalg.norm(after - before), towards.mean(1)
            assert np.allclose(before - after, size * mean / np.linalg.norm(mean), atol=1e-3)
        else:
            before, after = (x.reshape(-1, x.shape[-1]) for x in (before, after))
            inside = before @ towards @ np.linalg.pinv(towards)  # the part in the span of the answers
            size = -np.sum((after - (before - inside)) * inside) / np.sum(inside * inside)
            assert np.allclose(after, before - (1 + size) * inside, atol=1e-3)
        assert edit[1] * 0.999 <= size <= edit[2] * 1.001


def test_relearning_speed_of_words_is_the_mean_accuracy_on_the_way(monkeypatch):
    target = taught_facts()
    monkeypatch.setattr(relearning_speed, "LEAST_PROMPTS", 12)
    made = make(family("relearning_speed"), target, "train", 6, 0, "test", b"key")
    again = make(family("relearning_speed"), target, "train", 6, 0, "test", b"key")
    assert torch.equal(made.truth.values, again.truth.values)
    assert set(made.instances.arrays) == {"variant", "shared_inputs", "shared_labels", "shared_groups"}
    assert climbs("relearning_speed", target, made.instances.public())
    train, held_out = target.corpus("train"), pool_of(target, "train", b"key").corpus("tasks")
    kinds, generator, found = kinds_of(target, held_out), torch.Generator().manual_seed(5), []
    for i, kind in enumerate(made.truth.groups["class"]):
        weights = {name: stack[i] for name, stack in made.instances.variants.items()}
        model, _, optimiser = alone(target, weights, relearning_speed.WORD_RATE)
        shares = []
        for step in range(1, 41):  # other batches: a mean over 40 steps hangs little on which ones they are
            index = torch.randint(len(train.labels), (32,), generator=generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(train.inputs[index]), train.labels[index]).backward()
            optimiser.step()
            if step % 5 == 0:
                right = model(held_out.inputs[kinds == kind]).argmax(-1) == held_out.labels[kinds == kind]
                shares.append(right.double().mean().item())
        found.append(np.mean(shares))
    print(found, made.truth.values[:, 0], made.truth.groups)
    assert np.std(found) > 0.05
    assert np.abs(np.array(found) - made.truth.values[:, 0].numpy()).mean() < 0.12
