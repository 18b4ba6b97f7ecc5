"""One method against another, on the toy graph: paired where the arms are there, bounded where they are not."""

import numpy as np
import pytest

from stages.base import paths
from stages.contracts.reward_rows import TEST_PER_TASK
from stages.errors import UserError
from stages.execution.results import load_arms, load_baseline
from stages.reward.against import against
from stages.reward.inference import Estimated
from stages.reward.judging import judge, task_row
from stages.reward.settings import RewardConfig
from stages.tasks.storage import load_task

TOY_TASK = ("few_shot_shapley", "digits_few_shot")


def judged_by_hand(method: str):
    task = load_task(*TOY_TASK)
    arms = load_arms(paths.execution_dir(method), task.name)
    return judge(task, load_baseline(paths.execution_dir("baseline"), task.name), arms, RewardConfig(draws=200))


def test_the_difference_is_that_of_the_draws_they_share(graph):
    rows = {(row.method, row.scope): row for row in against("gradient", "validation")}
    assert {method for method, _ in rows} == {"attention", "nothing", "random_features"}
    one, other = judged_by_hand("attention"), judged_by_hand("gradient")
    found = rows["attention", "tasks"]
    wanted = one.estimate(one.reward - other.reward)
    assert found.against == "gradient" and found.value == pytest.approx(wanted.value, abs=2e-6)
    assert (found.low, found.high) == pytest.approx(wanted.interval(), abs=1e-5)
    families = rows["attention", "families"]
    assert families.n == 1 and families.low is None and families.value == pytest.approx(found.value, abs=2e-6)


def test_doing_nothing_is_compared_as_well(graph):
    row = next(row for row in against("gradient", "validation") if (row.method, row.scope) == ("nothing", "tasks"))
    alone = judged_by_hand("gradient")
    assert row.value == pytest.approx(-alone.reward[0].mean(), abs=2e-6)
    assert row.p is not None or np.allclose(alone.reward, 0), "it declined, and its rival did not"


def test_on_the_sealed_test_the_errors_add_up(graph):
    rows = [task_row(method, judged_by_hand(method)).model_copy(update={"split": "test"})
            for method in ("attention", "gradient")]  # fmt: skip
    TEST_PER_TASK.save(tuple(rows))
    found = next(row for row in against("gradient", "test") if row.scope == "tasks")
    assert (found.method, found.split) == ("attention", "test")
    assert found.value == pytest.approx(rows[0].reward_mean - rows[1].reward_mean, abs=2e-6)
    bound = Estimated(found.value, sum(row.reward_se for row in rows), min(row.reward_df for row in rows))
    assert (found.low, found.high) == pytest.approx(bound.interval(), abs=1e-5)


def test_an_unknown_rival_is_refused(graph):
    with pytest.raises(UserError, match="no method 'sae' is on this leaderboard: use attention, gradient"):
        against("sae", "validation")
