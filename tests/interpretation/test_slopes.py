"""Directions and proposals answered from frozen slopes, and variants by their weights: against slow arithmetic."""

import numpy as np
import pytest
import torch

from stages.contracts.method import Budget, Compare, Interpretation, Propose, Represent, Steer
from stages.contracts.target import Objective
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.execution.answering import ask_in_process
from stages.interpretation import slopes
from stages.interpretation.artifact import pack, unpack
from stages.interpretation.loading import built_in
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import freeze
from stages.targets.zoo import ZOO
from stages.tasks.storage import Task

N = 6
HOOK = "layers.0.hook_post"
LABELS = torch.arange(N)


class Asks(TaskFamily):
    query_kind = "Represent"
    needs = frozenset()
    n_efforts = 1

    def __init__(self, query):
        self.asked = query

    def generate(self, target, rng, n):
        raise NotImplementedError

    def ground_truth(self, target, instances, rng):
        raise NotImplementedError

    def behavioural(self, access, instances, effort, rng):
        raise NotImplementedError

    def query(self, instances):
        return self.asked


def interpret(name, target, max_bytes=8_000_000):
    access = MeteredAccess(target, Ledger(), free=True)
    return unpack(*pack(built_in(name).interpret(access, Budget(60, max_bytes, 0)), "m", "here", max_bytes))


def asked(name, target, query, variants=None, made=None):
    """Recorded, priced and run, as in a real task."""
    instances = Instances({}, N, variants or {})
    task = Task(Asks(query), target.name, "train", instances, Truth(torch.zeros(N, 1, dtype=torch.float64)))
    return ask_in_process(built_in(name), name, made or interpret(name, target), task, target)


def stacked(target):
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.stack([value + 0.1 * i * torch.randn(value.shape, generator=generator) for i in range(N)])
        for name, value in target.model.state_dict().items()
    }


def per_input(target, inputs, of_outputs, place):
    """Gradients one input at a time, by autograd on the module alone."""
    found = []
    for x in inputs:
        leaf = x.clone().unsqueeze(0)
        held = {}
        if place == "input":
            leaf.requires_grad_(True)
            outputs, source = target.model(leaf), leaf
        else:

            def keep(module, args, out, held=held):
                held["a"] = out.detach().requires_grad_(True)
                return held["a"]

            handle = target.model.get_submodule(place).register_forward_hook(keep)
            outputs = target.model(leaf)
            handle.remove()
            source = held["a"]
        found.append(torch.autograd.grad(of_outputs(outputs[0]), source)[0].flatten())
    return torch.stack(found)


@pytest.mark.parametrize("place", [HOOK, "input"])
def test_a_direction_is_answered_by_frozen_means_and_second_moments(mlp, place):
    directions = torch.randn(N, 64, generator=torch.Generator().manual_seed(0))
    corpus = mlp.corpus("train")
    inputs, labels = corpus.inputs[:256], corpus.labels[:256]
    found = asked("gradient", mlp, Steer(place, directions, inputs[:4]))
    losses = iter(labels.tolist())
    g = per_input(mlp, inputs, lambda out: -out.log_softmax(-1)[next(losses)], place)
    assert np.allclose(found.rows[:, 0, 0], (directions @ g.mean(0)).numpy(), atol=1e-4)
    square = torch.stack([((g @ d) ** 2).mean() for d in directions])
    assert np.allclose(found.rows[:, 0, 2], square.numpy(), rtol=1e-3)
    assert found.target_flops == 0, "the target is not asked"
    assert found.own_flops < 26_000, "two passes are 26,000"


@pytest.mark.parametrize("place", [HOOK, "input"])
def test_a_direction_about_one_output_is_answered_by_that_outputs_slope(mlp, place):
    directions = torch.randn(N, 64, generator=torch.Generator().manual_seed(0))
    inputs = mlp.corpus("train").inputs[:256]
    found = asked("gradient", mlp, Steer(place, directions, inputs[:4], LABELS))
    for row in (0, 4):
        g = per_input(mlp, inputs, lambda out, row=row: out.log_softmax(-1)[row], place)
        assert found.rows[row, 0, 0] == pytest.approx(float(directions[row] @ g.mean(0)), abs=1e-4)
        assert found.rows[row, 0, 3] == pytest.approx(float(((g @ directions[row]) ** 2).mean()), rel=1e-3)
        start = inputs.mean(0, keepdim=True)
        if place == "input":
            outputs = mlp.model(start + directions[row])
        else:
            add = lambda module, args, out, row=row: out + directions[row]  # noqa: E731
            handle = mlp.model.get_submodule(place).register_forward_hook(add)
            outputs = mlp.model(start)
            handle.remove()
        assert found.rows[row, 0, 4] == pytest.approx(float(outputs[0].log_softmax(-1)[row]), abs=1e-4)


def test_a_direction_among_tokens_is_added_at_all_of_them(few_shot):
    place = "blocks.0.hook_resid_post"
    directions = torch.randn(N, few_shot.spec.hook(place).width, generator=torch.Generator().manual_seed(0))
    corpus = few_shot.corpus("train")
    found = asked("gradient", few_shot, Steer(place, directions, corpus.inputs[:2]))
    access = MeteredAccess(few_shot, Ledger())
    grads = access.gradients(corpus.inputs[:256], Objective("loss", corpus.labels[:256]), [place]).grads[place]
    assert np.allclose(found.rows[:, 0, 0], (directions @ grads.sum(1).mean(0)).numpy(), atol=1e-4)


def test_places_that_do_not_fit_are_left_out_and_declined(mlp):
    made = interpret("gradient", mlp, 250_000)
    assert "input/loss" not in made.arrays
    query = Steer("input", torch.zeros(N, 64), mlp.corpus("train").inputs[:2])
    assert asked("gradient", mlp, query, made=made).status == "declined"


