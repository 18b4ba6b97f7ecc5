"""What a question holds beside inputs: sets, replacements, a closed pool; and what a look at it costs."""

import numpy as np
import pytest
import torch

from stages.contracts.method import (
    Attribute,
    Compare,
    Interpretation,
    Localise,
    Method,
    Propose,
    Represent,
    Steer,
    by_group,
)
from stages.contracts.target import Objective, objective_values
from stages.contracts.task import Instances, TaskFamily, Truth
from stages.execution.answering import ask_in_process, asked_of
from stages.execution.arms import budgets_of, run_ladder
from stages.execution.looking import look_price
from stages.execution.proposals import MAX_PROPOSALS, n_proposals, reached
from stages.execution.public import public_features
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.tasks.storage import Task

N = 6
LABELS = torch.arange(N)
PASS = sum(2 * i * o + o for i, o in [(64, 64), (64, 32), (32, 10)]) + 96
"""FLOPs of one forward pass of the classifier."""


class Asks(TaskFamily):
    """A family whose question is given; its only rung costs one forward pass."""

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
        access.forward(instances.arrays["inputs"])
        return torch.zeros(instances.n, 1, 1)

    def query(self, instances):
        return self.asked


class Of(Method):
    def __init__(self, body, adaptive=False):
        self.body, self.adaptive = body, adaptive

    def interpret(self, target, budget):
        return Interpretation()

    def answer(self, query, interpretation, target):
        return self.body(query, target)


def stacked(target):
    return {name: torch.stack([value * (1 - 0.1 * i) for i in range(N)]) for name, value in states(target)}


def states(target):
    return target.model.state_dict().items()


def a_task(target, query, variants=None):
    truth = torch.linspace(0, 1, N, dtype=torch.float64).unsqueeze(-1)
    instances = Instances({"inputs": target.corpus("train").inputs[:N]}, N, variants or {})
    return Task(Asks(query), target.name, "train", instances, Truth(truth))


def proposal(target, **kwargs):
    x = target.corpus("train").inputs[:N]
    return Propose(LABELS, x, torch.eye(64)[:5], **kwargs)


@pytest.mark.parametrize("adaptive", [False, True])
def test_proposals_are_run_and_charged_and_what_they_reach_is_the_answer(mlp, adaptive):
    query = proposal(mlp, objective="log_prob")
    body = lambda q, t: torch.stack([q.inputs, q.inputs + q.changes[2]], dim=1)  # noqa: E731
    found = ask_in_process(Of(body, adaptive), "m", Interpretation(), a_task(mlp, query), mlp)
    assert found.status == "ok" and found.rows.shape == (N, 1, 2)
    log_probs = [
        mlp.model(x).log_softmax(-1)[torch.arange(N), LABELS] for x in (query.inputs, query.inputs + query.changes[2])
    ]
    expected = torch.stack(log_probs, -1).sort(-1, descending=True).values
    assert np.allclose(found.rows[:, 0], expected.numpy(), atol=1e-5)
    assert found.target_flops == 2 * PASS, "two proposals for every row, and nothing else was asked"


def test_proposals_about_variants_are_run_on_the_variant_of_their_row(mlp):
    query = proposal(mlp, variants=(3, 0, 1, 2, 5, 4))
    task = a_task(mlp, query, stacked(mlp))
    found = ask_in_process(Of(lambda q, t: q.inputs + q.changes[0]), "m", Interpretation(), task, mlp)
    for row, index in enumerate(query.variants):
        model = MeteredAccess(mlp, Ledger(), variants=stacked(mlp)).variant(index)
        outputs = model.forward(query.inputs[row : row + 1] + query.changes[0]).outputs
        assert found.rows[row, 0, 0] == pytest.approx(
            float(objective_values(outputs, Objective("margin", LABELS[row : row + 1]))), abs=1e-5
        )
    assert found.target_flops == PASS


def test_what_is_no_proposal_is_refused_before_anything_is_run(mlp):
    task = a_task(mlp, proposal(mlp))
    found = ask_in_process(Of(lambda q, t: q.inputs[:, :3]), "m", Interpretation(), task, mlp)
    assert found.status == "failed" and found.target_flops == 0
    assert "it has shape (6, 3), the query wants (6, 64), or (6, p, 64) with p up to 64" in found.reason
    assert n_proposals((N, 64), N, mlp.spec) == 1 and n_proposals((N, 4, 64), N, mlp.spec) == 4
    for shape in [(N, MAX_PROPOSALS + 1, 64), (N, 0, 64), (N + 1, 64), (64,)]:
        with pytest.raises(ValueError, match="with p up to 64"):
            n_proposals(shape, N, mlp.spec)
    nan = ask_in_process(Of(lambda q, t: q.inputs * float("nan")), "m", Interpretation(), task, mlp)
    assert nan.status == "failed" and "NaN" in nan.reason
    assert reached(proposal(mlp), torch.zeros(N, 3, 64), MeteredAccess(mlp, Ledger())).shape == (N, 3)


