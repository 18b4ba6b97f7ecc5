"""Mutation tests: does a room's own suite notice when its code is wrong?

    python -m tests.mutation reward metering --sample 60      # some rooms, so many mutants of each
    python -m tests.mutation --all                            # every mutant of every room

Neither tool that was tried does this. mutmut 3 runs here, several mutants a second, and changes the inside of functions
alone: not the price table, limits, settings or class fields, where most numbers of metering stand. It names mutants by
number, so a reviewed list of equivalent ones does not outlive an edit. cosmic-ray starts an interpreter per mutant: ten
seconds before the first test. Here the libraries are imported once, every mutant is a fork of that process, its module
is compiled from the changed tree, and the tests that run the changed line come first. A mutant that ends the process or
runs out of time counts as killed.

Not changed: texts (messages are matched by tests where they matter), annotations, decorators, f-strings, `__all__`, and
what a `raise` says. A test that starts another interpreter runs the code as it is on disk.
"""

import ast
import hashlib
import importlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
import pytest
import typer
import yaml

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = ROOT / "tests" / "equivalent_mutants.yaml"
REPORT = ROOT / ".lensmith" / "mutants.json"
LIBRARIES = (
    "torch torch._subclasses.fake_tensor torch.fx.experimental.symbolic_shapes torch._dynamo transformer_lens sae_lens"
    " sklearn.datasets scipy.stats pydantic mlflow optuna rich.table threadpoolctl"
)
SCORING = "candidate evaluate fresh host null null_numbers review score_here shared_forward stage".split()
"""Of its tests those that start no process: what another process runs is the code as it is on disk."""
ROOMS: dict[str, tuple[str, str]] = {
    # room: (files, or one function or class of a file; tests)
    "reward": (
        "contracts/pay.py reward/judging.py reward/resampling.py reward/controls.py reward/inference.py"
        " reward/statements.py reward/stage.py::ranked reward/stage.py::sensitivity",
        "tests/reward",
    ),
    "task contract": (
        "contracts/task.py tasks/generation.py",
        "tests/contracts/test_skill.py tests/tasks/test_tasks_generation.py",
    ),
    "gate": ("research/gate.py", "tests/research/test_gate.py"),
    "metering": (
        "metering/access.py metering/prices.py metering/op_table.py metering/decompositions.py metering/ledger.py"
        " metering/cpu_time.py",
        "tests/metering",
    ),
    "execution": (
        "execution/arms.py execution/answering.py execution/calibrator.py execution/public.py execution/runs.py"
        " execution/store.py",
        "tests/execution",
    ),
    "scoring": (
        "scoring/cached.py scoring/candidate.py scoring/composed.py scoring/evaluate.py scoring/fresh.py"
        " scoring/in_process.py scoring/isolated.py scoring/judge.py scoring/meters.py scoring/needs.py scoring/null.py"
        " scoring/proposals.py scoring/review.py scoring/score.py scoring/settings.py scoring/shared_forward.py"
        " scoring/stage.py",
        " ".join(f"tests/scoring/test_{name}.py" for name in SCORING) + " tests/interpretation/test_methods.py",
    ),
    "tracing": (
        "tracing/checking.py tracing/running.py tracing/recording.py tracing/values.py tracing/calls.py"
        " tracing/program.py",
        "tests/tracing",
    ),
}
BUILT_ONCE = ("scoring",)
"""Rooms whose tests share one toy graph over all mutants, made by the code as it is: 20 s less for each."""
SWAPS: dict[type[ast.AST], tuple[type[ast.AST], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
}
UNTOUCHED = ("annotation", "returns", "decorator_list", "type_comment", "bases")


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    last: int
    key: str
    """Function or class, and what is changed to what: the same after other lines of the file have moved."""
    apply: Callable[[], ast.Module]


def sites(node: ast.AST, where: str = "module") -> Iterator[tuple[ast.AST, str, int, ast.AST, str]]:
    """(parent, field, place in it or -1, node, function or class) of what may be changed."""
    for name, value in ast.iter_fields(node):
        if name in UNTOUCHED or isinstance(node, (ast.JoinedStr, ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Raise) or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"):
            continue
        for place, child in enumerate(value) if isinstance(value, list) else [(-1, value)]:
            if isinstance(child, ast.AST):
                named = isinstance(child, (ast.FunctionDef, ast.ClassDef))
                inside = f"{where}.{child.name}".removeprefix("module.") if named else where  # type: ignore[attr-defined]
                yield node, name, place, child, inside
                yield from sites(child, inside)


def changes(node: ast.AST, parent: ast.AST, field: str) -> list[ast.AST]:
    """What a node is replaced by, one mutant each."""
    match node:
        case ast.Constant(value=bool()):
            return [ast.Constant(not node.value)]
        case ast.Constant(value=int() | float() as number):
            return [ast.Constant(number + 1)]
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [node.operand]
        case ast.BinOp(op=ast.BitOr()):
            return [] if isinstance(parent, (ast.Assign, ast.Module)) else [node.left]
        case ast.Return(value=ast.expr() as value):
            return [] if ast.unparse(value) == "None" else [ast.Return(ast.Constant(None))]
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            return [ast.Pass()]
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            return [ast.Pass()]
        case ast.Name() | ast.Attribute() | ast.Call() if field in ("test", "ifs"):
            return [ast.UnaryOp(ast.Not(), node)]
    return [kind() for kind in SWAPS.get(type(node), ())]


def mutants_of(path: str) -> list[Mutant]:
    """Every mutant of a file, in the order of the file."""
    path, _, only = path.partition("::")
    source = (ROOT / path).read_text(encoding="utf-8")

    def variant(number: int, which: int) -> ast.Module:
        tree = ast.parse(source)
        parent, field, place, node, _ = list(sites(tree))[number]
        if which < 0:
            parent.keywords.pop(place)  # type: ignore[attr-defined]
        else:
            put(parent, field, place, changes(node, parent, field)[which])
        return ast.fix_missing_locations(tree)

    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    statement = (1, 1)
    for number, (parent, field, place, node, where) in enumerate(sites(ast.parse(source))):
        if isinstance(node, ast.stmt):
            simple = not hasattr(node, "body")
            statement = (node.lineno, (node.end_lineno if simple else node.lineno) or node.lineno)
        if only and where.split(".")[0] != only:
            continue
        small = isinstance(node, (ast.cmpop, ast.boolop, ast.operator, ast.Constant))
        whole = isinstance(parent, (ast.expr, ast.Assign, ast.AugAssign)) and not isinstance(
            parent, (ast.Slice, ast.Dict)
        )
        shown = parent if small and whole else node
        lines = statement if hasattr(node, "body") else tuple(getattr(shown, a, 0) for a in ("lineno", "end_lineno"))
        first, last = lines if lines[0] else statement
        options = [*range(len(changes(node, parent, field)))]
        if isinstance(node, ast.keyword) and node.arg:
            options.append(-1)
        for which in options:
            before, after = ast.unparse(shown), "(left out)"
            if which >= 0:
                twin: Any = changes(node, parent, field)[which]
                if shown is parent:
                    new, (twin,) = twin, ast.parse(before).body
                    twin = twin.value if isinstance(shown, ast.expr) else twin
                    put(twin, field, place, new)
                after = ast.unparse(ast.fix_missing_locations(twin))
            named = ""
            if isinstance(parent, ast.keyword):
                named = f"{parent.arg}="
            elif isinstance(parent, ast.Dict) and field == "values" and (word := parent.keys[place]):
                named = f"{ast.unparse(word)}: "
            key = " ".join(f"{where}: {named}{before} -> {after}".split())
            seen[key] += 1
            key += f" #{seen[key]}" if seen[key] > 1 else ""
            found.append(Mutant(path, first, last, key, partial(variant, number, which)))
    return found


def put(parent: ast.AST, field: str, place: int, new: ast.AST) -> None:
    if place < 0:
        setattr(parent, field, new)
    else:
        getattr(parent, field)[place] = new


class Watch:
    """Which tests run which lines of the room's files, and how long each takes."""

    def __init__(self, files: set[str]) -> None:
        self.files, self.lines, self.now = files, {}, set[tuple[str, int]]()  # type: ignore[var-annotated]

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call" and frame.f_code.co_filename not in self.files:
            return None
        self.now.add((frame.f_code.co_filename, frame.f_lineno))
        return self._trace

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.now, started = set(), time.monotonic()
        sys.settrace(self._trace)
        yield
        sys.settrace(None)
        self.lines[item.nodeid] = (sorted(self.now), time.monotonic() - started)


class First:
    """The tests that run a line, quick ones before slow ones; then all others."""

    def __init__(self, seen: dict[str, Any], mutant: Mutant) -> None:
        lines = {(str(ROOT / mutant.file), line) for line in range(mutant.line, mutant.last + 1)}
        hit = {name for name, (ran, _) in seen.items() if lines & {(file, line) for file, line in ran}}
        self._order = {name: (name not in hit, took) for name, (_, took) in seen.items()}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self._order.get(item.nodeid, (True, 1e9)))


def in_a_fork(limit: float, work: Callable[[], int]) -> int:
    """Exit status of ``work`` in a child; 124 where it took longer than ``limit`` seconds."""
    child = os.fork()
    if not child:
        try:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
            os._exit(work())
        finally:
            os._exit(70)
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def suite(tests: str, plugin: object) -> int:
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests.split()], plugins=[plugin]))


