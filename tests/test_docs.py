"""What the documentation says is true: its Python runs, its commands exist, its links lead somewhere."""

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from stages.contracts.method import Attribute, Budget, Represent
from stages.contracts.target import Target
from stages.interpretation.loading import from_file
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import save_target
from stages.targets.zoo import ZOO

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)

FRAGMENTS = {
    "dictionaries.md": "an endless iterator, and training on the reader's activations; tests/dictionaries runs these",
}
"""Pages whose Python is not executed as a whole, and why. Their imports are."""
MADE_BY_A_RUN = {"docs/leaderboard.svg"}
"""Files that are written from results (`python -m stages report figure`)."""


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlp: Target, few_shot: Target) -> Path:
    """A root with the two targets on disk, as after a run."""
    for target in (mlp, few_shot):
        save_target(target, tmp_path / "data" / "targets" / target.name)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    for name in ZOO:
        monkeypatch.setitem(ZOO, name, ZOO[name])  # a page may add one; it is taken out again
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page: Path, house: Path) -> None:
    namespace: dict[str, Any] = {"__name__": "documentation"}
    known = set(ZOO)
    try:
        for code in blocks(page, "python"):
            if page.name in FRAGMENTS:
                imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
                code = "\n".join(ast.unparse(node) for node in imports)
            exec(compile(code, str(page), "exec"), namespace)
    finally:
        for name in set(ZOO) - known:
            del ZOO[name]


def commands(app: typer.Typer) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def said_commands() -> list[tuple[str, str]]:
    """(page, line) of every lensmith command in bash blocks, indented blocks and inline code."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for code in blocks(page, "bash") for line in code.splitlines()]
        lines += re.findall(r"^    (lensmith .*)$", text, re.M)
        lines += [" ".join(code.split()) for code in re.findall(r"`(lensmith [^`]+)`", text)]
        found += [(page.name, line.strip()) for line in lines if line.strip().startswith("lensmith ")]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), said_commands())
def test_commands_exist_with_their_options(page: str, line: str) -> None:
    from flows.command import app

    words = shlex.split(re.split(r"\s(?:&&|>>|>|\|)\s", line)[0], comments=True)[1:]
    command: Any = commands(app).get(words[0]) if not words[0].startswith("-") else typer.main.get_command(app)
    assert command is not None, f"{page}: `{line}`: no such command"
    rest = words[1:]
    if hasattr(command, "commands") and rest and re.fullmatch(r"[a-z]+", rest[0]):
        assert rest[0] in command.commands, f"{page}: `{line}`: no such command"
        command, rest = command.commands[rest[0]], rest[1:]
    options = {"--help", "--debug"} | {name for parameter in command.params for name in parameter.opts}
    for word in rest:
        if word.startswith("--"):
            assert word.partition("=")[0] in options, f"{page}: `{line}`: {word} is no option"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not link.startswith(("http://", "https://")):
            target = (page.parent / link).resolve()
            assert target.exists() or str(target.relative_to(ROOT)) in MADE_BY_A_RUN, f"{page.name}: {link}"


def test_the_tree_of_the_readme_is_the_house() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("## The house") :]
    said = set(re.findall(r"^      (\w+)/ ", tree, re.M))
    rooms = {path.parent.name for path in ROOT.glob("stages/*/__init__.py")}
    assert said == rooms
    for folder in re.findall(r"^    (\w+)/ ", tree, re.M):
        assert (ROOT / folder).is_dir() or folder in {"data", "metrics", "report", "mlruns"}, folder


def test_the_readme_shows_the_example_as_it_is() -> None:
    shown = blocks(ROOT / "README.md", "python")[0]
    example = (ROOT / "examples" / "my_method.py").read_text(encoding="utf-8")
    assert example.endswith(shown)


@pytest.mark.parametrize("name", ["mlp", "few_shot"])
def test_the_example_answers(name: str, request: pytest.FixtureRequest) -> None:
    target: Target = request.getfixturevalue(name)
    method = from_file(ROOT / "examples" / "my_method.py")
    frozen = method.interpret(MeteredAccess(target, Ledger(), free=True), Budget(60, 8_000_000, 0))
    ledger = Ledger()
    inputs = target.corpus("validation").inputs[:7]
    answer = method.answer(Represent(inputs), frozen, MeteredAccess(target, ledger))
    assert answer is not None and tuple(answer.shape) == (7, target.spec.n_outputs) and bool(answer.isfinite().all())
    assert ledger.flops > 0
    assert method.answer(Attribute(inputs, ((0,),)), frozen, MeteredAccess(target, ledger)) is None
