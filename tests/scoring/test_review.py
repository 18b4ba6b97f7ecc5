"""A result too good to be true is put aside: an answer that computed nothing and knows the truth."""

from dataclasses import replace

import numpy as np
import pytest

from stages.contracts.arms import Answered
from stages.interpretation.loading import built_in
from stages.scoring.cached import cached_task
from stages.scoring.candidate import Candidate, Frozen
from stages.scoring.evaluate import evaluate
from stages.scoring.review import MAX_FREE_GAIN
from stages.scoring.settings import settings

CASE = ("active_learning", "digits_mlp")


class Tells:
    """A host whose method answers so much of the truth, at a price."""

    def __init__(self, share: float, flops: float) -> None:
        self.share, self.flops = share, flops

    def freeze(self, candidate, targets, asked=None):
        return dict.fromkeys(targets, Frozen(b"", b""))

    def ask(self, candidate, frozen, task, target):
        truth = task.truth.values.numpy()[..., None]
        noise = np.random.default_rng(0).normal(size=truth.shape) * truth.std()
        return Answered("ok", self.share * truth + (1 - self.share) * noise, 0.0, self.flops)


@pytest.mark.parametrize(
    ("share", "flops", "outcome"),
    [
        (1.0, 0.0, "void"),
        (1.0, 0.99, "void"),
        (1.0, 1.0, "ok"),  # a FLOP for a number: it may have computed it
        (0.0, 0.0, "ok"),  # noise explains nothing
    ],
)
def test_the_truth_for_nothing_is_void_for_review(graph, share, flops, outcome):
    chosen = settings()
    done = evaluate(Candidate("x", built_in("nothing")), [CASE], Tells(share, flops), chosen.execution)
    assert done.outcome == outcome
    if outcome == "void":
        assert done.results[0].answered.rows is None and done.results[0].arms is None
        assert done.layer == "review" and "look at the method" in done.reason and done.arms == {}
        told = evaluate(
            Candidate("x", built_in("nothing")), [CASE], Tells(share, flops), chosen.execution, review=False
        )
        assert told.outcome == "ok"


def test_what_is_wide_must_cost_more(graph):
    """The price is held against how many numbers there are."""
    chosen, task = settings(), cached_task(*CASE)

    class Wide(Tells):
        def ask(self, candidate, frozen, task, target):
            answered = super().ask(candidate, frozen, task, target)
            return replace(answered, rows=np.repeat(answered.rows, 5, axis=-1))

    assert task.instances.n == 50 and MAX_FREE_GAIN == 0.1
    for flops, outcome in ((4.0, "void"), (5.0, "ok")):
        done = evaluate(Candidate("x", built_in("nothing")), [CASE], Wide(1.0, flops), chosen.execution)
        assert done.outcome == outcome
