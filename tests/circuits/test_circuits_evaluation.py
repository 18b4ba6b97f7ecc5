"""Metrics against scikit-learn and hand arithmetic; validity; discovery from a file."""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from stages.circuits.algorithms.acdc import losses
from stages.circuits.algorithms.methods import Settings, run_method
from stages.circuits.discovery import Subject, discover, load_subject
from stages.circuits.engine.masked import MaskedForward
from stages.circuits.engine.objectives import (
    OBJECTIVES,
    answer,
    distance,
    kl,
    mse,
    projection,
)
from stages.circuits.engine.transformers import PlainTransformer
from stages.circuits.evaluation import (
    GRID,
    against_truth,
    agreement,
    auc,
    divergence,
    faithfulness_curve,
    interchange_accuracy,
    node_scores,
    random_mask,
    seed_agreement,
)
from stages.circuits.known.known_circuits import TOLERANCE, card_named, truth_of
from stages.circuits.known.planted import PlantedMlp
from stages.circuits.recovery import run_card, verdicts
from stages.circuits.validity import check_circuit
from stages.contracts.circuit_rows import TimedCircuitRow
from stages.errors import UserError
from stages.tools.circuit_tables import replace_between

ROOT = Path(__file__).resolve().parents[2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30))
def test_auc_is_scikit_learns_with_ties(rows: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([float(score) for score, _ in rows])
    truth = torch.tensor([float(kept) for _, kept in rows])
    if 0 < truth.sum() < len(truth):
        assert auc(scores, truth) == pytest.approx(roc_auc_score(truth.numpy(), scores.numpy()))
        assert auc(torch.ones(len(rows)), truth) == pytest.approx(0.5)
    else:
        with pytest.raises(UserError, match="all or none"):
            auc(scores, truth)


def test_a_tie_at_the_border_is_no_exact_recovery_and_half_a_hit() -> None:
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    tied = against_truth(torch.tensor([3.0, 2.0, 2.0, 1.0]), truth)
    assert tied["precision_at_size"] == pytest.approx(0.75) and tied["exact_recovery"] is False
    clear = against_truth(torch.tensor([3.0, 2.5, 2.0, 1.0]), truth)
    assert clear["precision_at_size"] == 1.0 and clear["exact_recovery"] is True and clear["edge_auc"] == 1.0
    found = against_truth(torch.tensor([3.0, 2.5, 2.0, 1.0]), truth, torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert found["exact_recovery"] is False and found["precision"] == pytest.approx(2 / 3) and found["recall"] == 1.0


def test_seed_agreement_is_the_mean_iou_of_pairs() -> None:
    masks = [torch.tensor(m, dtype=torch.float32) for m in ([1, 1, 0], [1, 0, 0], [0, 0, 0])]
    assert seed_agreement(masks) == pytest.approx((0.5 + 0 + 0) / 3)
    assert seed_agreement(masks[2:] * 2) == 1.0 and seed_agreement(masks[:1]) is None


def test_random_masks_have_their_size() -> None:
    generator = torch.Generator().manual_seed(0)
    assert [int(random_mask(9, size, generator).sum()) for size in (0, 4, 9)] == [0, 4, 9]


def test_faithfulness_is_measured_on_the_grid_of_mib(mlp: PlantedMlp) -> None:
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    engine = MaskedForward(mlp, mlp.circuit(), x, ablation="zero")
    scores = torch.arange(engine.n_edges, dtype=torch.float32)
    found = faithfulness_curve(engine, mse, scores)
    empty = float(losses(engine, mse, torch.zeros(engine.n_edges)))
    f = []
    for share in GRID:
        mask = torch.zeros(engine.n_edges)
        n = round(share * engine.n_edges)
        mask[engine.n_edges - n :] = 1.0
        f.append((empty - float(losses(engine, mse, mask))) / empty)
    assert found["faithfulness"] == pytest.approx(f, abs=1e-5) and f[-1] == pytest.approx(1.0)
    width = [b - a for a, b in pairwise(GRID)]
    assert found["cpr"] == pytest.approx(
        sum(w * (a + b) / 2 for w, a, b in zip(width, f, f[1:], strict=False)), abs=1e-5
    )
    gap = [abs(1 - value) for value in f]
    assert found["cmd"] == pytest.approx(
        sum(w * (a + b) / 2 for w, a, b in zip(width, gap, gap[1:], strict=False)), abs=1e-5
    )


def test_objectives_by_hand() -> None:
    clean = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])  # (B=1, T=2, C=2)
    outputs = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    assert float(mse(outputs, clean)) == pytest.approx(0.25)
    assert float(answer(outputs, clean)) == pytest.approx(((1 - 0.5) + 0) / 2)
    assert float(projection(outputs, clean)) == pytest.approx((1 * 2) / (4 + 1))
    wanted = torch.nn.functional.kl_div(outputs[0, 0].log_softmax(-1), clean[0].softmax(-1), reduction="none").sum(-1)
    assert float(kl(outputs, clean)) == pytest.approx(float(wanted.mean()), rel=1e-5)
    for objective in OBJECTIVES.values():
        assert float(objective(clean.unsqueeze(0), clean)) == pytest.approx(0.0, abs=1e-6)
        grouped = objective(outputs.repeat(3, 1, 1, 1), clean.repeat(3, 1, 1, 1))
        torch.testing.assert_close(grouped, objective(outputs.repeat(3, 1, 1, 1), clean))
    with pytest.raises(UserError, match="unknown"):
        distance("l7")


