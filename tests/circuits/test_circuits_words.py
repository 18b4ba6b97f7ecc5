"""A target of words as the subject of a search."""

import pytest
import torch

from stages.base import paths
from stages.circuits.discovery import discover
from stages.circuits.word_subject import subject_of_target
from stages.errors import UserError
from stages.targets.storage import freeze, save_target
from stages.targets.zoo import ZOO
from tests.conftest import make_target


@pytest.fixture
def made(tmp_path, monkeypatch):
    """context_lm and facts_lm as they are before training."""
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    for name in ("context_lm", "facts_lm"):
        definition = ZOO.find(name)()
        data = definition.data(0)
        corpora = {split: data[split] for split in ("train", "validation", "tasks")}
        save_target(freeze(name, definition.build(torch.Generator().manual_seed(0)), corpora), paths.target_dir(name))
    save_target(make_target("digits_mlp", 1), paths.target_dir("digits_mlp"))


def test_every_head_and_every_input_of_it_is_a_node(made):
    subject = subject_of_target("context_lm:pairs")
    assert [node.name for node in subject.graph.nodes] == ["embed", "a0", "a1", "out"]
    assert len(set(subject.clean[..., 1].sum(-1).tolist())) == 1 and len(subject.clean) == 512
    found = discover(subject, "eap", ablation="mean", seeds=1, batch=4)
    assert {edge["reader"] for edge in found["edges"]} >= {"a0.3_q", "a1.0_k", "a1.2_v", "out"}
    assert {edge["source"] for edge in found["edges"]} == {"embed", *(f"a{i}.{j}" for i in (0, 1) for j in range(4))}


def test_what_is_cut_matters_no_more(made):
    """With everything into layer 1 cut but what head 0.2 writes, only edges of that head have a score there."""
    subject = subject_of_target("context_lm:names")
    with torch.no_grad():
        for layer in (0, 1):
            subject.module.blocks[layer].attn.W_O[0 if layer else [0, 1, 3]] = 0.0
    found = discover(subject, "eap", ablation="zero", seeds=1, batch=4)
    score = {(edge["source"], edge["reader"]): abs(edge["score"]) for edge in found["edges"]}
    silent = [value for (source, _), value in score.items() if source in ("a0.0", "a0.1", "a0.3", "a1.0")]
    assert silent and max(silent) < 1e-9 < score["a0.2", "out"]


def test_positions_that_are_learned_are_a_node_and_so_are_mlps(made):
    names = [node.name for node in subject_of_target("facts_lm").graph.nodes]
    assert names == ["embed", "pos", "a0", "m0", "a1", "m1", "a2", "m2", "out"]


def test_what_cannot_be_looked_into_says_so(made):
    for spec, said in (
        ("context_lm:nothing", "has no prompts of a skill 'nothing': it has induction, pairs, labels, names"),
        ("facts_lm:fact", "give facts_lm alone, for inputs of all kinds"),
        ("digits_mlp", "digits_mlp is a .*: edges are found in transformers that are trained here"),
        ("nowhere", "target 'nowhere' is unknown"),
    ):
        with pytest.raises(UserError, match=said):
            subject_of_target(spec)
