"""A method in a process of its own gives what it gives in ours; a broken one gives one line."""

import textwrap
import time

import numpy as np
import pytest
import torch

from stages.contracts.method import Attribute, Budget, Interpretation, Represent
from stages.contracts.method_file import from_file
from stages.errors import MethodError
from stages.interpretation.artifact import pack
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.metering.op_table import OpTable
from stages.redteam.red_team import CONTROLS
from stages.sandbox.host import MethodProcess
from stages.tracing.checking import check
from stages.tracing.program import Ref, blank
from stages.tracing.recording import record
from tests.sandbox.walls import TRUST

HEAD = """
import time, os, torch
from lensmith import Interpretation, Method, Represent
class Mine(Method):
    def interpret(self, target, budget): return Interpretation({"w": torch.ones(3)})
    def answer(self, query, interpretation, target): return None
"""


def write(tmp_path, body: str, name: str = "mine.py"):
    path = tmp_path / name
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["gradient_times_input"])
def test_same_artifact_and_program_inside_and_outside(few_shot, method):
    inputs = few_shot.corpus("validation").inputs[:6]
    path, here = CONTROLS / f"{method}.py", from_file(CONTROLS / f"{method}.py")
    made = here.interpret(MeteredAccess(few_shot, Ledger(), free=True), Budget(60, 10**7, 0))
    with MethodProcess(path, method, 60, trust=TRUST) as process, MethodProcess(None, "-", 60, trust=TRUST) as runner:
        apart = process.interpret(MeteredAccess(few_shot, Ledger(), free=True), 10**7, 0)
        assert pack(apart, method, "x", 10**7) == pack(made, method, "x", 10**7)
        for query in (Represent(inputs), Attribute(inputs, tuple((i,) for i in range(8)))):
            program = process.record(blank(query), 0, apart, few_shot.spec)
            expected = record(here, blank(query), made, few_shot.spec, 0)
            assert repr(program.nodes) == repr(expected.nodes) and program.output == expected.output
            given = {Ref("query", "inputs"): inputs}
            access, ledger = MeteredAccess(few_shot, Ledger()), Ledger()
            plan = check(program, given, access, OpTable(), 10**6)
            found = runner.run(program, plan, given, MeteredAccess(few_shot, ledger))
            assert torch.equal(found, here.answer(query, made, access))
            assert ledger.flops == plan.target_flops > 0


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("def answer(self, query, interpretation, target): raise RuntimeError('no idea')", "RuntimeError: no idea"),
        ("def answer(self, query, interpretation, target): return lambda: 1", "cannot be sent"),
        ("def answer(self, query, interpretation, target): return target.weights()", "open in interpret"),
        ("def answer(self, query, interpretation, target): return target.forward(torch.zeros(1, 2)).outputs", "takes"),
        ("def answer(self, query, interpretation, target): time.sleep(60)", "longer than 3 s"),
        ("def answer(self, query, interpretation, target): os._exit(7)", r"its process ended \(exit code 7"),
    ],
)
def test_a_broken_answer_is_one_line_with_its_cause(mlp, tmp_path, body, cause):
    with MethodProcess(write(tmp_path, body), "mine", 3, trust=TRUST) as process:
        made = process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
        with pytest.raises(MethodError, match=cause) as caught:
            process.answer(Represent(mlp.corpus("train").inputs[:2]), made, MeteredAccess(mlp, Ledger()))
    assert "\n" not in str(caught.value)


def test_a_fault_names_the_line_of_the_method_and_no_frame_of_ours(mlp, tmp_path):
    body = "def interpret(self, target, budget):\n    return target.forward(target.corpus().inputs[:, :3])"
    with (
        MethodProcess(write(tmp_path, body), "mine", 30, trust=TRUST) as process,
        pytest.raises(MethodError) as caught,
    ):
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
    assert "mine.py line 8 (`return target.forward(target.corpus().inputs[:, :3])`)" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nonexistent_module", "ModuleNotFoundError"),
        ("x = 1", "it defines none"),
        ("syntax error here", "SyntaxError"),
        (HEAD + "class Other(Mine):\n    pass\n", "it defines Mine, Other"),
        (HEAD.replace("def answer", "def reply"), r"lacks answer"),
        (HEAD + "    def __init__(self, x): pass\n", "TypeError.*constructible without arguments"),
        ("from .helpers import K", "nothing beside it is there"),
        ("from helpers import K", "A method is one file"),
        ("from stages.targets.storage import load_target", "no other part of this project"),
        ("import torch\nx = torch.ones(2) @ torch.ones(3)", r"bad.py line 2 \(`x = torch.ones"),
    ],
)
def test_a_file_that_is_no_method_says_why(tmp_path, source, cause):
    path = tmp_path / "bad.py"
    path.write_text(source, encoding="utf-8")
    with pytest.raises(MethodError, match=cause):
        MethodProcess(path, "bad", 30, trust=TRUST)


def test_nothing_a_method_starts_outlives_it(mlp, tmp_path):
    """Without a sandbox: a child it leaves behind is ended with its process group."""
    mark = tmp_path / "alive"
    body = f"""
    def interpret(self, target, budget):
        if os.fork() == 0:
            while True:
                open({str(mark)!r}, "a").write("x"); time.sleep(0.05)
        time.sleep(0.3)
        return Interpretation()
    """
    with MethodProcess(write(tmp_path, body), "mine", 30, trust=True) as process:
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
    size = mark.stat().st_size
    assert size > 0
    time.sleep(0.3)
    assert mark.stat().st_size == size


def test_arrays_of_numpy_are_taken_and_objects_are_named(mlp, tmp_path):
    body = """
    def interpret(self, target, budget):
        import numpy as np
        return Interpretation({"a": np.arange(6, dtype="f4").reshape(2, 3)[:, ::2], "n": np.int64([1, 2])})
    """
    with MethodProcess(write(tmp_path, body), "mine", 30, trust=TRUST) as process:
        made = process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
    assert made.arrays["a"].tolist() == [[0.0, 2.0], [3.0, 5.0]] and made.arrays["n"].dtype is torch.int64
    pack(made, "mine", "interpret", 10**6)
    with pytest.raises(MethodError, match=r"array 'x'"):
        pack(Interpretation({"x": np.array([object()])}), "mine", "interpret", 10**6)


def test_what_the_target_refuses_is_said_once(mlp, tmp_path):
    body = """
    def interpret(self, target, budget):
        return target.forward(target.corpus().inputs[:2], ["blocks.0.hook_resid_post"])
    """
    with (
        MethodProcess(write(tmp_path, body), "mine", 30, trust=TRUST) as process,
        pytest.raises(MethodError, match="is no hook point of digits_mlp") as caught,
    ):
        process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
    assert "ValueError" not in str(caught.value) and "mine.py line 9" in str(caught.value)
