"""Answers about targets of words: recorded on shapes, priced by shape, and refused where ids are no numbers."""

import pytest
import torch

from stages.contracts.method import Represent
from stages.contracts.target import Intervention, Objective, keep_segments
from stages.tracing.recording import record
from tests.conftest import make_target
from tests.tracing.test_recording import NOTHING, Of, blank, both_ways

EMBEDDING, LATER = "hook_embed", "blocks.1.hook_resid_post"
LOSS = Objective("loss")


@pytest.fixture(scope="module")
def words():
    return make_target("context_lm", 0, 30)


def without_the_third(q, target):
    keep = torch.ones(q.inputs.shape[:2], dtype=torch.bool)
    keep[:, 3] = False
    return keep_segments(target.spec, q.inputs, keep)


ANSWERS = {
    "outputs and activations": lambda q, i, t: t.forward(q.inputs, [LATER]).captured[LATER].mean(1),
    "a hidden word": lambda q, i, t: t.forward(without_the_third(q, t)).outputs,
    "gradients": lambda q, i, t: (lambda g: g.grads[EMBEDDING] * g.captured[EMBEDDING])(
        t.gradients(q.inputs, LOSS, [LATER, EMBEDDING])
    ).sum(-1),
    "a head cut": lambda q, i, t: (
        t.forward(q.inputs, [], [Intervention("blocks.0.attn.hook_z", "zero", None, 2, (1,))]).outputs
    ),
    "variants": lambda q, i, t: t.variants([1, 0]).gradients(q.inputs, LOSS, [EMBEDDING]).grads[EMBEDDING].sum(0),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_recorded_and_direct_are_the_same(words, name):
    found, expected, plan, own, _ = both_ways(words, ANSWERS[name])
    assert torch.equal(found, expected) and bool(found.any()) and plan.own_flops == own and plan.target_flops > 0


def test_the_gradient_of_ids_is_refused_when_it_is_recorded(words):
    corpus = words.corpus("train")
    asked = blank(Represent(corpus.inputs[:4], corpus.labels[:4]))
    with pytest.raises(ValueError, match='which have no gradient; use wrt "hook_embed"'):
        record(Of(lambda q, i, t: t.gradients(q.inputs, LOSS, ["input"]).values), asked, NOTHING, words.spec, 0)


def test_ids_that_an_answer_bends_are_refused_when_it_runs(words):
    with pytest.raises(ValueError, match=r"has id .*: ids of context_lm are whole numbers from 0 to 63"):
        both_ways(words, lambda q, i, t: t.forward(q.inputs + torch.tensor([0.5, 0.0])).outputs)
