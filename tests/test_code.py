"""The closure that digests of code use is grimp's."""

from stages.base import code
from tests import house


def test_the_closure_of_every_module_is_grimps() -> None:
    for module in sorted(house.graph().modules):
        assert code.closure([module]) == house.closure({module}), module


def test_a_comment_in_the_closure_changes_the_digest_and_one_outside_does_not() -> None:
    assert "stages.execution.arms" in code.closure(["stages.execution.runs"])
    assert "stages.report.stage" not in code.closure(["stages.execution.runs"])
    assert code.code_digest("stages.execution.runs") != code.code_digest("stages.execution.arms")
