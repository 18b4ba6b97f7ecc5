"""Families that ask for the best of a closed pool: every member tried, one at a time, by other code."""

from itertools import combinations

import numpy as np
import pytest
import torch
from torch.func import functional_call

from stages.contracts.target import Objective
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.families import family
from stages.tasks.families.trigger_recovery import _of_other_labels
from stages.tasks.inputs import draw_inputs
from stages.tasks.pools import best_of_pool, image_patches, reach
from tests.tasks.conftest import made_small, small_target
from tests.tasks.test_tasks_truth import mlp


def margin(logits, label):
    return logits[label] - max(value for place, value in enumerate(logits) if place != label)


def test_worst_input_is_the_largest_loss_of_all_patches():
    weights = small_target("digits_mlp").model.state_dict()
    made = made_small("worst_input", "digits_mlp")
    arrays = made.instances.arrays
    for x, y, found in zip(arrays["inputs"].numpy(), arrays["labels"].tolist(), made.truth.values[:, 0], strict=True):
        losses = []
        for change in arrays["shared_changes"].numpy():
            logits = mlp(weights, (x + change).astype(float))
            losses.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[y])
        assert float(found) == pytest.approx(np.log1p(max(losses) / 0.1), abs=1e-3)


@pytest.mark.parametrize("name", ["digits_mlp", "small_cnn", "digits_few_shot"])
def test_a_patch_changes_one_block_of_an_image(name):
    spec = small_target(name).spec
    changes = image_patches(spec, 20, 3, 0.5, torch.Generator().manual_seed(0))
    assert changes.shape == (20, *spec.input_shape) and float(changes.abs().max()) <= 0.5
    for change in changes:
        image = change[-1, :64] if name == "digits_few_shot" else change.flatten()
        side = round(len(image) ** 0.5)
        rows, columns = torch.nonzero(image.view(side, side), as_tuple=True)
        assert int(rows.max() - rows.min()) <= 2 and int(columns.max() - columns.min()) <= 2 and len(rows) >= 8
        assert int((change != 0).sum()) == len(rows), "and nothing else"


def test_bad_context_is_the_best_of_all_choices_of_four():
    target, made = small_target("digits_few_shot"), made_small("bad_context", "digits_few_shot")
    arrays = made.instances.arrays
    for x, y, found in list(zip(arrays["inputs"], arrays["labels"].tolist(), made.truth.values[:, 0], strict=True))[:3]:
        best = -np.inf
        for kept in combinations(range(8), 4):
            shown = x.clone()
            for row in range(8):
                shown[row, 65] = 1.0 if row in kept else 0.0
            best = max(best, margin(target.model(shown.unsqueeze(0))[0].double().tolist(), y))
        assert float(found) == pytest.approx(best, abs=1e-3)
        assert y in x[:8, 64].round().long().tolist(), "some example shows it"


def test_trigger_recovery_is_the_best_of_the_pool_in_the_variant():
    target, made = small_target("digits_mlp"), made_small("trigger_recovery", "digits_mlp")
    instances = made.instances
    for i in range(instances.n):
        weights = {name: stack[i] for name, stack in instances.variants.items()}
        label, best = int(instances.arrays["labels"][i]), -np.inf
        for change in instances.arrays["changes"][i]:
            outputs = functional_call(target.model, weights, (instances.arrays["inputs"][i : i + 1] + change,))
            best = max(best, margin(outputs[0].tolist(), label))
        assert float(made.truth.values[i, 0]) == pytest.approx(best, abs=1e-3)
    laid = instances.arrays["inputs"].unsqueeze(1) + instances.arrays["changes"]
    changed = instances.arrays["changes"].abs() > 1e-6
    assert set(laid[changed].round(decimals=4).tolist()) <= {0.0, 1.0}, "a patch is black and white"
    assert int(changed.sum(-1).max()) <= 9


def test_the_image_is_of_another_label_than_the_backdoors_wherever_one_of_two_is():
    target, goals = small_target("digits_mlp"), torch.arange(10).repeat(40)
    found = _of_other_labels(target, goals, torch.Generator().manual_seed(1))
    drawn = draw_inputs(target, 800, torch.Generator().manual_seed(1))
    for i, goal in enumerate(goals.tolist()):
        first = int(drawn.labels[2 * i]) != goal
        assert torch.equal(found[i], drawn.inputs[2 * i if first else 2 * i + 1])


def test_the_black_box_reaches_what_the_truth_is_made_of():
    target = small_target("digits_mlp")
    x, y = (part[:5] for part in target.corpus("validation"))
    changes = image_patches(target.spec, 7, 3, 1.0, torch.Generator().manual_seed(0))
    ledger, objective = Ledger(), Objective("loss", y)
    tried = reach(MeteredAccess(target, ledger), x, changes, objective)
    assert torch.allclose(tried.amax(1).double(), best_of_pool(target, x, changes, objective), atol=1e-4)
    of_row = reach(MeteredAccess(target, Ledger()), x, changes.expand(5, 7, 64), objective)
    assert torch.allclose(tried, of_row, atol=1e-5)
    once = Ledger()
    MeteredAccess(target, once).forward(x)
    assert ledger.flops == 7 * once.flops
    assert family("worst_input").query_kind == "Propose"
