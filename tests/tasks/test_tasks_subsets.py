"""Families whose truth is an enumeration of subsets, orders, pairs or paints: loops that share no code with them."""

import copy
from itertools import combinations, permutations

import numpy as np
import pytest
import torch

from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.families import family
from stages.tasks.families.edge_radius import fewest_pixels, pixels_of
from stages.tasks.families.minimal_context import shares_of_smallest
from stages.tasks.families.region_shapley import regions_of
from stages.tasks.shapley import all_subsets
from tests.tasks.conftest import made_small, small_target
from tests.tasks.test_tasks_truth import answers, mlp, squash


def margin(logits, label):
    return logits[label] - max(value for place, value in enumerate(logits) if place != label)


def test_region_shapley_agrees_with_the_mean_over_orders():
    """All 40,320 orders of eight regions, from the values of 256 subsets."""
    target, made = small_target("digits_mlp"), made_small("region_shapley", "digits_mlp")
    weights, arrays = target.model.state_dict(), made.instances.arrays
    x, y = arrays["inputs"][0].double().numpy(), int(arrays["labels"][0])
    regions = regions_of(target.spec)
    assert sorted(place for region in regions for place in region) == list(range(64)) and {
        len(region) for region in regions
    } == {8}
    value = {}
    for size in range(9):
        for kept in combinations(range(8), size):
            shown = np.zeros(64)
            for region in kept:
                shown[regions[region]] = x[regions[region]]
            logits = mlp(weights, shown)
            value[frozenset(kept)] = logits[y] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    total, n_orders = np.zeros(8), 0
    for order in permutations(range(8)):
        n_orders += 1
        members = frozenset()
        for region in order:
            total[region] += value[members | {region}] - value[members]
            members = members | {region}
    for region in range(8):
        assert float(made.truth.values[0, region]) == pytest.approx(squash(total[region] / n_orders, 0.1), abs=2e-3)


