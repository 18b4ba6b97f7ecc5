"""Capability removal on models whose circuits are planted, and on a small trained target."""

import copy
import json

import pytest
import torch
from torch import nn

from stages.contracts.target import Corpus, Target
from stages.editing.behaviours import Behaviour, behaviour_of
from stages.editing.capability import Settings, remove_capability
from stages.editing.cutting import (
    Site,
    cut,
    cut_scores,
    mean_inputs,
    top,
)
from stages.editing.measuring import clustered_interval, effect, interval, redundancy, relearn_steps
from stages.editing.removing import GONE, HOWS, accuracy, remove
from stages.errors import UserError

SEED = torch.Generator().manual_seed(0)
SITES = (Site("0"), Site("2"))


def paths() -> nn.Sequential:
    """Output c is the sum of inputs 3c to 3c + 2 and nothing else, through hidden units of its own; four more hidden
    units read everything and write nothing."""
    model = nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 3))
    for parameter in model.parameters():
        parameter.data.zero_()
    model[0].weight.data[:9] = torch.eye(9)
    model[0].weight.data[9:] = 1.0
    model[2].weight.data[:, :9] = torch.eye(3).repeat_interleave(3, 1)
    return model.eval().requires_grad_(False)


def with_backup(backup: bool) -> nn.Sequential:
    """Output c is the mean of inputs 3c to 3c + 2 by one path (units 0-2); a second path (units 3-5) is silent, and
    carries what the first one fails to where ``backup`` is set."""
    model = nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    for parameter in model.parameters():
        parameter.data.zero_()
    eye = torch.eye(3)
    model[0].weight.data.copy_(eye.repeat_interleave(3, 1).repeat(2, 1) / 3)
    model[2].weight.data[:3, :3] = eye
    model[2].weight.data[3:, :3], model[2].weight.data[3:, 3:] = -eye * backup, eye * backup
    # The other outputs are small, so that the margin of output 0 is that of its own paths.
    model[4].weight.data.copy_(torch.diag(torch.tensor([1.0, 0.1, 0.1])).repeat(1, 2))
    model[4].bias.data[0] = -1.0
    return model.eval().requires_grad_(False)


def data(n: int, generator: torch.Generator) -> Corpus:
    labels = torch.randint(3, (n,), generator=generator)
    inputs = torch.rand(n, 9, generator=generator)
    for c in range(3):
        inputs[labels == c, 3 * c : 3 * c + 3] += 2.0
    return Corpus(inputs, labels)


def behaviour(answer: int = 0) -> Behaviour:
    generator = torch.Generator().manual_seed(7)
    train, held_out = data(300, generator), data(200, generator)
    shown = train.labels == answer
    return Behaviour(
        answer,
        Corpus(train.inputs[shown], train.labels[shown]),
        Corpus(train.inputs[~shown], train.labels[~shown]),
        held_out,
    )


def scored(model, wanted):
    means = mean_inputs(model, SITES, wanted.others.inputs)
    return cut_scores(model, SITES, wanted.shown.inputs, wanted.shown.labels, means), means


def test_the_own_circuit_takes_its_behaviour_alone_and_random_ones_take_nothing():
    model, wanted = paths(), behaviour(0)
    scores, means = scored(model, wanted)
    planted = torch.zeros(9 * 13 + 13 * 3, dtype=torch.bool)
    for k in range(3):
        planted[k * 9 + k] = True  # input k -> unit k
        planted[9 * 13 + k] = True  # unit k -> output 0
    assert bool((top(scores, 6) == planted).all())
    own = effect(model, cut(model, SITES, planted, means), wanted)
    assert own["accuracy_target"]["value"] < 1 / 3 and own["accuracy_neighbours"]["value"] == 1.0  # a third is chance
    assert own["selectivity"]["low"] > 0.6
    generator = torch.Generator().manual_seed(3)
    for _ in range(10):
        drawn = top(torch.rand(len(scores), generator=generator), 6, ~planted)
        random = effect(model, cut(model, SITES, drawn, means), wanted)
        assert random["accuracy_target"]["value"] == 1.0
    other, theirs = behaviour(1), scored(model, behaviour(1))
    taken = effect(model, cut(model, SITES, top(theirs[0], 6), theirs[1]), wanted)
    assert taken["accuracy_target"]["value"] == 1.0 and taken["accuracy_neighbours"]["value"] < 0.7
    assert taken["selectivity"]["high"] < 0.0 and other.answer == 1


@pytest.mark.parametrize("backup", [True, False])
def test_a_second_circuit_takes_over_only_where_one_is_planted(backup):
    model, wanted, sites = with_backup(backup), behaviour(0), (Site("0"), Site("2"), Site("4"))
    means = mean_inputs(model, sites, wanted.others.inputs)
    found = redundancy(model, sites, wanted, means, wanted.shown.inputs, torch.Generator().manual_seed(0))
    assert found["n_edges"] == 5 and found["faithfulness_first"] == pytest.approx(1.0, abs=0.05)
    if backup:
        assert found["faithfulness_second"] > 0.9 and found["accuracy_of_the_rest"] > 0.9
    else:
        assert found["faithfulness_second"] < 0.1 and found["accuracy_of_the_rest"] < 0.5
    assert abs(found["faithfulness_random"]) < 0.2