def tried(mutant: Mutant, tests: str, seen: dict[str, Any], limit: float) -> int:
    def work() -> int:
        tree, load = mutant.apply(), SourceFileLoader.get_code
        path = str(ROOT / mutant.file)

        def changed(self: SourceFileLoader, name: str) -> Any:
            return compile(tree, path, "exec") if self.path == path else load(self, name)

        SourceFileLoader.get_code = changed  # type: ignore[method-assign,assignment]
        return suite(tests, First(seen, mutant))

    return in_a_fork(limit, work)


def watched(files: set[str], tests: str) -> tuple[dict[str, Any], float]:
    """Lines of each test on the code as it is, and how long the room takes."""
    with tempfile.NamedTemporaryFile() as file:

        def work() -> int:
            watch = Watch(files)
            status = suite(tests, watch)
            Path(file.name).write_text(json.dumps(watch.lines), encoding="utf-8")
            return status

        started = time.monotonic()
        status = in_a_fork(1200, work)
        if status:
            raise SystemExit(f"the tests {tests} do not pass on the code as it is (exit {status})")
        return json.loads(Path(file.name).read_text(encoding="utf-8")), time.monotonic() - started


def main(rooms: list[str] = typer.Argument(None), sample: int = 60, all: bool = False, seed: int = 0) -> None:
    """Share of mutants that each room's tests kill; survivors go to .lensmith/mutants.json."""
    os.chdir(ROOT)
    # The same examples for every mutant, and none that a mutant failed on is kept for the code as it is.
    hypothesis.settings.register_profile("mutation", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutation")
    for library in LIBRARIES.split():
        importlib.import_module(library)
    equivalent = yaml.safe_load(EQUIVALENT.read_text(encoding="utf-8")) or {}
    kept = tempfile.TemporaryDirectory(prefix="lensmith-toy-")
    report: dict[str, Any] = {}
    for room in rooms or ROOMS:
        files, tests = ROOMS[room]
        os.environ.pop("LENSMITH_TOY", None)
        if room in BUILT_ONCE:
            os.environ["LENSMITH_TOY"] = kept.name
        paths = [f"stages/{file}" for file in files.split()]
        seen, took = watched({str(ROOT / path.partition("::")[0]) for path in paths}, tests)
        found = [mutant for path in paths for mutant in mutants_of(path)]
        order = sorted(
            range(len(found)), key=lambda i: hashlib.sha256(f"{seed}{found[i].file}{found[i].key}".encode()).digest()
        )
        chosen = [found[i] for i in sorted(order if all else order[:sample])]
        rows = []
        for mutant in chosen:
            same = mutant.key in equivalent.get(mutant.file, {})
            fate = "equivalent" if same else "killed" if tried(mutant, tests, seen, 5 * took + 10) else "survived"
            rows.append({"at": f"{mutant.file}:{mutant.line}", "change": mutant.key, "fate": fate})
            if fate == "survived":
                print(f"survived  {mutant.file}:{mutant.line}  {mutant.key}", flush=True)
        n = {fate: sum(row["fate"] == fate for row in rows) for fate in ("killed", "survived", "equivalent")}
        share = n["killed"] / max(1, n["killed"] + n["survived"])
        report[room] = {"mutants": len(found), "sampled": len(rows), **n, "share": round(share, 4), "rows": rows}
        print(
            f"{room:<14} {len(rows):>5} of {len(found):>5} mutants  {n['killed']:>5} killed"
            f"  {n['survived']:>4} survived  {n['equivalent']:>4} equivalent  {share:.1%}",
            flush=True,
        )
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
