"""The method ``circuit``: what it freezes and what it answers, against ablations made one by one."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch.nn import functional as F

from stages.contracts.method import (
    Attribute,
    Budget,
    Compare,
    Localise,
    Represent,
)
from stages.contracts.target import Component, Objective
from stages.interpretation.loading import built_in
from stages.interpretation.methods import circuit
from stages.interpretation.methods.circuit import CORPUS_INPUTS, _hidden
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger

METHOD = built_in("circuit")


def frozen(target):
    return METHOD.interpret(MeteredAccess(target, Ledger(), free=True), Budget(60, 10**8, 0))


def zeroed_loss(target, inputs, labels, component):
    hook_point, axis, index = component

    def cut(module, args, out):
        out = out.clone()
        out.select(axis, index).zero_()
        return out

    handle = target.model.get_submodule(hook_point).register_forward_hook(cut)
    loss = F.cross_entropy(target.model(inputs), labels, reduction="none")
    handle.remove()
    return loss


@pytest.mark.parametrize("which", ["mlp", "few_shot"])
def test_frozen_effects_are_those_of_ablating_one_by_one(which, request):
    target = request.getfixturevalue(which)
    made = frozen(target)
    inputs, labels = (part[:CORPUS_INPUTS] for part in target.corpus("train"))
    clean = F.cross_entropy(target.model(inputs), labels, reduction="none")
    for place in range(0, len(target.spec.components), 9):
        moved = zeroed_loss(target, inputs, labels, target.spec.components[place]) - clean
        for answer in range(target.spec.n_outputs):
            by_hand = float(moved[labels == answer].mean()) if bool((labels == answer).any()) else 0.0
            assert float(made.arrays["effects"][place, answer]) == pytest.approx(by_hand, abs=1e-4)


def test_frozen_edges_lead_forward_and_sum_to_what_the_next_layer_sees(mlp):
    """On an MLP, the edges from a first-layer unit add up to its first-order effect through the second layer."""
    edges = frozen(mlp).arrays["edges"]
    first = [place for place, c in enumerate(mlp.spec.components) if c.hook_point == "layers.0.hook_post"]
    second = [place for place, c in enumerate(mlp.spec.components) if c.hook_point == "layers.1.hook_post"]
    assert float(edges[second].abs().sum()) == 0.0  # nothing leads back, nor sideways
    assert float(edges[first][:, first].abs().sum()) == 0.0
    inputs, labels = (part[:CORPUS_INPUTS] for part in mlp.corpus("train"))
    h0 = torch.relu(mlp.model.layers[0].linear(inputs))
    h1 = torch.relu(mlp.model.layers[1].linear(h0))
    logits = mlp.model.unembed(h1)
    other = logits.scatter(1, labels[:, None], float("-inf")).argmax(1)
    slope = mlp.model.unembed.weight[labels] - mlp.model.unembed.weight[other]
    for place in first[::11]:
        less = h0.clone()
        less[:, mlp.spec.components[place].index] = 0.0
        moved = (h1 - torch.relu(mlp.model.layers[1].linear(less))) * slope
        assert torch.allclose(edges[place, second], moved.mean(0), atol=1e-4)


@pytest.mark.parametrize("which", ["mlp", "few_shot"])
def test_localising_beats_a_random_ranking_and_is_charged_one_gradient(which, request):
    target = request.getfixturevalue(which)
    inputs, labels = (part[:60] for part in target.corpus("validation"))
    components, ledger, once = target.spec.components, Ledger(), Ledger()
    query = Localise(inputs.unflatten(0, (3, 20)), labels.unflatten(0, (3, 20)), components)
    answer = METHOD.answer(query, frozen(target), MeteredAccess(target, ledger))
    truth = np.array([
        [float((zeroed_loss(target, x, y, c) - F.cross_entropy(target.model(x), y)).mean()) for c in components]
        for x, y in zip(query.inputs, query.labels, strict=True)
    ])  # fmt: skip
    assert answer.shape == (3, len(components), 6)
    found = np.mean([spearmanr(answer[i, :, 0], truth[i])[0] for i in range(3)])
    shuffled = np.random.default_rng(0).permuted(np.tile(truth, (200, 1, 1)), axis=2)
    chance = [np.mean([spearmanr(answer[i, :, 0], rows[i])[0] for i in range(3)]) for rows in shuffled]
    assert found > max(chance) + 0.1
    names = sorted({c.hook_point for c in components})
    MeteredAccess(target, once).gradients(inputs, Objective("margin", labels), names)
    assert 0 < ledger.flops == once.flops


def test_a_cut_of_attention_is_what_recomputing_the_softmax_says():
    """The reading is linear here, so the first order is exact: scores of the cut keys at minus infinity."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 2, 5, 5, generator=generator)
    value = torch.randn(3, 2, 5, 5, generator=generator)  # the slope of a linear read-out
    for tokens in ([1], [0, 3]):
        lost = _hidden(scores.softmax(-1), value, [tokens])[:, 0]
        without = scores.clone()
        without[..., tokens] = float("-inf")
        rows = [t for t in range(5) if t not in tokens]
        by_hand = ((scores.softmax(-1) - without.softmax(-1)) * value)[:, :, rows].sum((1, 2, 3))
        assert torch.allclose(lost, by_hand, atol=1e-5)


