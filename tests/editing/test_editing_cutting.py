"""Cuts as edits of weights: against hooks, against the circuits room, and on models whose circuits are planted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stages.circuits.algorithms.attribution import eap
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.zoo import graph_of_target
from stages.editing.cutting import SITES, Site, cut, cut_scores, keep_only, mean_inputs, site_sizes, top
from stages.errors import UserError


@pytest.mark.parametrize("which", ["mlp", "few_shot"])
def test_cutting_nothing_and_everything(which, request):
    target = request.getfixturevalue(which)
    sites, inputs = SITES[target.name], target.corpus("validation").inputs[:20]
    n, means = sum(v * u for v, u in site_sizes(target.model, sites)), mean_inputs(target.model, sites, inputs)
    whole, before = target.model(inputs), {k: v.clone() for k, v in target.model.state_dict().items()}
    assert torch.equal(cut(target.model, sites, torch.zeros(n, dtype=torch.bool), means)(inputs), whole)
    nothing = keep_only(target.model, sites, torch.zeros(n, dtype=torch.bool), means)(inputs)
    assert not torch.allclose(nothing, whole)
    if which == "mlp":
        assert torch.allclose(nothing, nothing[:1].expand_as(nothing), atol=1e-5)  # no input reaches the output
    assert all(torch.equal(before[k], v) for k, v in target.model.state_dict().items())  # the target is untouched


def test_a_cut_is_what_replacing_the_source_for_that_reader_does(mlp):
    """Unit by unit and layer by layer, with loops: the mean stands in for a cut source, for that reader alone."""
    sites, inputs = SITES["digits_mlp"], mlp.corpus("validation").inputs[:7]
    means = mean_inputs(mlp.model, sites, mlp.corpus("train").inputs[:50])
    edges = torch.rand(6464, generator=torch.Generator().manual_seed(0)) < 0.3
    x, start = inputs, 0
    for site in sites:
        module = mlp.model.get_submodule(site.module)
        out = []
        for v in range(module.out_features):
            gone = edges[start + v * module.in_features : start + (v + 1) * module.in_features]
            out.append(torch.where(gone, means[site.module], x) @ module.weight[v] + module.bias[v])
        start += module.weight.numel()
        x = torch.stack(out, -1)
        x = x if site.module == "unembed" else x.relu()
    assert torch.allclose(cut(mlp.model, sites, edges, means)(inputs), x, atol=1e-4)


def test_cutting_a_head_is_mean_ablating_its_output(few_shot):
    sites, inputs = SITES["digits_few_shot"], few_shot.corpus("validation").inputs[:6]
    means = mean_inputs(few_shot.model, sites, inputs)
    edges = torch.zeros(520, dtype=torch.bool)
    edges[260 + 2] = True  # layer 1: after 4 heads and 256 units of layer 0, its third head
    z = few_shot.model.run_with_cache(inputs)[1]["blocks.1.attn.hook_z"][:, :, 2]

    def put(value, hook):
        value = value.clone()
        value[:, :, 2] = z.mean((0, 1))
        return value

    by_hand = few_shot.model.run_with_hooks(inputs, fwd_hooks=[("blocks.1.attn.hook_z", put)])
    assert torch.allclose(cut(few_shot.model, sites, edges, means)(inputs), by_hand, atol=1e-4)


def test_scores_agree_with_attribution_patching_of_the_circuits_room(mlp):
    sites, generator = SITES["digits_mlp"], torch.Generator().manual_seed(1)
    corpus = mlp.corpus("validation")
    index = torch.randperm(len(corpus.labels), generator=generator)[:30]
    inputs, labels = corpus.inputs[index], corpus.labels[index]
    mine = cut_scores(mlp.model, sites, inputs, labels, mean_inputs(mlp.model, sites, inputs))

    def margin_lost(outputs, clean):
        right = labels.view(1, -1, 1).expand(len(outputs), -1, 1)
        others = outputs.scatter(-1, right, float("-inf")).amax(-1)
        return others - outputs.gather(-1, right).squeeze(-1)

    engine = MaskedForward(mlp.model, graph_of_target("digits_mlp"), inputs, ablation="mean")
    theirs = eap(engine, margin_lost).scores
    assert engine.n_edges == len(mine) and float(theirs.max()) > 0.01
    assert torch.allclose(mine.abs(), theirs, atol=1e-4)


def test_scores_are_exact_where_the_margin_is_linear():
    """One linear map, two outputs: the margin a cut costs is its score, sign and all."""
    model, generator = nn.Sequential(nn.Linear(5, 2)), torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(9, 5, generator=generator), torch.zeros(9, dtype=torch.long)
    sites = (Site("0"),)
    means = mean_inputs(model, sites, torch.randn(20, 5, generator=generator))
    scores = cut_scores(model, sites, inputs, labels, means)

    def margin(m):
        out = m(inputs)
        return float((out[:, 0] - out[:, 1]).mean().detach())

    for edge in range(10):
        edges = torch.arange(10) == edge
        assert margin(model) - margin(cut(model, sites, edges, means)) == pytest.approx(float(scores[edge]), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-5, 5, allow_nan=False), min_size=1, max_size=20), st.integers(0, 25))
def test_top_takes_the_best_and_no_more_than_there_are(values, n):
    scores = torch.tensor(values)
    chosen = top(scores, n)
    assert int(chosen.sum()) == min(n, len(values))
    if bool(chosen.any()) and not bool(chosen.all()):
        assert float(scores[chosen].min()) >= float(scores[~chosen].max())


def test_what_cannot_be_cut_is_said():
    model = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
    with pytest.raises(UserError, match="no Linear with a bias"):
        site_sizes(model, (Site("1"),))
    with pytest.raises(UserError, match="groups of 3"):
        site_sizes(model, (Site("0", group=3),))
    with pytest.raises(UserError, match="7 values for 8 edges"):
        cut(model, (Site("0"),), torch.zeros(7, dtype=torch.bool))
