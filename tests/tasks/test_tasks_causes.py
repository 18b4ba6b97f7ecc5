"""Families about why an answer is given, against code that shares nothing with them."""

from math import log

import numpy as np
import torch

from stages.targets.zoo.cued_digits import CuedDigits, cued
from tests.tasks.conftest import made_small, small_target
from tests.tasks.test_tasks_truth import mlp


def test_anomalous_reason_is_the_margin_that_goes_with_the_cue():
    target, made = small_target("cued_digits"), made_small("anomalous_reason", "cued_digits")
    weights = target.model.state_dict()
    shown, before = made.instances.arrays["inputs"].double().numpy(), made.instances.planted["without"].double().numpy()
    with_cue, without = mlp(weights, shown), mlp(weights, before)
    for i in range(made.instances.n):
        answer = int(with_cue[i].argmax())
        margins = [float(row[answer] - np.delete(row, answer).max()) for row in (with_cue[i], without[i])]
        d = margins[0] - margins[1]
        expected = (1 if d >= 0 else -1) * log(1 + abs(d) / 0.5)
        assert abs(float(made.truth.values[i, 0]) - expected) < 1e-3
        if np.array_equal(shown[i], before[i]):
            assert made.truth.values[i, 0] == 0
        else:  # only pixels of one class's cue are brighter
            brighter = torch.tensor(shown[i] > before[i] + 1e-9).float()
            assert ((CuedDigits().cues() >= brighter).all(-1)).any() and (shown[i] >= before[i]).all()


def test_a_cue_moves_the_answer_to_its_class():
    target, cues = small_target("cued_digits"), CuedDigits().cues()
    assert (cues.sum(-1) == 4).all() and len(set(map(tuple, cues.tolist()))) == 10
    images = target.corpus("tasks").inputs[:200]
    with torch.no_grad():
        plain = target.model(images)
        laid = torch.stack(
            [target.model(cued(images, cues[c].expand(200, -1), torch.full((200,), 0.6))) for c in range(10)]
        )
    rises = torch.stack([(laid[c] - plain)[:, c].mean() for c in range(10)])
    assert (rises > 0.3).all()