@pytest.mark.parametrize("how", sorted(HOWS))
def test_training_it_away_works_and_leaves_the_target_alone(how, mlp):
    wanted, before = behaviour_of(mlp, 3), copy.deepcopy(mlp.model.state_dict())
    edited = remove(mlp.model, wanted, how, torch.Generator().manual_seed(0), "unembed")
    was = accuracy(mlp.model, wanted.shown.inputs[:128], wanted.shown.labels[:128])
    assert accuracy(edited, wanted.shown.inputs[:128], wanted.shown.labels[:128]) <= GONE * was
    found = effect(mlp.model, edited, wanted)
    assert found["accuracy_target"]["value"] < 0.3 < found["accuracy_neighbours"]["value"]
    assert all(torch.equal(before[k], v) for k, v in mlp.model.state_dict().items())
    again = remove(mlp.model, wanted, how, torch.Generator().manual_seed(0), "unembed")
    assert all(torch.equal(a, b) for a, b in zip(edited.parameters(), again.parameters(), strict=True))
    if how == "rank-one":
        change = edited.unembed.weight - mlp.model.unembed.weight
        sizes = torch.linalg.svdvals(change)
        assert float(sizes[0]) > 1e-3 and float(sizes[1]) < 1e-4 * float(sizes[0])
        assert torch.equal(edited.layers[0].linear.weight, mlp.model.layers[0].linear.weight)


def test_relearning_counts_steps(mlp):
    wanted = behaviour_of(mlp, 3)
    _, none = relearn_steps(mlp.model, mlp.model, wanted, 32, torch.Generator().manual_seed(0))
    assert none == 0
    removed = remove(mlp.model, wanted, "relabel", torch.Generator().manual_seed(0), "unembed")
    back, steps = relearn_steps(removed, mlp.model, wanted, 32, torch.Generator().manual_seed(0))
    assert steps is not None and steps > 0
    inputs, labels = wanted.held_out
    mine = labels == 3
    assert accuracy(back, inputs[mine], labels[mine]) >= 0.9 * accuracy(mlp.model, inputs[mine], labels[mine])


def test_held_out_inputs_are_distinct_and_were_never_trained_on(mlp, few_shot):
    for target in (mlp, few_shot):
        wanted = behaviour_of(target, 2)
        rows = [row.numpy().tobytes() for row in wanted.held_out.inputs]
        seen = {row.numpy().tobytes() for row in target.corpus("train").inputs}
        assert len(rows) == len(set(rows)) and not seen & set(rows)
        assert bool((wanted.shown.labels == 2).all()) and not bool((wanted.others.labels == 2).any())
        assert len(wanted.shown.labels) + len(wanted.others.labels) == len(target.corpus("train").labels)


def test_everything_at_once_has_its_schema_and_repeats(mlp):
    settings = Settings(seeds=1, n_random=2)
    found = remove_capability(mlp, [3, 5], settings=settings)
    json.dumps(found)
    methods = {row["method"] for row in found["rows"]}
    assert methods == {
        "ascent", "circuit", "circuit-zero", "contrast", "eap", "other-circuit", "random", "random-upstream",
        "rank-one", "relabel", "scratch", "task-vector", "upstream",
    }  # fmt: skip
    for row in found["rows"]:
        assert {"target", "behaviour", "method", "seed", "draw", "n_edges", "relearn_steps"} <= set(row)
        for metric in ("accuracy_target", "accuracy_neighbours", "selectivity"):
            assert row[metric]["low"] <= row[metric]["value"] <= row[metric]["high"]
        assert (row["n_edges"] is None) == (row["method"] in {*HOWS, "scratch"})
    sizes = {row["n_edges"] for row in found["rows"] if row["method"] in ("circuit", "random", "other-circuit", "eap")}
    own = [row["n_edges"] for row in found["rows"] if row["method"] == "circuit"]
    assert sizes == set(own)  # every control is as large as the circuit it is compared with
    for left in found["redundancy"]:
        assert sum(left["circuit_by_site"].values()) in own and 0.0 <= left["regrown_overlap"] <= 1.0
    gap = {row["circuit_less"]: row["selectivity"] for row in found["differences"]}
    assert gap["random"]["low"] > 0.3  # on a classifier the circuit matters and a random one does not
    assert found == remove_capability(mlp, [3, 5], settings=settings)


def test_intervals_hold_their_mean_and_shrink():
    few, many = interval([0.0, 1.0] * 5), interval([0.0, 1.0] * 500)
    assert few["low"] < 0.5 < few["high"] and many["high"] - many["low"] < few["high"] - few["low"]
    apart = clustered_interval([[0.0] * 50, [1.0] * 50])  # two behaviours are two pieces of evidence, not a hundred
    assert apart == {"value": 0.5, "low": 0.0, "high": 1.0}
    assert interval([0.25]) == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_mistakes_are_told_in_one_line(mlp):
    with pytest.raises(UserError, match="answer 12 is not one of digits_mlp: its outputs are 0 to 9"):
        remove_capability(mlp, [12])
    with pytest.raises(UserError, match="seeds, n_random and n_inputs must be at least 1"):
        remove_capability(mlp, [1], settings=Settings(seeds=0))
    kept = mlp.corpus("train").labels != 4
    train = Corpus(mlp.corpus("train").inputs[kept], mlp.corpus("train").labels[kept])
    held = {split: mlp.corpus(split) for split in ("validation", "tasks")}
    with pytest.raises(UserError, match="answer 4 of digits_mlp: 0 inputs to edit with"):
        behaviour_of(Target(mlp.spec, mlp.model, held | {"train": train}), 4)
    with pytest.raises(UserError, match="way 'magic' is unknown: use ascent, rank-one"):
        remove(mlp.model, behaviour_of(mlp, 0), "magic", SEED, "unembed")
