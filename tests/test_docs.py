"""What the docs say is true: its Python runs, its commands, modules and links exist. Its sentences are short."""

import ast
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from stages.contracts.method import Attribute, Budget, Represent
from stages.contracts.method_file import from_file
from stages.contracts.target import Target
from stages.metering.access import MeteredAccess
from stages.metering.ledger import Ledger
from stages.targets.storage import save_target
from stages.targets.zoo import ZOO

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.M | re.S)

FRAGMENTS = {
    "dictionaries.md": "an endless iterator, and training on the reader's activations; tests/dictionaries runs these",
}
"""Pages whose Python is not executed as a whole, and why. Their imports are."""
MADE_BY_A_RUN = {"docs/leaderboard.svg"}
"""Files that are written from results (`python -m stages report figure`)."""


TO_BE_WRITTEN = {"stages/targets/zoo/digits_conv.py", "stages/tasks/families/pixel_drop.py"}
"""Files that a page shows how to write."""
NOT_NAMES = {"lensmith.kind", "lensmith.current"}
"""Tags of MLflow that look like modules."""
NOT_PROSE = {"LOG.md"}
"""Pages whose sentences are not counted: a log keeps the words it was written with."""
MAX_WORDS = 20
"""Words a sentence on average, per page."""


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlp: Target, few_shot: Target) -> Path:
    """A root with the two targets on disk, as after a run."""
    for target in (mlp, few_shot):
        save_target(target, tmp_path / "data" / "targets" / target.name)
    shutil.copytree(ROOT / "params", tmp_path / "params")
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_runs(page: Path, house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": "documentation"}
    find = ZOO.find
    # The target of a page is a file of the zoo, says the page; here it is a class of the page's namespace.
    monkeypatch.setattr(
        type(ZOO), "find", lambda zoo, name: namespace["DigitsConv"] if name == "digits_conv" else find(name)
    )
    for code in blocks(page, "python"):
        exec(compile(imports_of(code) if page.name in FRAGMENTS else code, str(page), "exec"), namespace)


def imports_of(code: str) -> str:
    found = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
    return "\n".join(ast.unparse(node) for node in found)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "py")], ids=lambda page: page.name)
def test_python_that_takes_minutes_compiles_and_imports(page: Path) -> None:
    """Blocks marked ``py`` are for a notebook after a run: they score a method."""
    for code in blocks(page, "py"):
        compile(code, str(page), "exec")
        exec(compile(imports_of(code), str(page), "exec"), {})


def commands(app: typer.Typer) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def shown_commands() -> list[tuple[str, str]]:
    """(page, line) of every lensmith command in bash blocks, indented blocks and inline code."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for code in blocks(page, "bash") for line in code.splitlines()]
        lines += re.findall(r"^    (lensmith (?:[a-z]|--).*)$", text, re.M)
        lines += [" ".join(code.split()) for code in re.findall(r"`(lensmith [^`]+)`", text)]
        found += [(page.name, line.strip()) for line in lines if line.strip().startswith("lensmith ")]
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), shown_commands())
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


def test_the_tree_of_the_readme_is_there() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("## Layout") :]
    shown = set(re.findall(r"^      (\w+)/ ", tree, re.M))
    rooms = {path.parent.name for path in ROOT.glob("stages/*/__init__.py")}
    assert shown == rooms
    for folder in re.findall(r"^    (\w+)/ ", tree, re.M):
        assert (ROOT / folder).is_dir() or folder in {"data", "metrics", "report", "mlruns", "results"}, folder


def test_the_rooms_of_the_architecture_page_are_the_rooms() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    text = text[text.index("## Packages and rooms") : text.index("## Decisions")]
    described = set(re.findall(r"\*\*(\w+)\*\*", text))
    assert described == {path.parent.name for path in ROOT.glob("stages/*/__init__.py")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_modules_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"`((?:stages|flows|lensmith|tests|params|examples)/[\w/.-]*?\w)/?`", text):
        assert (ROOT / path).exists() or path in TO_BE_WRITTEN, f"{page.name}: `{path}` does not exist"
    names = re.findall(r"`((?:stages|flows|lensmith)(?:\.\w+)+)`", text)
    names += re.findall(r"^::: (\S+)$", text, re.M)
    for name in set(names) - NOT_NAMES:
        assert module_part(name), f"{page.name}: `{name}` does not exist"
    for stage in re.findall(r"python -m stages ([a-z][\w.]*)", text):
        module = f"stages.{stage}" if "." in stage else f"stages.{stage}.stage"
        assert is_module(module), f"{page.name}: `python -m stages {stage}`: no such stage"


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def module_part(name: str) -> bool:
    """Whether a dotted name is a module, or a name that a module or package binds."""
    if is_module(name):
        return True
    module, _, attribute = name.rpartition(".")
    if not is_module(module):
        return False
    path = ROOT.joinpath(*module.split("."))
    source = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return (
        re.search(rf"^(?:class |def |)\b{attribute}\b|^    \"{attribute}\",$", source.read_text("utf-8"), re.M)
        is not None
    )


def prose(text: str) -> list[str]:
    """Paragraphs and list items, without code, tables, headings and targets of links."""
    text = re.sub(r"^```.*?^```|<!--.*?-->", "", text, flags=re.M | re.S)
    parts, current, after_blank = [], "", True
    for line in [*text.splitlines(), ""]:
        if line.startswith("    ") and after_blank:
            continue  # an indented block of code
        item = re.match(r"\s*(?:[-*]|\d+\.)\s+", line)
        if not line.strip() or line.lstrip()[:1] in {"|", "#"} or line.startswith(":::") or item:
            parts, current = [*parts, current], ""
            after_blank = item is None
        if item or (line.strip() and line.lstrip()[:1] not in {"|", "#"} and not line.startswith(":::")):
            current += " " + line[item.end() if item else 0 :]
            after_blank = False
    shown = [re.sub(r"`[^`]*`", "code", re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", part)) for part in parts]
    return [" ".join(part.split()) for part in shown if part.strip()]


def sentences(text: str) -> list[str]:
    cut = [re.split(r"(?<=[.!?])[\"')*]*\s+(?=[\"'(*\w])", part) for part in prose(text)]
    return [sentence for part in cut for sentence in part if re.search(r"\w", sentence)]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in NOT_PROSE], ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    found = [len(re.findall(r"[\w'-]+", sentence)) for sentence in sentences(page.read_text(encoding="utf-8"))]
    mean = sum(found) / max(len(found), 1)
    assert mean <= MAX_WORDS, f"{page.name}: {mean:.1f} words a sentence on average, over {len(found)} sentences"


def test_sentences_are_counted() -> None:
    text = "# Not this\n\nOne two. Three (four) `five six`?\n\n    code. code.\n\n- item one\n  goes on\n"
    text += "- item [two](x.md)\n\n| a | b. |\n"
    assert sentences(text) == ["One two.", "Three (four) code?", "item one goes on", "item two"]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in pages(part)]

    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    assert sorted(pages(nav)) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")
    )


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
