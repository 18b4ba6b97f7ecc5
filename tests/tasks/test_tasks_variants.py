"""Families about variants that are trained side by side: one at a time, by torch's own optimiser."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.families import family, relearning_speed
from stages.tasks.side_by_side import Runs, climbed_variants, copies, outputs_of_variants
from tests.tasks.conftest import made_small, small_target
from tests.tasks.test_tasks_truth import mlp


def weights_of(instances, i):
    return {name: stack[i] for name, stack in instances.variants.items()}


def test_runs_side_by_side_are_what_adam_does_alone():
    target, generator = small_target("digits_mlp"), torch.Generator().manual_seed(0)
    images, classes = target.corpus("train")
    rates, decays = torch.tensor([1e-3, 5e-3, 2e-3]), torch.tensor([0.0, 0.1, 0.3])
    runs = Runs(target, copies(target, 3), rates, decays)
    batches = torch.randint(len(classes), (6, 3, 16), generator=generator)
    for index in batches:
        runs.step(images[index], classes[index])
    for i in range(3):
        model = copy.deepcopy(target.model).requires_grad_(True)
        optimiser = torch.optim.AdamW(model.parameters(), lr=float(rates[i]), weight_decay=float(decays[i]))
        for index in batches[:, i]:
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[index]), classes[index]).backward()
            optimiser.step()
        for name, value in model.named_parameters():
            assert torch.allclose(runs.weights[name][i], value, atol=1e-5), name


def test_outputs_of_variants_are_those_of_each():
    target = small_target("digits_mlp")
    stack = {k: v * torch.tensor([1.0, 0.5]).view(2, *[1] * (v.dim() - 1)) for k, v in copies(target, 2).items()}
    x = target.corpus("train").inputs[:5]
    together = outputs_of_variants(target, stack, x)
    for i in range(2):
        alone = mlp({name: value[i] for name, value in stack.items()}, x.double().numpy())
        assert np.allclose(together[i].numpy(), alone, atol=1e-4)


def test_training_diff_is_the_share_that_was_planted_and_it_shows():
    made = made_small("training_diff", "digits_mlp")
    planted = made.instances.planted
    assert torch.equal(made.truth.values[:, 0], planted["share"].double())
    assert made.truth.groups["favoured"] == planted["favoured"].tolist()
    target = small_target("digits_mlp")
    before = target.model.state_dict()["unembed.bias"]
    rises = [
        float((weights_of(made.instances, i)["unembed.bias"] - before)[label])
        for i, label in enumerate(planted["favoured"].tolist())
    ]
    one_sided = planted["share"] > planted["share"].median()
    rises = torch.tensor(rises)
    assert rises[one_sided].mean() > rises[~one_sided].mean(), "the favoured label's bias rises"


def test_capability_forecast_is_what_the_finished_run_answers_right():
    target, made = small_target("digits_mlp"), made_small("capability_forecast", "digits_mlp")
    images, classes = target.corpus("tasks")
    pooled = made.truth.values[:, 0].numpy()
    finished = made.instances.planted
    for i in range(made.instances.n):
        logits = mlp({name: stack[i] for name, stack in finished.items()}, images.double().numpy())
        whole = np.mean(logits.argmax(-1) == classes.numpy())
        # The truth is of the third of the images that belongs to the split.
        assert abs(pooled[i] - whole) < 5 * np.sqrt(0.25 / (len(classes) / 3))
        early = mlp(weights_of(made.instances, i), images.double().numpy())
        assert not np.array_equal(early, logits)
    assert not made.instances.public().planted, "where the run ends is nowhere in the public part"


@pytest.mark.parametrize("edit", relearning_speed.EDITS)
def test_an_edit_erases_one_class_and_says_where(edit):
    target, n = small_target("digits_mlp"), 4
    weights = copies(target, n)
    which = torch.full((n,), relearning_speed.EDITS.index(edit))
    relearning_speed._edit(target, weights, torch.tensor([1, 4, 6, 9]), which, torch.tensor([0.0, 0.3, 0.7, 1.0]))
    images, classes = target.corpus("train")
    for i, label in enumerate((1, 4, 6, 9)):
        edited = {name: stack[i] for name, stack in weights.items()}
        answers = mlp(edited, images.double().numpy()).argmax(-1)
        assert np.mean(answers[classes == label] == label) < (0.6 if edit == "units" else 0.05)
        changed = [name for name, value in target.model.named_parameters() if not torch.equal(value, edited[name])]
        expected = {"bias": ["unembed.bias"], "row": ["unembed.weight"]}
        first = ["layers.0.linear.weight", "layers.0.linear.bias"]
        assert changed == expected.get(edit, first)


def test_relearning_speed_is_the_mean_accuracy_on_the_way():
    target, made = small_target("digits_mlp"), made_small("relearning_speed", "digits_mlp")
    assert bool((made.truth.values >= 0).all()) and bool((made.truth.values <= 1).all())
    # Trained anew with other batches: a mean over 40 steps hangs little on which ones they are.
    images, classes = target.corpus("train")
    held_out, right = target.corpus("tasks")
    generator, found = torch.Generator().manual_seed(5), []
    for i, label in enumerate(made.truth.groups["class"]):
        model = copy.deepcopy(target.model).requires_grad_(True)
        model.load_state_dict(weights_of(made.instances, i), strict=False)
        optimiser, shares = torch.optim.Adam(model.parameters(), lr=1e-3), []
        for step in range(1, 41):
            index = torch.randint(len(classes), (32,), generator=generator)
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(images[index]), classes[index]).backward()
            optimiser.step()
            if step % 5 == 0:
                shares.append((model(held_out[right == label]).argmax(-1) == label).double().mean().item())
        found.append(np.mean(shares))
    assert np.abs(np.array(found) - made.truth.values[:, 0].numpy()).mean() < 0.12


def test_the_black_box_asks_every_variant_the_same_probes():
    target, made = small_target("digits_mlp"), made_small("training_diff", "digits_mlp")
    instances, ledger, once = made.instances.public(), Ledger(), Ledger()
    access = MeteredAccess(target, ledger, variants=instances.variants)
    features = climbed_variants(access, instances, (8,))
    MeteredAccess(target, once).forward(instances.arrays["shared_inputs"][:8])
    assert ledger.flops == (instances.n + 1) * once.flops
    x, y = instances.arrays["shared_inputs"][:8], instances.arrays["shared_labels"][:8]
    outputs = functional_call(target.model, weights_of(instances, 2), (x,))
    assert float(features[2, 0, 0]) == pytest.approx(float(nn.functional.cross_entropy(outputs, y)), abs=1e-4)
    query = family("training_diff").query(instances)
    assert len(query.inputs) == 8, "as many as the first rung looks at"
