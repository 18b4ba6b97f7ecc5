"""Another M2 in the place of the rule: what it is shown, what it may choose, and what then is predicted."""

import numpy as np
import pytest

from stages.contracts.arms import Answered
from stages.execution import runs
from stages.execution.arms import shuffle_rows, split
from stages.execution.calibrator import Calibrator, assemble
from stages.execution.policies import AlwaysUse, Menu, Offer, checked_choice
from stages.execution.public import public_features
from stages.execution.settings import ExecutorConfig
from stages.tasks.families import family
from stages.tasks.generation import make
from stages.tasks.storage import Task

CONFIG = ExecutorConfig(n_calibration=20, n_seeds=2)


class ByRule:
    name = "by rule"

    def __init__(self):
        self.menus = []

    def choose(self, menu: Menu):
        self.menus.append(menu)
        return menu.by_rule


@pytest.fixture(scope="module")
def posed(mlp):
    made = make(family("noise_flip"), mlp, "train", 60, 0, "a", b"key")
    task = Task(family("noise_flip"), mlp.name, "train", made.instances.public(), made.truth)
    noise = np.random.default_rng(0).normal(size=(60, 1, 1))
    rows = task.truth.values.numpy()[..., None] + 0.3 * float(task.truth.values.std()) * noise
    return task, runs.baseline_of(task, mlp, CONFIG), rows


def same(one, other):
    return all(
        np.array_equal(a.predictions, b.predictions) and (a.flops, a.effort, a.used_answer, a.budget, a.seed)
        == (b.flops, b.effort, b.used_answer, b.budget, b.seed)
        for a, b in zip(one, other, strict=True)
    )  # fmt: skip


def test_a_policy_that_follows_the_rule_has_the_rules_arms(posed):
    task, baseline, rows = posed
    answered, policy = Answered("ok", rows, 7.0, 0.0), ByRule()
    own, found = runs.arms_by(policy, task, baseline, answered, CONFIG)
    wanted = runs.arms_of(task, baseline, answered, CONFIG)
    assert same(own.first, baseline.first) and same(found.assisted, wanted.assisted)
    assert same(found.placebo, wanted.placebo)
    assert len(policy.menus) == 2 * 3, "each seed: alone, with the answer, with its placebo"
    alone, with_answer, _ = policy.menus[:3]
    assert not any(one.answer for one in alone.offers) and any(one.answer for one in with_answer.offers)
    assert with_answer.offers[0].flops == 0.0 and with_answer.kind == "Represent"


def test_who_always_uses_the_answer_predicts_what_the_answer_alone_predicts(posed):
    """By hand: the calibrator on what the question holds and the answer, fitted on the calibration instances."""
    task, baseline, rows = posed
    own, found = runs.arms_by(AlwaysUse(), task, baseline, Answered("ok", rows, 7.0, 0.0), CONFIG)
    assert same(own.first, baseline.first), "without an answer it is the rule"
    truth, public = task.truth.values.numpy(), public_features(task)
    for result in found.assisted:
        calibration, evaluation = split(task, result.seed, CONFIG)
        features = assemble(public, rows)
        model = Calibrator(CONFIG.max_features).fit(features[calibration], truth[calibration])
        assert result.used_answer and result.effort == -1 and result.flops == 7.0
        assert np.array_equal(result.predictions, model.predict(features[evaluation])[result.calibrator])
    assert all(result.used_answer for result in found.placebo), "a placebo is believed as well"
    dealt = shuffle_rows(rows, task.name, 0)
    features = assemble(public, dealt)
    calibration, evaluation = split(task, 0, CONFIG)
    model = Calibrator(CONFIG.max_features).fit(features[calibration], truth[calibration])
    first = found.placebo[0]
    assert np.array_equal(first.predictions, model.predict(features[evaluation])[first.calibrator])


def test_who_always_uses_it_cannot_where_it_is_too_dear(posed):
    task, baseline, rows = posed
    _, found = runs.arms_by(AlwaysUse(), task, baseline, Answered("ok", rows, 1e15, 0.0), CONFIG)
    by_budget = {result.budget: result.used_answer for result in found.assisted}
    assert by_budget == {"tight": False, "medium": False, "ample": True}


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"tight": 0}, "for each of"),
        ({"tight": 0, "medium": 0, "ample": 0, "free": 0}, "for each of"),
        ({"tight": 99, "medium": 0, "ample": 0}, "tight: offer 99"),
        ({"tight": True, "medium": 0, "ample": 0}, "tight: offer True"),
        ({"tight": "0", "medium": 0, "ample": 0}, "tight: offer '0'"),
        ({"tight": -1, "medium": 0, "ample": 0}, "tight: offer -1"),
        ({"tight": 2, "medium": 0, "ample": 0}, "too dear"),
    ],
)
def test_a_choice_that_is_not_on_the_menu_is_refused(choice, says):
    offers = (Offer(-1, False, False, 0.0, 0.0), Offer(0, False, False, 1.0, 0.2), Offer(1, False, False, 9.0, 0.9))
    budgets = {"tight": (4.0, 4.0), "medium": (6.0, 6.0), "ample": (float("inf"), 9.0)}
    menu = Menu("Represent", offers, budgets, 0.1, 0.02, {"tight": 0, "medium": 1, "ample": 2})
    assert checked_choice(menu, menu.by_rule) == menu.by_rule
    with pytest.raises(ValueError, match=says):
        checked_choice(menu, choice)


def test_without_an_answer_there_is_nothing_to_use(posed):
    task, baseline, _ = posed
    own, found = runs.arms_by(AlwaysUse(), task, baseline, Answered("declined", None, 0.0, 0.0), CONFIG)
    assert same(found.assisted, own.first) and found.status == "declined"
