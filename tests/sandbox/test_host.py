"""A method in a process of its own gives what it gives in ours; a broken one gives one line."""

import textwrap
import time

import pytest
import torch

from stages.contracts.method import Attribute, Represent
from stages.errors import MethodError
from stages.interpretation.artifact import pack
from stages.interpretation.loading import built_in
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.sandbox.host import MethodProcess
from tests.sandbox.walls import TRUST

HEAD = """
import time, os, torch
from stages.interpretation import Interpretation, Method, Represent
class Mine(Method):
    def interpret(self, target, budget): return Interpretation({"w": torch.ones(3)})
    def answer(self, query, interpretation, target): return None
"""


def write(tmp_path, body: str, name: str = "mine.py"):
    path = tmp_path / name
    path.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "), encoding="utf-8")
    return path


@pytest.mark.parametrize("method", ["gradient", "attention", "pca"])
def test_same_artifact_answer_and_charge_inside_and_outside(few_shot, method):
    inputs = few_shot.corpus("validation").inputs[:6]
    segments = tuple((i,) for i in range(8))
    queries = [Represent(inputs), Attribute(inputs, segments)]
    here, ledger = built_in(method), Ledger()
    from stages.contracts.method import Budget

    made = here.interpret(MeteredAccess(few_shot, Ledger(), free=True), Budget(60, 10**7, 0))
    access = MeteredAccess(few_shot, ledger)
    expected = [here.answer(query, made, access) for query in queries]
    with MethodProcess(method, method, 60, trust=TRUST) as process:
        apart = process.interpret(MeteredAccess(few_shot, Ledger(), free=True), 10**7, 0)
        there = Ledger()
        found = [process.answer(query, apart, MeteredAccess(few_shot, there)).value for query in queries]
    assert pack(apart, method, "x", 10**7) == pack(made, method, "x", 10**7)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert there.flops == ledger.flops > 0


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        ("def answer(self, query, interpretation, target): raise RuntimeError('no idea')", "RuntimeError: no idea"),
        ("def answer(self, query, interpretation, target): time.sleep(60)", "longer than 3 s"),
        ("def answer(self, query, interpretation, target): os._exit(7)", r"its process ended \(exit code 7"),
        ("def answer(self, query, interpretation, target): return lambda: 1", "cannot be sent"),
        ("def answer(self, query, interpretation, target): return target.weights()", "open in interpret"),
        (
            "def answer(self, query, interpretation, target): return torch.special.bessel_j0(torch.eye(9))",
            "has no price",
        ),
        ("def answer(self, query, interpretation, target): return target.forward(torch.zeros(1, 2)).outputs", "takes"),
    ],
)
def test_a_broken_answer_is_one_line_with_its_cause(mlp, tmp_path, body, cause):
    with MethodProcess(write(tmp_path, body), "mine", 3, trust=TRUST) as process:
        made = process.interpret(MeteredAccess(mlp, Ledger(), free=True), 10**6, 0)
        with pytest.raises(MethodError, match=cause) as caught:
            process.answer(Represent(mlp.corpus("train").inputs[:2]), made, MeteredAccess(mlp, Ledger()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "cause"),
    [
        ("import nonexistent_module", "ModuleNotFoundError"),
        ("x = 1", "it defines none"),
        ("syntax error here", "SyntaxError"),
        (HEAD + "class Other(Mine):\n    pass\n", "it defines Mine, Other"),
        (HEAD.replace("def answer", "def reply"), r"lacks answer"),
        (HEAD + "    def __init__(self, x): pass\n", "TypeError"),
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