def test_interchange_accuracy_counts_swaps_that_come_out(transformer: PlainTransformer) -> None:
    generator = torch.Generator().manual_seed(0)
    clean, other = (torch.randint(5, (20, 4), generator=generator) for _ in range(2))
    engine = MaskedForward(transformer, transformer.circuit(), clean, ablation="interchange", counterfactual=other)
    full, swapped = transformer(clean).argmax(-1), transformer(other).argmax(-1)
    assert interchange_accuracy(engine, [], full) == 1.0
    assert interchange_accuracy(engine, engine.layout.sources, swapped) == 1.0
    assert interchange_accuracy(engine, engine.layout.sources, full) == pytest.approx(
        float((swapped == full).double().mean())
    )
    with pytest.raises(UserError, match="no source"):
        interchange_accuracy(engine, ["nobody"], full)
    zero = MaskedForward(transformer, transformer.circuit(), clean, ablation="zero")
    with pytest.raises(UserError, match="interchange"):
        interchange_accuracy(zero, [], full)
    assert agreement(zero, zero.ones()) == 1.0 and divergence(zero, zero.ones()) == pytest.approx(0.0, abs=1e-5)
    scores = node_scores(zero.layout, zero.layout.mask(["embed->out"]))
    assert scores[zero.layout.sources.index("embed")] == 1.0 and scores[zero.layout.sources.index("pos")] == 0.0


def test_a_circuit_that_rests_on_a_constant_input_is_told(mlp: PlantedMlp) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(16, 6, generator=generator)
    x[:, 3] = 2.0  # this input never varies
    engine = MaskedForward(mlp, mlp.circuit(), x, ablation="mean")
    bare = MaskedForward(mlp, mlp.circuit(), x, ablation="zero")
    mask = torch.tensor([float(edge.source != "x.3") for edge in engine.layout.edges])
    found = check_circuit(engine, mse, mask, 1e-3, bare)
    assert engine.constant_sources() == ("x.3",) and found.constant == ("x.3",)
    assert found.only_by_constancy and not found.trivial and any("only because" in said for said in found.said)
    whole = check_circuit(engine, mse, engine.ones(), 1e-3, bare)
    assert not whole.only_by_constancy
    varied = x + torch.randn(16, 6, generator=generator)
    clean = MaskedForward(mlp, mlp.circuit(), varied, ablation="mean")
    assert check_circuit(clean, mse, clean.ones(), 1e-3).said == ()
    same = MaskedForward(mlp, mlp.circuit(), x[:1].expand(5, -1), ablation="mean")
    trivial = check_circuit(same, mse, same.ones(), 1e-3)
    assert trivial.trivial and "same for every input" in trivial.said[0]


def test_discovery_of_the_example_finds_its_plan() -> None:
    subject = load_subject(f"{ROOT / 'examples' / 'my_circuit_target.py'}:build")
    found = discover(subject, "edge-sp", ablation="zero", seeds=3, settings=Settings(tolerance=0.01))
    json.dumps(found, allow_nan=False)
    plan = {("x.0", "one.0"), ("x.1", "one.0"), ("one.0", "two.0")}
    plan |= {(source, f"out.{i}") for source in ("one.0", "two.0") for i in range(3)}
    kept = {(edge["source"], edge["reader"]) for edge in found["edges"] if edge["seeds_that_keep_it"] == 3}
    assert kept <= plan and len(kept) >= 6, kept
    assert found["metrics"]["iou_of_seeds"] > 0.8 and len(found["per_seed"]) == 3
    for row in found["per_seed"]:
        assert row["loss"] <= 0.011 * found["metrics"]["loss_of_empty_circuit"] < row["loss_of_random_circuit"] * 1.1
    assert found["cost"]["backwards"] == 200 and found["cost"]["flops_of_one_forward"] > 0
    assert [edge["score"] for edge in found["edges"]] == sorted((e["score"] for e in found["edges"]), reverse=True)


