"""Controls as files: a black box that looks at nothing inside and buys what it says, and two probes."""

import itertools

import pytest
import torch

from stages.contracts.method import Attribute, Budget, Compare, Localise, Propose, Represent, Steer
from stages.contracts.target import keep_segments
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from tests.examples.conftest import SORTS, ask, interpreted, method_of, module_of, stack_of
from tests.examples.test_published import N, queries

PASSES = (1, 4, 12)


def black_box(passes):
    return type(method_of("controls", "black_box"))(passes)


class Outside:
    """A target of which outputs alone can be had."""

    def __init__(self, access, asked_about=()):
        self._access, self.spec, self._about = access, access.spec, asked_about

    def forward(self, inputs, capture=(), interventions=()):
        assert not list(capture), "it captures activations"
        assert all(one.hook_point in self._about for one in interventions), "it changes what it was not asked about"
        return self._access.forward(inputs, (), interventions)

    def variants(self, indices):
        return Outside(self._access.variants(indices), self._about)

    def corpus(self, split="train"):
        return self._access.corpus(split)

    def __getattr__(self, name):
        raise AssertionError(f"a black box asks for {name}")


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("passes", PASSES)
def test_a_black_box_looks_at_outputs_alone_and_buys_no_more_passes_than_it_says(passes, sort, sorts):
    target = sorts(sort)
    method = black_box(passes)
    free = MeteredAccess(target, Ledger(), free=True)
    made = method.interpret(Outside(free), Budget(60, 10**8, 0))
    for kind, (query, rows) in queries(target).items():
        about = [component.hook_point for component in getattr(query, "components", ())]
        about += [query.hook_point] if isinstance(query, Steer) else []
        ledger = Ledger()
        access = MeteredAccess(target, ledger, variants=stack_of(target))
        with torch.no_grad():
            direct = method.answer(query, made, Outside(access, about))
        declines = kind == "Localise" and passes < 2
        assert (direct is None) == declines, kind
        if direct is None:
            continue
        assert tuple(direct.shape[: len(rows)]) == rows and bool(torch.isfinite(direct).all())
        price = Ledger()
        MeteredAccess(target, price).forward(target.corpus("train").inputs[:1])
        bought = ledger.flops / price.flops
        assert bought <= 1.2 * _passes_allowed(query, passes), f"{kind}: {bought} passes"
        recorded = ask(method, made, target, query)
        assert torch.allclose(recorded.answer, direct, atol=1e-4)
        assert recorded.target_flops == pytest.approx(ledger.flops)


def _passes_allowed(query, passes):
    """So many for each row; what the target itself says of a question about variants or directions is asked once."""
    match query:
        case Represent():
            return passes * query.inputs.shape[0] * (query.inputs.shape[1] if query.groups else 1)
        case Compare():
            return passes * (len(query.variants) + 1)
        case Steer():
            return max(1, passes // 2) * (len(query.directions) + 1)
        case Propose():
            return 0  # the agent runs the proposals
        case Localise() | Attribute():
            return passes * query.inputs.shape[0]


def test_more_passes_answer_a_question_about_subsets_better(few_shot):
    """What hiding each example does on average over subsets: nearer with more passes."""
    inputs, labels = (part[:40] for part in few_shot.corpus("validation"))
    segments = tuple((i,) for i in range(8))
    keep = torch.tensor([[*bits, 1] for bits in itertools.product((0, 1), repeat=8)]).bool()
    look = module_of(method_of("controls", "black_box")).look
    odds = []
    for row in keep:
        shown = keep_segments(few_shot.spec, inputs, row.expand(len(inputs), -1))
        odds.append(look(few_shot.model(shown), labels)[:, 0])
    odds, present = torch.stack(odds), keep[:, :8].float()
    truth = (present.T @ odds - (1 - present).T @ odds).T / 128  # (n, 8), over all 256 subsets

    def agreement(passes):
        method = black_box(passes)
        query = Attribute(inputs, segments, labels)
        answer = ask(method, interpreted(method, few_shot), few_shot, query).answer
        found = answer[..., 0 if passes < 10 else 1]
        return torch.corrcoef(torch.stack([found.flatten(), truth.flatten()]))[0, 1]

    few, many = agreement(5), agreement(41)
    assert many > few and many > 0.8


def test_halves_come_with_their_other_half_and_effects_undo_a_sum():
    module = module_of(method_of("controls", "black_box"))
    chosen = module.halves(10, 200)
    assert sorted(chosen[0] + chosen[1]) == list(range(10)) and len(chosen) == 200
    worth = torch.arange(10.0)
    values = torch.stack([worth[of].sum() for of in chosen]).unsqueeze(-1)  # each cut costs what its things are worth
    found = module.effects(chosen, 10, values).flatten()
    # Halves of one size: a thing's worth less the mean of the others', up to the noise of 200 draws.
    assert torch.allclose(found, (worth - worth.mean()) * 10 / 9, atol=2.0)
    assert torch.corrcoef(torch.stack([found, worth]))[0, 1] > 0.97


def test_replacing_is_one_pass_for_each_replacement(mlp):
    inputs, labels = (part[:N] for part in mlp.corpus("validation"))
    segments = ((0, 1), (2, 3), (0, 1))
    new = torch.rand(N, 3, 2)
    query = Attribute(inputs, segments, labels, new)
    assert ask(black_box(2), interpreted(black_box(2), mlp), mlp, query).answer is None
    answer = ask(black_box(3), interpreted(black_box(3), mlp), mlp, query).answer
    changed = inputs.clone()
    changed[:, 2:4] = new[:, 1]
    told = mlp.model(changed).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    assert torch.allclose(answer[:, 1, 1], told, atol=1e-4)


@pytest.mark.parametrize("name", ["order_probe", "confidence_probe"])
def test_probes_answer_about_inputs_alone(name, few_shot, mlp):
    method = method_of("controls", name)
    for target in (few_shot, mlp):
        made, declined = interpreted(method, target), name == "order_probe" and target is mlp
        for query, rows in queries(target).values():
            answer = ask(method, made, target, query).answer
            assert (answer is None) == (declined or not isinstance(query, Represent))
            assert answer is None or tuple(answer.shape[: len(rows)]) == rows


def test_a_confidence_probe_reads_the_margin_and_an_order_probe_what_it_was_fitted_on(few_shot):
    """On episodes they were not fitted on. What each is worth on other questions is measured in docs/people.md."""
    inputs = few_shot.corpus("validation").inputs
    best = few_shot.model(inputs).topk(2, dim=-1).values
    margin = best[:, 0] - best[:, 1]
    probe = method_of("controls", "confidence_probe")
    answer = ask(probe, interpreted(probe, few_shot), few_shot, Represent(inputs)).answer
    assert torch.corrcoef(torch.stack([answer[:, -1], margin]))[0, 1] > 0.5

    module = module_of(method_of("controls", "order_probe"))
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    wanted = x @ torch.arange(6.0) + 2.0
    found = module.fit(x, wanted)
    assert torch.allclose(x @ found["weight"] + found["bias"], wanted, atol=0.3)
