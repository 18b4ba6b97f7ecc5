"""Peers: an exported card says all that is needed to run it elsewhere, and a peer's result is read against it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stages.benchmarks.circuit_peers.auto_circuit_peer import our_name
from stages.benchmarks.circuit_peers.compare import (
    compare,
    execute,
    our_row,
    peer_rows,
)
from stages.benchmarks.circuit_peers.export import Exported, export_card, read_export
from stages.errors import UserError

tracr = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("tracr") is None,
    reason="tracr is optional: pip install -e '.[circuits]'",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peers") / "card.safetensors"
    execute(["export", "frac_prevs-4-resample", str(path), "3"])
    return path


@pytest.fixture(scope="module")
def exported(path: Path) -> Exported:
    return read_export(path)


def plain(card: dict[str, Any], w: dict[str, Tensor], tokens: Tensor, cut: frozenset[str], other: Tensor) -> Tensor:
    """The forward in plain torch, one edge at a time, from nothing but the file; cut edges carry the other run."""
    runs: list[dict[str, Tensor]] = []
    for now, cuts in ((other, frozenset[str]()), (tokens, cut)):
        wrote = {"start": w["embed.weight"][now] + w["pos.weight"][: now.shape[1]]}
        bias = torch.zeros(card["d_model"])

        def read(name: str, wrote: dict[str, Tensor], cuts: frozenset[str], bias: Tensor) -> Tensor:
            return bias + sum(runs[0][source] if f"{source}->{name}" in cuts else wrote[source] for source in wrote)

        for layer in range(card["n_layers"]):
            at, heads = f"blocks.{layer}.", {}
            for head in range(card["n_heads"]):
                name = f"a{layer}.{head}"
                q, k, v = (
                    read(f"{name}_{port}", wrote, cuts, bias) @ w[f"{at}attn.W_{port.upper()}"][head]
                    + w[f"{at}attn.b_{port.upper()}"][head]
                    for port in "qkv"
                )
                pattern = (q @ k.transpose(1, 2) / card["d_head"] ** 0.5).softmax(-1)
                heads[name] = pattern @ v @ w[f"{at}attn.W_O"][head]
            wrote |= heads
            bias = bias + w[f"{at}attn.b_O"]
            hidden = read(f"m{layer}", wrote, cuts, bias) @ w[f"{at}W_in.weight"].T + w[f"{at}W_in.bias"]
            wrote[f"m{layer}"] = hidden.relu() @ w[f"{at}W_out.weight"].T + w[f"{at}W_out.bias"]
        outputs = (read("out", wrote, cuts, bias) @ w["unembed.weight"].T)[:, 1:]
        runs.append(wrote)
    return outputs


@tracr
def test_a_plain_forward_from_the_file_gives_the_modules_outputs_and_the_known_circuit(path: Path) -> None:
    with safe_open(path, "pt") as file:
        w = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        card = json.loads(file.metadata()["card"])
    clean, other = w["clean"], w["counterfactual"]
    torch.testing.assert_close(plain(card, w, clean, frozenset(), other), w["outputs"], rtol=1e-4, atol=1e-5)
    everything, truth = frozenset(card["edges"]), frozenset(card["truth"])
    assert truth < everything and len(everything) == 23 and len(truth) == 3

    def loss(cut: frozenset[str]) -> float:
        return float((plain(card, w, clean, cut, other) - w["outputs"]).square().mean())

    allowed = card["tolerance"] * loss(everything)
    assert loss(everything - truth) <= allowed
    assert all(loss((everything - truth) | {edge}) > allowed for edge in truth)
    assert sorted(map(tuple, clean.tolist())) == sorted(map(tuple, other.tolist()))
    assert not bool((clean == other).all(1).any())


@tracr
def test_reading_gives_the_module_and_one_engine_of_the_same_edges(exported: Exported) -> None:
    torch.testing.assert_close(exported.module(exported.clean), exported.outputs, rtol=0, atol=0)
    engine = exported.engine(check=True)
    assert list(map(str, engine.layout.edges)) == exported.card["edges"] and exported.card["seed"] == 3
    row = our_row(exported, "acdc")
    assert row["exact"] and row["edge_auc"] == 1.0 and not row["told_size"]


@tracr
def test_another_seed_has_other_prompts_and_the_same_one_the_same_bytes(path: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again", tmp_path / "other"
    export_card("frac_prevs-4-resample", again, 3)
    export_card("frac_prevs-4-resample", other, 4)
    assert again.read_bytes() == path.read_bytes()
    assert not torch.equal(read_export(other).clean, read_export(path).clean)


def result(exported: Exported, scores: dict[str, float], kept: list[str] | None) -> dict[str, Any]:
    row = {"method": "x", "seconds": 2.0, "patched": True, "scores": scores, "kept": kept}
    return {"card": exported.card["name"], "seed": exported.card["seed"], "rows": [row]}


@tracr
def test_a_peers_result_is_judged_by_name_whatever_its_order(exported: Exported) -> None:
    edges, truth = exported.card["edges"], exported.card["truth"]
    good = {edge: float(edge in truth) for edge in reversed(edges)}
    (row,) = peer_rows(exported, result(exported, good, None))
    assert row["edge_auc"] == 1.0 and row["exact"] and row["told_size"] and row["patched"] and row["seconds"] == 2.0
    (row,) = peer_rows(exported, result(exported, {edge: -score for edge, score in good.items()}, truth[1:]))
    assert row["edge_auc"] == 0.0 and not row["exact"] and not row["told_size"] and row["size"] == len(truth) - 1
    (row,) = peer_rows(exported, result(exported, dict.fromkeys(edges, 1.0), None))
    assert row["edge_auc"] == 0.5 and not row["exact"]


@tracr
def test_results_of_something_else_are_refused(exported: Exported) -> None:
    scores = dict.fromkeys(exported.card["edges"], 0.0)
    with pytest.raises(UserError, match="seed"):
        peer_rows(exported, result(exported, scores, None) | {"seed": 99})
    scores.pop("start->out")
    with pytest.raises(UserError, match=r"start->out.*graph differs"):
        peer_rows(exported, result(exported, scores, None))
    odd = replace(exported, card=exported.card | {"name": "reverse-3-zero"})
    with pytest.raises(UserError, match="reverse-3-zero"):
        peer_rows(odd, result(exported, scores, None))


def test_the_peers_names_of_nodes_are_ours() -> None:
    theirs = ("Resid Start", "A3.0", "A12.11.V", "A0.1.Q", "MLP 2", "Resid End")
    assert [our_name(node) for node in theirs] == ["start", "a3.0", "a12.11_v", "a0.1_q", "m2", "out"]


def test_what_cannot_be_exported_or_read_is_said(tmp_path: Path) -> None:
    for name in ("planted_mlp-zero", "reverse"):
        with pytest.raises(UserError, match="reverse-4-zero"):
            export_card(name, tmp_path / "x")
    with pytest.raises(UserError, match=r"circuit_peers.compare export"):
        read_export(tmp_path / "missing")
    save_file({"a": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(UserError, match="no exported card"):
        read_export(tmp_path / "other")
    with pytest.raises(UserError, match="not understood"):
        execute(["export"])


@tracr
def test_a_peer_that_cannot_run_is_an_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be started"):
        compare(path, tmp_path / "no_python", 1, ["eap"])
    with pytest.raises(UserError, match="edge-sp"):
        compare(path, tmp_path / "no_python", 1, ["sp"])
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho went wrong >&2\nexit 3\n")
    broken.chmod(0o755)
    with pytest.raises(UserError, match="went wrong"):
        compare(path, broken, 1, ["eap"])