def test_the_ablation_is_never_silent(mlp: PlantedMlp) -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(0))
    bare = Subject(mlp, x, metric="mse")
    unsaid = discover(bare, "eap-ig")
    assert (unsaid["ablation"], unsaid["ablation_from"]) == ("mean", "default") and "no ablation" in unsaid["validity"][
        0
    ]
    assert discover(Subject(mlp, x, metric="mse", ablation="zero"), "eap-ig")["ablation"] == "zero"
    given = discover(Subject(mlp, x, metric="mse", ablation="zero"), "eap-ig", ablation="resample")
    assert (given["ablation"], given["ablation_from"]) == ("resample", "option")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def build(): return {}", "module and clean are needed"),
        ("def build(): return 3", "returns int"),
        ("def build(): raise KeyError('x')", "fails with KeyError"),
        ("build = 3", "no function 'build'"),
        ("import torch\ndef build(): return {'module': torch.nn.Linear(1, 1), 'clean': 3}", "clean"),
        ("import torch\ndef build(): return {'module': torch.nn.Linear(1, 1), 'clean': torch.ones(2, 1)}", "no graph"),
        ("1 +", "SyntaxError"),
    ],
)
def test_a_file_that_is_no_target_is_an_error(tmp_path: Path, code: str, said: str) -> None:
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(UserError, match=said):
        discover(load_subject(f"{tmp_path / 'mine.py'}:build"), "acdc", ablation="zero")
    with pytest.raises(UserError, match=r"FILE.py:function"):
        load_subject(str(tmp_path / "mine.py"))


def test_undeclared_graphs_are_told(mlp: PlantedMlp) -> None:
    x: Tensor = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(UserError, match="return Graph"):
        discover(Subject(mlp, x, graph=3), "acdc", ablation="zero")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="both must be at least 1"):
        discover(Subject(mlp, x), "acdc", ablation="zero", seeds=0)
    with pytest.raises(UserError, match="fails on inputs"):
        discover(Subject(mlp, x[:, :3]), "acdc", ablation="zero")


def test_goals_are_judged_by_the_worst_card() -> None:
    row = TimedCircuitRow(
        card="a", subject="reverse", ablation="zero", length=3, method="acdc", seeds=1, n_edges=9, truth_edges=3,
        truth_agrees=True, told_size=False, seconds_per_seed=0.1,
    )  # fmt: skip
    slow = row.model_copy(update={"seconds_per_seed": 0.3, "card": "b"})
    elsewhere = row.model_copy(update={"subject": "sort", "seconds_per_seed": 9.0})
    assert [(found.card, found.met) for found in verdicts([row, slow, elsewhere])] == [("b", False)]


@pytest.mark.parametrize("method", ["acdc", "eap"])
def test_a_circuit_is_priced_in_bits(method: str) -> None:
    (card,) = card_named("planted_mlp-zero")
    truth = truth_of(card, 1)
    (row,) = run_card(card, truth, [method], 1)
    size = int(row.size or 0)
    assert row.choice_bits == pytest.approx(math.log2((row.n_edges + 1) * math.comb(row.n_edges, size)))
    generator = torch.Generator().manual_seed(1)
    engine = card.engine(card.inputs(generator), generator, groups=1)
    (found,) = run_method(method, engine, mse, torch.Generator().manual_seed(2), Settings(tolerance=TOLERANCE))
    best = found.scores.argsort(descending=True, stable=True)[:size]
    mask = torch.zeros(engine.n_edges).index_fill(0, best, 1.0) if found.mask is None else found.mask
    assert int(mask.sum()) == size
    left = []
    for clean, cut in zip(engine.clean_outputs.tolist(), engine.evaluate(mask)[0].tolist(), strict=True):
        p, q = ([math.exp(x) / sum(map(math.exp, of)) for x in of] for of in (clean, cut))
        left.append(sum(a * math.log2(a / b) for a, b in zip(p, q, strict=True)))
    assert row.unexplained_bits == pytest.approx(sum(left) / len(left), abs=1e-6)


def test_tables_go_between_their_markers() -> None:
    text = "a\n<!-- t: begin -->\nold\n<!-- t: end -->\nb\n"
    assert replace_between(text, "t", "new") == "a\n<!-- t: begin -->\nnew\n<!-- t: end -->\nb\n"
    with pytest.raises(UserError, match="no line"):
        replace_between(text, "u", "new")
