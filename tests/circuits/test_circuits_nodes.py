"""Node search on targets of words: the numbers by hand, and prompts that ask what they say."""

from itertools import pairwise

import pytest
import torch

from stages.circuits.evaluation import GRID
from stages.circuits.node_prompts import NAMES, prompts_of
from stages.circuits.node_search import Node, attribution, margins_with, nodes_of, search_nodes
from stages.errors import UserError
from stages.targets.storage import freeze
from stages.targets.zoo import ZOO
from tests.conftest import make_target


@pytest.fixture(scope="module")
def target():
    """facts_lm before training, with louder answers."""
    definition = ZOO.find("facts_lm")()
    data, model = definition.data(0), definition.build(torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.unembed.W_U.mul_(20.0)
    return freeze("facts_lm", model, {name: data[name] for name in ("train", "validation", "tasks")})


@pytest.fixture(scope="module")
def prompts(target):
    return prompts_of(target, "induction", 6, torch.Generator().manual_seed(1))


def margin(outputs, prompts):
    return torch.stack([o[r] - o[w] for o, r, w in zip(outputs, prompts.right, prompts.wrong, strict=True)])


def run(target, prompts, replaced):
    """Clean prompts with some nodes' values at those of the counterfactual, by torch's own hooks."""
    held, handles = {}, []
    model = target.model

    def keep(name):
        return lambda module, args, out: held.__setitem__(name, out.detach().clone())

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in {n.hook_point for n in replaced}]
    with torch.no_grad():
        model(prompts.counterfactual)
    for handle in handles:
        handle.remove()

    def put(node):
        def hook(module, args, out):
            out = out.clone()
            if node.head is None:
                return held[node.hook_point].clone()
            out[:, :, node.head] = held[node.hook_point][:, :, node.head]
            return out

        return hook

    handles = [model.get_submodule(node.hook_point).register_forward_hook(put(node)) for node in replaced]
    with torch.no_grad():
        outputs = model(prompts.clean)
    for handle in handles:
        handle.remove()
    return margin(outputs, prompts)


def test_nodes_are_all_heads_and_mlps(target):
    names = [str(node) for node in nodes_of(target.spec)]
    assert len(names) == len(set(names)) and {"m0", "m2", "a0.0", "a2.3"} <= set(names)
    assert names.index("a0.0") < names.index("m0") < names.index("a1.0")


def test_margins_are_those_of_nodes_replaced_one_by_one(target, prompts):
    nodes = nodes_of(target.spec)
    masks = torch.ones(4, len(nodes))
    masks[1, 2] = 0.0
    masks[2, [0, 4, 5]] = 0.0
    masks[3] = 0.0
    found = margins_with(target, nodes, prompts, masks)
    for row, mask in zip(found, masks, strict=True):
        replaced = [node for node, keep in zip(nodes, mask.tolist(), strict=True) if not keep]
        assert torch.allclose(row, run(target, prompts, replaced), atol=1e-4)


def test_a_score_is_the_slope_towards_the_counterfactual(target, prompts):
    """By finite differences: a hundredth of the way loses a hundredth of the score."""
    nodes = nodes_of(target.spec)
    scores = attribution(target, nodes, prompts)
    step, clean = 0.01, margin(target.model(prompts.clean), prompts)
    for place in range(0, len(nodes), 3):
        node, held = nodes[place], {}
        module = target.model.get_submodule(node.hook_point)
        handle = module.register_forward_hook(lambda m, a, out, held=held: held.update(it=out.detach().clone()))
        with torch.no_grad():
            target.model(prompts.counterfactual)
        handle.remove()

        def nudge(module, args, out, node=node, held=held):
            way = step * (held["it"] - out)
            if node.head is not None:
                only = torch.zeros_like(way)
                only[:, :, node.head] = way[:, :, node.head]
                way = only
            return out + way

        handle = module.register_forward_hook(nudge)
        with torch.no_grad():
            lost = float((clean - margin(target.model(prompts.clean), prompts)).mean()) / step
        handle.remove()
        assert float(scores[place]) == pytest.approx(lost, rel=0.1, abs=0.02)


def test_the_repeated_row_asks_for_what_came_next_the_first_time(target, prompts):
    for clean, other, right, wrong in zip(
        prompts.clean, prompts.counterfactual, prompts.right.tolist(), prompts.wrong.tolist(), strict=True
    ):
        for row, answer in ((clean, right), (other, wrong)):
            ids = row[row[:, 1] > 0.5, 0].long().tolist()
            half = len(ids) // 2
            asked = ids[-1]
            assert ids[:half].count(asked) == 1 and ids[ids.index(asked) + 1] == answer
            assert right not in ids[half:]
        assert int((clean[:, 0] != other[:, 0]).sum()) == 1 and torch.equal(clean[:, 1], other[:, 1])


def test_a_search_ranks_measures_and_compares_with_chance(target):
    """An untrained target with the sign of its answers that makes it right on held-out pairs; the other is refused."""
    pool = prompts_of(target, "induction", 8, torch.Generator().manual_seed(0))
    right = float(margin(target.model(pool.clean), pool)[4:].mean()) > 0
    weights = target.model.unembed.W_U.data
    try:
        weights.mul_(1.0 if right else -1.0)
        result = search_nodes(target, "induction", 4, 0, lambda line: None)
        weights.mul_(-1.0)
        with pytest.raises(UserError, match="facts_lm cannot do induction: the margin of the right word is -"):
            search_nodes(target, "induction", 4, 0, lambda line: None)
        weights.mul_(-1.0)
    finally:
        weights.mul_(1.0 if right else -1.0)
    assert result["shares"] == list(GRID) and result["faithfulness"][-1] == pytest.approx(1.0, abs=1e-5)
    assert result["faithfulness"][0] == pytest.approx(0.0, abs=1e-6) and result["n_nodes"] == len(nodes_of(target.spec))
    assert [row["score"] for row in result["nodes"]] == sorted((r["score"] for r in result["nodes"]), reverse=True)
    f, area, distance = result["faithfulness"], 0.0, 0.0
    for (a, b), (x, y) in zip(pairwise(f), pairwise(GRID), strict=True):
        area += (y - x) * (a + b) / 2
        distance += (y - x) * (abs(1 - a) + abs(1 - b)) / 2
    assert result["cpr"] == pytest.approx(area) and result["cmd"] == pytest.approx(distance)
    assert result["margin"] > 0 and 0 < result["accuracy"] <= 1


def test_what_cannot_be_asked_says_why(target):
    with pytest.raises(UserError, match="digits_mlp is no target of words"):
        prompts_of(make_target("digits_mlp", 1), "induction", 4, torch.Generator())
    with pytest.raises(UserError, match="facts_lm has no tokenizer: sentences"):
        prompts_of(target, "ioi", 4, torch.Generator())
    with pytest.raises(UserError, match="'others' are unknown: use induction or ioi"):
        prompts_of(target, "others", 4, torch.Generator())
    assert (
        Node("blocks.3.attn.hook_z", 1) == ("blocks.3.attn.hook_z", 1)
        and str(Node("blocks.3.attn.hook_z", 1)) == "a3.1"
    )
    assert len(set(NAMES)) == len(NAMES)
