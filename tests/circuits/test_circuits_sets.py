"""Sets of edges that cancel, circuits that are not the only one, and circuits held against what was asked."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

from stages.circuits.algorithms.acdc import eliminate, losses
from stages.circuits.algorithms.joint import irreducible, joint_cuts
from stages.circuits.algorithms.methods import Settings, run_method
from stages.circuits.discovery import Subject, discover
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import mse
from stages.errors import UserError
from tests.circuits.foreign import Foreign, TwoLayers, inputs

STRICT = Settings(tolerance=1e-6)
"""Every edge of the plan counts."""


def wired(module: TwoLayers) -> set[tuple[str, str]]:
    """Edges of the plan, without units from 6 on, which cancel."""
    names = {"first": ("x", "one"), "second": ("one", "two"), "third": ("two", "out"), "skip": ("one", "out")}
    return {
        (f"{source}.{column}", f"{reader}.{row}")
        for layer, (source, reader) in names.items()
        for row, column in getattr(module, layer).weight.nonzero().tolist()
        if (source != "one" or column < 6) and (reader != "one" or row < 6)
    }


def engine_of(module: TwoLayers, ablation: str, groups: int) -> MaskedForward:
    x = inputs(60 * groups, 8)
    generator = torch.Generator().manual_seed(0)
    return MaskedForward(module, module.circuit(), x, ablation=ablation, generator=generator, groups=groups)  # type: ignore[arg-type]


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize(
    ("weights", "reader"),
    [
        ((1.3, -1.3), ("skip", 0)),  # a pair into an output
        ((1.0, 1.0, -2.0), ("skip", 0)),  # three: no pair of them can go
        ((1.0, 1.0, -3.0, 1.0), ("skip", 1)),
        ((1.3, -1.3), ("second", 0)),  # into a hidden unit that is used
    ],
)
def test_sets_that_cancel_are_cut_in_every_seed(
    weights: tuple[float, ...], reader: tuple[str, int], ablation: str
) -> None:
    module = TwoLayers().cancelling(weights, reader)
    engine = engine_of(module, ablation, 3)
    assert engine.n_edges == 188 and len(wired(module)) == 32
    plain = run_method("acdc", engine, mse, torch.Generator().manual_seed(0), STRICT)
    joint = run_method(
        "acdc", engine, mse, torch.Generator().manual_seed(0), Settings(tolerance=1e-6, joint_after_acdc=True)
    )
    learned = run_method("edge-sp", engine, mse, torch.Generator().manual_seed(0), STRICT)
    for one, both, other in zip(plain, joint, learned, strict=True):
        assert one.mask is not None and set(engine.layout.kept(one.mask)) > wired(module), "single cuts cannot"
        for found in (both, other):
            assert found.mask is not None and set(engine.layout.kept(found.mask)) == wired(module)
            assert float(found.scores[found.mask > 0.5].min()) > float(found.scores[found.mask < 0.5].max())
        assert both.unpolished is not None and torch.equal(both.unpolished, one.mask)
        assert both.bill.forwards > one.bill.forwards


def test_irreducible_up_to_pairs_is_what_brute_force_says() -> None:
    module = TwoLayers().cancelling((1.3, -1.3), ("skip", 0))
    engine = engine_of(module, "zero", 1)
    allowed = 1e-6 * float(losses(engine, mse, torch.zeros(engine.n_edges)))
    single = eliminate(engine, mse, engine.ones(), list(range(engine.n_edges))[::-1], allowed)
    kept = (single > 0.5).nonzero().flatten().tolist()
    good = []
    for size in (1, 2):
        for places in combinations(kept, size):
            mask = single.clone()
            mask[list(places)] = 0.0
            if float(losses(engine, mse, mask)) <= allowed:
                good.append(places)
    tried = irreducible(engine, mse, single, allowed)
    assert tried.up_to == "nothing" and tried.set == good[0] and {len(places) for places in good} == {2}
    both = joint_cuts(engine, mse, single, list(range(engine.n_edges)), lambda _, after: after <= allowed)
    assert irreducible(engine, mse, both, allowed).up_to == "pairs"
    assert irreducible(engine, mse, both, allowed).pairs == 32 * 31 // 2
    assert irreducible(engine, mse, engine.ones(), allowed).up_to == "nothing"


def test_too_many_pairs_are_said_and_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.circuits.algorithms.joint.MOST_PAIRS", 3)
    found = discover(
        Subject(Foreign(), inputs(), metric="mse"), "edge-sp", ablation="zero", settings=Settings(tolerance=1e-4)
    )
    assert found["circuit"] is not None and found["circuit"]["irreducible_up_to"] == "single edges"


class Either(Foreign):
    """Two hidden units that say the same, and an output that saturates: either suffices."""

    def __init__(self) -> None:
        super().__init__(sizes=(2, 3, 1))
        with torch.no_grad():
            self.a.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
            self.a.bias.zero_()
            self.b.weight.copy_(torch.tensor([[1.0, 1.0, 0.1]]))
            self.b.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        h = self.hook_post((30.0 * self.hook_pre(self.a(self.hook_in(x)))).sigmoid())
        return (10.0 * self.hook_out(self.b(h)) - 5.0).sigmoid()


@pytest.mark.parametrize("method", ["edge-sp", "acdc"])
def test_either_of_two_is_listed_as_an_alternative(method: str) -> None:
    subject = Subject(Either(), inputs(60, 2), metric="mse")
    found = discover(subject, method, ablation="zero", settings=Settings(tolerance=0.02), seeds=3)
    circuit, others = found["circuit"], found["alternatives"]
    assert circuit is not None and circuit["faithful"] and circuit["size"] == 2
    one = {"x.0->h.0", "h.0->out.0"}
    two = {"x.0->h.1", "h.1->out.0"}
    assert set(circuit["edges"]) in (one, two)
    assert len(others) == 1 and others[0]["share"] <= 0.02
    assert {frozenset(others[0]["without"]), frozenset(others[0]["instead"])} == {frozenset(one), frozenset(two)}
    assert any("not the only circuit" in said for said in found["validity"])


def test_a_circuit_without_alternatives_lists_none() -> None:
    found = discover(Subject(TwoLayers(), inputs(60, 8), metric="mse"), "acdc", ablation="zero", settings=STRICT)
    assert found["alternatives"] == [] and found["circuit"] is not None
    assert found["circuit"]["irreducible_up_to"] == "pairs" and found["circuit"]["size"] == 32
    ranked = discover(Subject(TwoLayers(), inputs(60, 8), metric="mse"), "eap-ig", ablation="zero")
    assert ranked["circuit"] is None and ranked["alternatives"] == [] and ranked["tolerance"] is None


# ---- C1: what was asked is compared with what was found ----


def test_a_tolerance_that_is_missed_is_said_on_all_data_and_on_held_out_data() -> None:
    subject = Subject(Foreign(sizes=(20, 30, 5)), inputs(200, 20), metric="mse", ablation="mean")
    found = discover(subject, "acdc", seeds=2, batch=32, settings=Settings(tolerance=0.01))
    empty = found["metrics"]["loss_of_empty_circuit"]
    assert isinstance(empty, float)
    for row in found["per_seed"]:
        assert row["share"] == pytest.approx(row["loss"] / empty, rel=1e-4) and row["share"] > 0.1
        assert not row["faithful"] and row["share_held_out"] is not None and row["share_held_out"] > 0.1
    worst = max(row["share"] for row in found["per_seed"])
    (said,) = [one for one in found["validity"] if one.startswith("not faithful: on all")]
    assert "2 of 2 seeds" in said and f"up to {worst:.2g}" in said and "use edge-sp" in said
    assert any(one.startswith("not faithful on held-out inputs") for one in found["validity"])
    assert found["circuit"] is not None and not found["circuit"]["faithful"]


def test_shares_on_held_out_inputs_are_of_the_inputs_a_seed_did_not_see() -> None:
    subject = Subject(Foreign(sizes=(6, 8, 3)), inputs(50, 6), metric="mse", ablation="mean")
    (row,) = discover(subject, "acdc", batch=20, settings=Settings(tolerance=0.1))["per_seed"]
    module = subject.module
    whole = MaskedForward(module, module.circuit(), subject.clean, ablation="mean")  # type: ignore[operator]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(50, generator=generator)[:20]
    sample = MaskedForward(module, module.circuit(), subject.clean[rows], ablation="mean")  # type: ignore[operator]
    (one,) = run_method("acdc", sample, mse, generator, Settings(tolerance=0.1, joint_after_acdc=True))
    assert one.mask is not None
    unseen = torch.ones(50, dtype=torch.bool).index_fill(0, rows, False)
    per_input = [mse(whole.evaluate(mask), whole.clean_outputs)[0] for mask in (one.mask, torch.zeros(whole.n_edges))]
    assert row["share_held_out"] == pytest.approx(
        float(per_input[0][unseen].sum() / per_input[1][unseen].sum()), rel=1e-4
    )


def test_a_size_that_is_too_small_is_said() -> None:
    subject = Subject(Foreign(), inputs(200), metric="mse", ablation="zero")
    found = discover(subject, "edge-sp", settings=Settings(size=2, tolerance=0.01, steps=50))
    assert found["per_seed"][0]["size"] == 2
    assert any("raise --size 2" in said for said in found["validity"])
    with pytest.raises(UserError, match="size = 21 is out of range: the graph has 20 edges"):
        discover(subject, "edge-sp", settings=Settings(size=21))
    with pytest.raises(UserError, match="only edge-sp takes one, acdc does not"):
        discover(subject, "acdc", settings=Settings(size=3))


def test_a_faithful_circuit_is_called_nothing_else() -> None:
    subject = Subject(TwoLayers(), inputs(300, 8), metric="mse", ablation="zero")
    found = discover(subject, "edge-sp", batch=60, seeds=3, settings=STRICT)
    assert all(row["faithful"] for row in found["per_seed"]) and found["validity"] == []
    assert found["circuit"] is not None and found["circuit"]["share_held_out"] is not None
    everything = discover(subject, "edge-sp", batch=300, settings=STRICT)
    assert any("nothing was held out" in said for said in everything["validity"])
    assert everything["per_seed"][0]["share_held_out"] is None


def test_seeds_that_disagree_do_not_make_an_unfaithful_circuit_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two seeds with two halves of an alternative: the edges both keep are no circuit."""
    subject = Subject(Either(), inputs(60, 2), metric="mse")
    engine = MaskedForward(subject.module, subject.module.circuit(), subject.clean, ablation="zero")  # type: ignore[operator]
    masks = [engine.layout.mask(["x.0->h.0", "h.0->out.0"]), engine.layout.mask(["x.0->h.1", "h.1->out.0"])]
    from stages.circuits.algorithms.found import Bill, Found

    monkeypatch.setattr(
        "stages.circuits.discovery.run_method", lambda *_: [Found(mask.clone(), mask, Bill()) for mask in masks]
    )
    found = discover(subject, "acdc", ablation="zero", seeds=2, settings=Settings(tolerance=0.02))
    assert found["circuit"] is not None and found["circuit"]["of"] == "seed 0" and found["circuit"]["faithful"]
    assert any("seeds disagree" in said for said in found["validity"])
    assert [other["found_by"] for other in found["alternatives"]] == ["seed 1"]