def test_regions_of_a_square_image_are_pairs_of_rows():
    spec = small_target("small_cnn").spec
    regions = regions_of(spec)
    assert regions[0] == [0, 1] and sorted(place for region in regions for place in region) == list(
        range(spec.input_shape[0] // 2 * 2)
    )


def test_counterfactual_flip_is_one_changed_label():
    target, made = small_target("digits_few_shot"), made_small("counterfactual_flip", "digits_few_shot")
    for x, truth in list(zip(made.instances.arrays["inputs"], made.truth.values, strict=True))[:3]:
        logits = target.model(x.unsqueeze(0))[0].double().tolist()
        answer = int(np.argmax(logits))
        for example in range(8):
            for further in (1, 2, 3):
                changed = x.clone()
                changed[example, 64] = (int(changed[example, 64].round()) + further) % 4
                after = margin(target.model(changed.unsqueeze(0))[0].double().tolist(), answer)
                expected = squash(after - margin(logits, answer), 0.5)
                assert float(truth[3 * example + further - 1]) == pytest.approx(expected, abs=2e-3)


def test_replacements_differ_from_their_segment_in_the_label_alone():
    arrays = made_small("counterfactual_flip", "digits_few_shot").instances.arrays
    for item in range(24):
        row, instead = arrays["inputs"][:, item // 3], arrays["replacements"][:, item, 0]
        differs = (row - instead).abs() > 1e-6
        assert bool(differs[:, 64].all()) and int(differs.sum()) == len(row)


def test_minimal_context_by_hand_and_by_enumeration():
    subsets = all_subsets(3)
    keeps = torch.tensor([any(set(s) <= {p for p in range(3) if row[p]} for s in ((0, 1), (2, 1))) for row in subsets])
    assert shares_of_smallest(keeps, subsets).tolist() == [0.5, 1.0, 0.5]
    assert shares_of_smallest(torch.ones(8, dtype=torch.bool), subsets).tolist() == [0.0, 0.0, 0.0], "none is needed"
    target, made = small_target("digits_few_shot"), made_small("minimal_context", "digits_few_shot")
    for x, truth in list(zip(made.instances.arrays["inputs"], made.truth.values, strict=True))[:2]:
        final = answers(target, x, range(8)).argmax()
        for size in range(9):
            keeping = [kept for kept in combinations(range(8), size) if answers(target, x, kept).argmax() == final]
            if keeping:
                break
        for example in range(8):
            assert float(truth[example]) == pytest.approx(np.mean([example in kept for kept in keeping]))


def test_order_sensitivity_is_the_spread_over_all_orders():
    target, made = small_target("digits_few_shot"), made_small("order_sensitivity", "digits_few_shot")
    arrays = made.instances.arrays
    for x, y, truth in list(zip(arrays["inputs"], arrays["labels"].tolist(), made.truth.values, strict=True))[:2]:
        found = []
        for order in permutations(range(5)):
            shown = x.clone()
            for place, example in enumerate(order):
                shown[place] = x[example]
            found.append(answers(target, shown, range(5))[y])
        assert float(truth[0]) == pytest.approx(np.log1p(np.std(found, ddof=1) / 0.05), abs=5e-3)
        assert x[5:8, 65].tolist() == [0.0, 0.0, 0.0]


def loss_of_units(target, made):
    """Loss on the first behaviour, in numpy, with units of the last hidden layer cut."""
    weights = {name: value.double().numpy() for name, value in target.model.state_dict().items()}
    x, y = made.instances.arrays["inputs"][0].double().numpy(), made.instances.arrays["labels"][0].tolist()
    hidden = x
    for layer in (0, 1):
        w, b = weights[f"layers.{layer}.linear.weight"], weights[f"layers.{layer}.linear.bias"]
        hidden = np.maximum(hidden @ w.T + b, 0.0)

    def loss(*cut):
        kept = hidden.copy()
        kept[:, list(cut)] = 0.0
        logits = kept @ weights["unembed.weight"].T + weights["unembed.bias"]
        total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        return np.mean(total - logits[np.arange(len(y)), y])

    return loss


def test_ablation_interaction_is_the_sum_over_all_pairs():
    target, made = small_target("digits_mlp"), made_small("ablation_interaction", "digits_mlp")
    loss = loss_of_units(target, made)
    for p in (0, 5, 31):
        beyond = sum(loss(p, q) - loss(p) - loss(q) + loss() for q in range(32) if q != p)
        assert float(made.truth.values[0, p]) == pytest.approx(squash(beyond, 0.1), abs=1e-3)


def test_the_ladder_of_ablation_interaction_cuts_a_unit_along_with_halves_of_the_others():
    target, made = small_target("digits_mlp"), made_small("ablation_interaction", "digits_mlp")
    loss, access = loss_of_units(target, made), MeteredAccess(target, Ledger())
    found = family("ablation_interaction").behavioural(
        access, made.instances.public(), 3, torch.Generator().manual_seed(11)
    )
    generator = torch.Generator().manual_seed(11)
    halves = [set(torch.rand(32, generator=generator).argsort()[:16].tolist()) for _ in range(2)]
    assert {p in half for half in halves for p in (0, 5, 31)} == {True, False}
    for p in (0, 5, 31):
        drifts = [loss(*half | {p}) - loss(*half - {p}) - (loss(p) - loss()) for half in halves]
        assert float(found[0, p, -1]) == pytest.approx(squash(np.mean(drifts), 0.1), abs=1e-3)


@pytest.mark.parametrize("name", ["digits_few_shot", "facts_lm"])
def test_ablation_interaction_of_heads_is_that_of_their_output_weights(name):
    """A head whose output weights are zero says nothing: copies of the model, one for every pair."""
    target, made = small_target(name), made_small("ablation_interaction", name)
    x, y = made.instances.arrays["inputs"][0], made.instances.arrays["labels"][0]
    heads = [(layer, head) for layer in range(len(target.model.blocks)) for head in range(4)]
    assert made.truth.values.shape[1] == len(heads)
    assert (
        len(y)
        == family("ablation_interaction").constants["n_inputs"]["prompts" if name == "facts_lm" else "other inputs"]
    )

    def loss(*cut):
        model = copy.deepcopy(target.model)
        for layer, head in cut:
            written = model.blocks[layer].attn.W_O
            if isinstance(written, torch.nn.Linear):
                written.weight.data[:, head * 16 : (head + 1) * 16] = 0.0
            else:
                written.data[head] = 0.0
        with torch.no_grad():
            logits = model(x).double().numpy()
        total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        return np.mean(total - logits[np.arange(len(y)), y.numpy()])

    for p in (0, len(heads) - 1):
        own = heads[p]
        beyond = sum(loss(own, q) - loss(own) - loss(q) + loss() for q in heads if q != own)
        assert float(made.truth.values[0, p]) == pytest.approx(squash(beyond, 0.1), abs=2e-3)


def test_edge_radius_is_reached_and_one_pixel_is_found_where_one_is_enough():
    target, made = small_target("digits_mlp"), made_small("edge_radius", "digits_mlp")
    weights = target.model.state_dict()
    arrays = made.instances.arrays
    for x, y, truth in zip(arrays["inputs"], arrays["labels"].tolist(), made.truth.values[:, 0].tolist(), strict=True):
        image = x.double().numpy()
        assert mlp(weights, image).argmax() != y
        shares = []
        for pixel in range(64):
            for paint in (0.0, 1.0):
                painted = image.copy()
                painted[pixel] = paint
                if mlp(weights, painted).argmax() == y:
                    steps = np.linspace(0, 1, 2001)
                    tried = np.tile(image, (len(steps), 1))
                    tried[:, pixel] += steps * (paint - image[pixel])
                    shares.append(steps[mlp(weights, tried).argmax(-1) == y].min())
        if shares:
            assert truth == pytest.approx(min(shares), abs=2e-3)
        else:
            assert truth > 1.0
    label = torch.tensor(int(mlp(weights, arrays["inputs"][0].double().numpy()).argmax()))
    assert fewest_pixels(target, arrays["inputs"][0], label) < 1e-3, "what is the answer already needs nothing"


def one_paint(target, x, y, places):
    """Smallest share of the way to black or white of one number of an input that makes y the answer, or None."""
    shares = []
    for place in places:
        for paint in (0.0, 1.0):
            tried = x.flatten().repeat(251, 1)
            tried[:, place] += torch.linspace(0, 1, 251) * (paint - tried[0, place])
            if int(target.model(tried[-1:].view(1, *x.shape)).argmax()) == y:
                right = target.model(tried.view(-1, *x.shape)).argmax(-1) == y
                shares.append(float(right.long().argmax()) / 250)
    return min(shares, default=None)


def test_edge_radius_of_a_square_image_is_one_paint_where_one_is_enough():
    target, made = small_target("small_cnn"), made_small("edge_radius", "small_cnn")
    inputs, found = made.instances.arrays["inputs"][:4], 0
    for x, y in zip(inputs, target.model(inputs).topk(2, -1).indices[:, 1], strict=True):
        best, truth = one_paint(target, x, y, range(x.numel())), fewest_pixels(target, x, y)
        assert (truth > 1.0) if best is None else truth == pytest.approx(best, abs=5e-3)
        found += best is not None
    assert found


def test_pixels_that_are_painted_are_those_of_one_image():
    assert pixels_of(small_target("digits_mlp").spec).tolist() == list(range(64))
    spec = small_target("digits_few_shot").spec
    n_rows, n_channels = spec.input_shape
    assert pixels_of(spec).tolist() == [(n_rows - 1) * n_channels + pixel for pixel in range(n_channels - 2)]
