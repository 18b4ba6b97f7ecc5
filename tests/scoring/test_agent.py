"""A method in the hands of another M2, on the toy graph; and M2s from files."""

import pytest

from stages.errors import UserError
from stages.execution.policies import AlwaysUse
from stages.scoring.agent import policy_named, score_by
from stages.scoring.score import score_method
from tests import toy
from tests.sandbox.walls import needs_sandbox

METHOD = toy.ROOT / "examples" / "my_method.py"


@needs_sandbox
def test_the_rules_reward_stands_beside_that_of_an_m2_that_believes_every_answer(graph):
    told = []
    score = score_by(AlwaysUse(), METHOD, progress=told.append)
    rule = score_method(METHOD, fresh=False, progress=lambda said: None)
    assert {row.task: row.rule for row in score.rows} == {row.task: row.reward_mean for row in rule.per_task}
    assert {row.task: row.used_by_rule for row in score.rows} == {row.task: row.used_answer for row in rule.per_task}
    for row in score.rows:
        assert row.used == row.offered, "whatever it promised"
        assert row.status == "ok" or row.used == row.offered == row.promised == row.agent == 0.0
    assert any(row.used == 1.0 for row in score.rows)
    assert {row.split for row in score.statements} == {"train", "validation"}
    assert all(row.method == "my_method" for row in score.statements) and len(told) > len(score.rows)


def test_an_m2_is_found_by_name_or_in_a_file(tmp_path):
    assert policy_named("always").name == "always"
    file = tmp_path / "frugal.py"
    file.write_text("class Frugal:\n    def choose(self, menu):\n        return {b: 0 for b in menu.budgets}\n")
    assert policy_named(str(file)).name == "frugal"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "is not a file"),
        ("x = 1\n", "defines none"),
        ("class A:\n    def choose(self, menu): ...\nclass B(A):\n    pass\n", "defines A, B"),
        ("class A:\n    def choose(self, menu): ...\n1 / 0\n", r"m2\.py:3 `1 / 0`"),
        ("class A:\n    def __init__(self):\n        1 / 0\n    def choose(self, menu): ...\n", r"m2\.py:3 `1 / 0`"),
        ("class A:\n    def choose(self, menu)\n", r"m2\.py:2"),
    ],
)
def test_a_file_that_is_no_m2_says_why(tmp_path, text, says):
    file = tmp_path / "m2.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=says):
        policy_named(str(file))
    with pytest.raises(UserError, match="use rule, always, llm, react, or"):
        policy_named("sometimes")
