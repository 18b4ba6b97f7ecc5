"""Cards: compiled weights do what tracr does, and every circuit comes out the same twice."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from stages.circuits.known.known_circuits import CARDS, card_named, truth_of
from stages.circuits.recovery import bench_rows, card_rows
from stages.circuits.stage import Config, run
from stages.errors import UserError

tracr = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tracr") is None,
    reason="tracr is optional: pip install -e '.[circuits]'",
)


@tracr
@pytest.mark.parametrize("name", ["reverse", "balance"])
def test_compiled_modules_do_what_tracr_and_the_program_do(name: str) -> None:
    from stages.circuits.known.known_circuits import _compiled

    compiled = _compiled(name)
    words = compiled.words(4)[::17]
    inputs = torch.tensor([compiled.encode(["BOS", *word]) for word in words])
    outputs = compiled.module(inputs)
    for word, ours in zip(words, outputs, strict=True):
        theirs = compiled.apply(["BOS", *word])
        residual = torch.tensor(theirs.transformer_output.__array__())[0]
        columns = compiled.module.unembed.weight.argmax(-1)
        torch.testing.assert_close(ours, residual[1:, columns], rtol=1e-5, atol=1e-6)
        decoded, program = theirs.decoded[1:], compiled.evaluate(list(word))
        assert decoded == pytest.approx(program, abs=0.02) if name == "balance" else decoded == program


@tracr
@pytest.mark.parametrize(
    ("card", "size"),
    [
        ("reverse-3-zero", 11), ("reverse-5-zero", 9), ("reverse-3-resample", 2), ("frac_prevs-4-zero", 5),
        ("frac_prevs-4-resample", 3), ("sort-4-zero", 9), ("most_frequent-4-zero", 14),
        ("balance-4-zero", 10),
    ],
)  # fmt: skip
def test_program_and_cuts_give_the_same_circuit(card: str, size: int) -> None:
    truth = truth_of(card_named(card)[0], 1)
    assert truth.agree and len(truth.edges) == size
    if card == "reverse-3-resample":
        assert set(truth.edges) == {"embed->a3.0_v", "a3.0->out"}


@tracr
def test_the_two_edges_of_reverse_are_correct_only_because_the_length_never_varies() -> None:
    (row,) = card_rows(["reverse-3-resample"], orders=1)
    assert any("only because these never vary" in said for said in row.validity) and row.agree
    (zero,) = card_rows(["reverse-3-zero"], orders=1)
    assert zero.validity == ()


@tracr
def test_probing_recovers_reverse_in_every_seed() -> None:
    rows = {row.method: row for row in bench_rows(["reverse-3-zero"], ["edge-sp", "acdc", "random"], seeds=4, orders=1)}
    assert rows["edge-sp"].exact_recovery == 1.0 and rows["edge-sp"].edge_auc == 1.0
    assert rows["acdc"].exact_recovery == 1.0 and rows["random"].exact_recovery == 0.0
    assert rows["random"].told_size and not rows["edge-sp"].told_size
    assert 0.2 < rows["random"].edge_auc < 0.8


@pytest.mark.parametrize("card", [card for card in CARDS if not card.needs_tracr], ids=lambda card: card.name)
def test_planted_circuits_come_out_by_cutting(card: object) -> None:
    truth = truth_of(card, 2)  # type: ignore[arg-type]
    assert truth.agree and 8 < len(truth.edges) < len(truth.mask) / 2


def test_the_stage_writes_the_same_bytes_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    monkeypatch.setenv("LENSMITH_TRACKING", "off")
    config = Config(
        cards=("planted_cnn-zero",),
        methods=("edge-sp", "eap", "random"),
        seeds=2,
        orders=1,
        drawn={"planted_cnn-zero": ("eap",)},
    )
    written = []
    for _ in range(2):
        run(config)
        written.append(
            [(tmp_path / path).read_bytes() for path in ("metrics/circuits.json", "data/circuits/cards.json")]
        )
    assert written[0] == written[1]
    rows = json.loads(written[0][0])
    assert [row["method"] for row in rows] == ["edge-sp", "eap", "random"] and rows[0]["exact_recovery"] == 1.0
    assert all("seconds_per_seed" not in row for row in rows)
    assert yaml.safe_load(written[0][1])[0]["agree"] is True


def test_unknown_cards_and_methods_are_errors() -> None:
    with pytest.raises(UserError, match="planted_mlp"):
        card_named("revers")
    with pytest.raises(UserError, match="edge-sp"):
        bench_rows(["planted_mlp"], ["sp"])