def test_what_replaces_a_segment_is_said_with_it(mlp):
    x = torch.arange(float(N * 8)).view(N, 4, 2)
    instead = -torch.arange(float(N * 3 * 2)).view(N, 3, 1, 2)
    query = Attribute(x, ((0,), (0,), (2,)), None, instead)
    task = Task(Asks(query), "t", "train", Instances({}, N), Truth(torch.zeros(N, 3)))
    found = public_features(task)
    assert found.shape == (N, 3, 4) and found[1, 2].tolist() == [*x[1, 2].tolist(), *instead[1, 2, 0].tolist()]


def test_an_answer_about_sets_has_a_row_for_each(mlp):
    inputs, labels = torch.rand(4, 3, 64), torch.arange(12).view(4, 3)
    seen = []

    def single(query):
        seen.append((query.inputs.shape, query.labels.tolist(), query.groups))
        return query.inputs[:, :2]

    found = by_group(Represent(inputs, labels, groups=True), single)
    assert seen == [((12, 64), list(range(12)), False)]
    assert torch.equal(found, torch.cat([inputs[..., :2].mean(1), inputs[..., :2].amax(1)], -1))
    plain = Represent(inputs[:, 0])
    assert torch.equal(by_group(plain, lambda q: q.inputs[:, :2]), inputs[:, 0, :2])


def test_a_look_is_a_forward_pass_and_two_gradients_of_what_the_question_shows(mlp):
    x = mlp.corpus("train").inputs

    def look(query, variants=None):
        return look_price(a_task(mlp, query, variants), mlp)

    def priced(n):
        ledger = Ledger()
        access = MeteredAccess(mlp, ledger)
        access.forward(x[:n])
        for _ in range(2):
            access.gradients(x[:n], Objective("margin"), ["input"])
        return ledger.flops / N

    plain = priced(N)
    assert 5 * PASS < plain < 5.5 * PASS
    assert look(Represent(x[:N])) == look(Attribute(x[:N], ((0,),))) == look(proposal(mlp)) == plain
    sets = x[: 2 * N].view(N, 2, 64)
    assert look(Represent(sets, groups=True)) == look(Localise(sets, torch.zeros(N, 2), ())) == priced(2 * N)
    assert look(Steer("input", x[:N], x[:20])) == priced(20), "shown once for all"
    every = tuple(range(N))
    assert look(Compare(every, x[:8], LABELS), stacked(mlp)) == pytest.approx(N * priced(8))
    assert look(proposal(mlp, variants=every), stacked(mlp)) == pytest.approx(plain, rel=0.01)


def test_a_tight_budget_pays_for_a_look_and_for_two_gradients(mlp):
    """Four passes did not pay for two gradients, which take 4.1."""
    query = Represent(mlp.corpus("train").inputs[:N])
    rungs = run_ladder(a_task(mlp, query), mlp, 0)
    tight, _ = budgets_of(rungs)["tight"]
    ledger = Ledger()
    for _ in range(2):
        MeteredAccess(mlp, ledger).gradients(query.inputs, Objective("margin"), ["input"])
    assert 4 * PASS < ledger.flops / N + PASS <= tight


def test_the_shapes_of_a_variants_weights_are_known_while_an_answer_is_recorded(mlp):
    query = Compare(tuple(range(N)), mlp.corpus("train").inputs[:2], LABELS[:2])
    task = a_task(mlp, query, stacked(mlp))
    asked = asked_of(task)
    assert asked.weights["unembed.bias"] == (10,) and asked.key(Interpretation()) != asked._replace(weights={}).key(
        Interpretation()
    )
    read = Of(lambda q, t: t.variants(q.variants).weights(["unembed.bias"])["unembed.bias"])
    found = ask_in_process(read, "m", Interpretation(), task, mlp)
    assert found.status == "ok" and found.target_flops == 10
    assert np.allclose(found.rows[:, 0], stacked(mlp)["unembed.bias"].numpy())