@pytest.mark.parametrize("of_row", [False, True])
def test_the_changes_proposed_are_those_with_the_largest_slope(mlp, of_row):
    generator = torch.Generator().manual_seed(0)
    changes = torch.randn(N, 20, 64, generator=generator) if of_row else torch.randn(20, 64, generator=generator)
    x = mlp.corpus("train").inputs[:N]
    query = Propose(LABELS, x, changes, "loss")
    found = asked("gradient", mlp, query)
    for row in range(N):
        label = row
        (g,) = per_input(mlp, x[row : row + 1], lambda out, label=label: -out.log_softmax(-1)[label], "input")
        pool = changes[row] if of_row else changes
        best = (pool @ g).topk(slopes.N_PROPOSED).indices
        reached = -mlp.model(x[row] + pool[best]).log_softmax(-1)[:, label]
        assert np.allclose(found.rows[row, 0], reached.sort(descending=True).values.numpy(), atol=1e-4)


def test_proposals_about_variants_use_the_slope_of_their_own(mlp):
    changes = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    x, stack = mlp.corpus("train").inputs[:N], stacked(mlp)
    found = asked("gradient", mlp, Propose(LABELS, x, changes, "margin", tuple(range(N))), stack)
    access = MeteredAccess(mlp, Ledger(), variants=stack)
    for row in range(N):
        one = access.variant(row)
        g = one.gradients(x[row : row + 1], Objective("margin", LABELS[row : row + 1]), ["input"]).grads["input"][0]
        best = (changes @ g).argmax()
        outputs = one.forward(x[row : row + 1] + changes[best]).outputs[0]
        margin = outputs[row] - outputs[torch.arange(10) != row].max()
        assert found.rows[row, 0].max() >= float(margin) - 1e-4


def test_hiding_words_is_scored_by_what_stands_there():
    """The embedding times its slope, at the places that a change hides: words have no slope of their own."""
    definition, generator = ZOO.find("context_lm")(), torch.Generator().manual_seed(0)
    data = definition.data(0)
    corpora = {split: definition.sample(data, split, 60, generator) for split in ("train", "validation")}
    words = freeze("context_lm", definition.build(generator), corpora | {"tasks": data["tasks"]})
    inputs = definition.episodes(N, generator).inputs
    changes = torch.zeros(8, *inputs.shape[1:])
    for i in range(8):
        changes[i, 30 + i, 1] = -1.0  # an episode fills the last 19 places
    query = Propose(LABELS, inputs, changes, "log_prob")
    found = asked("gradient", words, query)
    access, leaf = MeteredAccess(words, Ledger()), words.spec.leaf
    slope = access.gradients(inputs, Objective("log_prob", LABELS), [leaf])
    worth = (slope.grads[leaf] * slope.captured[leaf]).sum(-1)
    for row in range(N):
        best = (changes[:, :, 1] @ worth[row]).topk(slopes.N_PROPOSED).indices
        outputs = access.forward(inputs[row] + changes[best]).outputs.log_softmax(-1)[:, row]
        assert np.allclose(found.rows[row, 0], outputs.sort(descending=True).values.numpy(), atol=1e-4)


def test_a_variant_is_told_by_what_was_changed(mlp):
    stack = stacked(mlp)
    found = asked("weight_difference", mlp, Compare(tuple(range(N)), mlp.corpus("train").inputs[:2], LABELS[:2]), stack)
    n_weights = sum(value.numel() for value in mlp.model.state_dict().values())
    assert found.status == "ok" and found.target_flops == n_weights
    bias, weight = sorted(stack)[:2]
    changes = [stack[name] - mlp.model.state_dict()[name] for name in (bias, weight)]
    assert changes[0].dim() == 2, "(variant, unit): four looks"
    for column, change in zip((0, 4), changes, strict=True):
        assert np.allclose(found.rows[:, 0, column], change.flatten(1).norm(dim=-1).numpy(), atol=1e-5)
    shares = (changes[1][3] ** 2).sum(0) / (changes[1][3] ** 2).sum()
    assert found.rows[3, 0, 8] == pytest.approx(float(shares.max()), rel=1e-4), "the column that holds most of it"
    assert found.rows[0, 0].sum() == 0, "the first was not changed"


def test_an_answer_has_its_columns_in_the_same_order_whatever_order_a_file_gave_the_weights_in(mlp):
    """The agent is calibrated on the columns of one process's answer and predicts from another's."""
    stack, query = stacked(mlp), Compare(tuple(range(N)), mlp.corpus("train").inputs[:2], LABELS[:2])
    turned = dict(reversed(stack.items()))
    made = interpret("weight_difference", mlp)
    one, other = (asked("weight_difference", mlp, query, weights, made) for weights in (stack, turned))
    assert list(turned) != list(stack) and np.array_equal(one.rows, other.rows)
    kept = Interpretation(dict(reversed(made.arrays.items())))
    assert list(kept.arrays) == list(made.arrays) == sorted(made.arrays)


def test_only_variants_are_told_by_weights(mlp):
    assert asked("weight_difference", mlp, Represent(mlp.corpus("train").inputs[:N])).status == "declined"
    small = interpret("weight_difference", mlp, 9_000)
    assert 0 < sum(value.numel() for value in small.arrays.values()) < 9_000 / 4 and "unembed.weight" in small.arrays
    nothing = Interpretation()
    query = Compare(tuple(range(N)), mlp.corpus("train").inputs[:2], LABELS[:2])
    assert asked("weight_difference", mlp, query, stacked(mlp), nothing).status == "declined"