def test_it_declines_what_it_has_nothing_to_say_about(mlp):
    made, access = frozen(mlp), MeteredAccess(mlp, Ledger())
    inputs, labels = (part[:4] for part in mlp.corpus("validation"))
    for query in (Represent(inputs, labels), Compare((0,), inputs, labels), Localise(inputs[None], labels[None], ())):
        assert METHOD.answer(query, made, access) is None
    answer = METHOD.answer(Attribute(inputs, ((0, 1), (2,)), labels), made, access)
    assert answer.shape == (4, 2, 2)
    unknown = Localise(inputs[None], labels[None], (Component("layers.0.hook_post", 1, 99),))
    assert METHOD.answer(unknown, made, access) is None


def test_where_components_are_many_effects_are_of_first_order_and_no_edges_are_made(mlp, monkeypatch):
    """To first order the same as by ablation, up to what is not linear; a query is answered without edges too."""
    whole = frozen(mlp).arrays
    exact = whole["effects"]
    monkeypatch.setattr(circuit, "MAX_EXACT", 8)
    made = frozen(mlp)
    means = [name for name in whole if name.startswith("mean.")]
    assert set(made.arrays) == {*means, "effects"}
    for name in means:  # put together from parts of 32 inputs
        assert torch.allclose(made.arrays[name], whole[name], atol=1e-5), name
    assert "edges" not in made.arrays and made.arrays["effects"].shape == exact.shape
    assert spearmanr(made.arrays["effects"].flatten(), exact.flatten())[0] > 0.7
    inputs, labels = (part[:CORPUS_INPUTS] for part in mlp.corpus("train"))
    model, place = mlp.model, 5
    c = mlp.spec.components[place]
    held = model(inputs).detach()
    margin = held.gather(1, labels[:, None])[:, 0] - held.scatter(1, labels[:, None], -1e9).amax(1)
    at = MeteredAccess(mlp, Ledger()).gradients(inputs, Objective("margin", labels), [c.hook_point])
    lost = (at.grads[c.hook_point] * at.captured[c.hook_point])[:, c.index]
    by_hand = F.softplus(lost - margin) - F.softplus(-margin)
    assert float(made.arrays["effects"][place, 3]) == pytest.approx(float(by_hand[labels == 3].mean()), abs=1e-5)
    query = Localise(inputs[:8].reshape(2, 4, -1), labels[:8].reshape(2, 4), mlp.spec.components)
    few = METHOD.answer(query, made, MeteredAccess(mlp, Ledger()))
    monkeypatch.undo()
    assert few.shape[-1] == METHOD.answer(query, frozen(mlp), MeteredAccess(mlp, Ledger())).shape[-1] - 1


def test_a_vocabulary_of_answers_is_not_told_apart(mlp, monkeypatch):
    exact = frozen(mlp).arrays["effects"]
    monkeypatch.setattr(circuit, "MAX_ANSWERS", 4)
    made = frozen(mlp)
    labels = mlp.corpus("train").labels[:CORPUS_INPUTS]
    weights = torch.bincount(labels, minlength=10) / len(labels)
    assert torch.allclose(made.arrays["effects"][:, 0], exact @ weights, atol=1e-5)
