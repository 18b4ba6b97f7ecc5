"""What a cascade stops, and where."""

import pytest

from stages.contracts.outcomes import Outcome
from stages.research.campaign import _both, objective
from stages.research.cascade import promising, static_fault, survivors
from stages.scoring.evaluate import Evaluation


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("class A(Method):\n    pass\n", ""),
        ("import lensmith\nclass A(lensmith.Method):\n    pass\n", ""),
        ("x = 1\n", "no subclass of Method"),
        ("class A:\n    class B(Method):\n        pass\n", "at its top level"),
        ("def f(:\n", "no Python in line 1"),
        ("a\0b", "no Python"),
        ("(" * 5000, "no Python"),
    ],
)
def test_a_file_that_can_be_no_method_is_told_without_running_it(source, said):
    found = static_fault(source)
    assert (said in found) if said else found == ""


def test_a_file_is_not_run_by_looking_at_it(tmp_path):
    static_fault(f"open({str(tmp_path / 'x')!r}, 'w')\nclass A(Method):\n    pass\n")
    assert not (tmp_path / "x").exists()


def test_without_an_incumbent_the_baseline_is_to_be_beaten():
    assert promising(0.01, None) and not promising(0.0, None)


def test_what_was_not_asked_counts_as_nothing_gained():
    assert objective(0.4, None) == objective(0.4, 0.0) == 0.2 and objective(0.4, -0.2) == pytest.approx(0.1)


def test_survivors_of_each_stage():
    found = survivors(["import", "train", "train", "validation"], 1)
    assert found == (("proposed", 4), ("train", 3), ("validation", 1), ("accepted", 1))


@pytest.mark.parametrize(
    ("train", "validation", "outcome", "reason"),
    [("ok", "ok", "ok", "t"), ("failed", "ok", "failed", "t"), ("ok", "failed", "failed", "v"),
     ("failed", "void", "void", "v"), ("ok", "infra", "infra", "v")],
)  # fmt: skip
def test_the_worse_half_of_a_trial_is_told(train: Outcome, validation: Outcome, outcome, reason):
    found = _both(Evaluation(train, "t", "", []), Evaluation(validation, "v", "", []))
    assert (found.outcome, found.reason) == (outcome, reason)
