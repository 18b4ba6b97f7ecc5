"""What dvc.yaml says a node depends on, and what its code really imports: file by file, both ways.

    python -m tests.house      writes the dependencies on code that each stage should declare into dvc.yaml

Imports come from grimp. A room's ``__init__`` re-exports nothing, so an import names the file it needs.
"""

import ast
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import grimp
import yaml
from dvc.repo import Repo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "stages"

NO_INFLUENCE = {
    "stages.__main__": "starts a stage; it changes no output",
    "stages.errors": "how a failure is shown; it changes no output",
    "stages.tracking": "a projection; it changes no output",
    "stages.base.progress": "says how far work has come; it changes no output",
    "stages.base.users_code": "says where a user's code failed; it changes no output",
    "stages.base.registry": "finds a file by its name; which file is a dependency of its own",
}
"""Modules that every stage may import and none depends on: an edit must not re-run everything."""


class Node(NamedTuple):
    name: str
    entry: str
    """Module whose ``main`` the command runs."""
    arguments: tuple[str, ...]
    deps: tuple[str, ...]
    params: dict[str, tuple[str, ...]]
    """{params file: keys, or () for the whole file}."""

    @property
    def arm(self) -> str:
        return self.name.partition("@")[2]


@cache
def nodes() -> tuple[Node, ...]:
    """The nodes of dvc.yaml with every template filled in."""
    found = []
    with Repo(str(ROOT)) as repo:
        for stage in repo.index.stages:
            words: list[str] = str(stage.cmd).split()
            assert words[:3] == ["python", "-m", PACKAGE], f"{stage.addressing}: {stage.cmd}"
            entry = f"{PACKAGE}.{words[3]}" if "." in words[3] else f"{PACKAGE}.{words[3]}.stage"
            plain = [dep for dep in stage.deps if type(dep).__name__ == "Dependency"]
            params: dict[str, tuple[str, ...]] = {}
            for dep in stage.deps:
                if type(dep).__name__ == "ParamsDependency":
                    given: Any = dep.params
                    params[Path(dep.fs_path).relative_to(ROOT).as_posix()] = tuple(given)
            deps = tuple(sorted(Path(dep.fs_path).relative_to(ROOT).as_posix() for dep in plain))
            found.append(Node(stage.addressing, entry, tuple(words[4:]), deps, params))
    return tuple(found)


def file_of(module: str) -> Path:
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(PACKAGE, cache_dir=None, exclude_type_checking_imports=True)


def closure(roots: Iterable[str]) -> set[str]:
    """Everything that is imported when the roots are, the packages they lie in included."""
    reached: set[str] = set()
    ahead = set(roots)
    while ahead:
        module = ahead.pop()
        reached.add(module)
        parts = module.split(".")
        packages = {".".join(parts[:i]) for i in range(1, len(parts))}
        ahead |= (graph().find_modules_directly_imported_by(module) | packages) - reached
    return reached


@cache
def registries() -> dict[str, str]:
    """{package of files found by name: module that asks it}: see ``stages.base.registry``."""
    return {
        module: module
        for module in graph().modules
        if "stages.base.registry" in graph().find_modules_directly_imported_by(module)
    }


@cache
def params_entries() -> dict[str, dict[str, Any]]:
    return {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / "params").glob("*.yaml")}


def named_files(node: Node) -> set[str]:
    """Modules that the node finds by name, in a folder of a registry it imports.

    Its own file where its argument names one; all files where it works on every one of them; none where what the
    files made is read from data alone.
    """
    reached = closure({node.entry})
    found: set[str] = set()
    for package in sorted(set(registries()) & reached):
        names = {path.stem for path in file_of(package).parent.glob("[!_]*.py")}
        own = {f"{package}.{name}" for name in names if name in wanted(node, package, names)}
        found |= own | (shared_by_sources() if own and package.endswith(".zoo") else set())
    return found


def wanted(node: Node, package: str, names: set[str]) -> set[str]:
    """Names of files in ``package`` that the node loads, from the data it depends on."""
    kind = package.split(".")[1]
    if kind == "research":
        return {params_entries()["research"]["researcher"]}
    if kind == "targets":
        return sources(node, names)
    folder = {"tasks": "data/tasks", "interpretation": "data/interpretation"}[kind]
    own = set(node.arguments) & names
    for dep in node.deps:
        if dep == folder or folder.startswith(f"{dep}/"):
            return names
        if dep.startswith(f"{folder}/"):
            own.add(dep.removeprefix(f"{folder}/").partition("/")[0])
    return own & names


def sources(node: Node, names: set[str]) -> set[str]:
    """Files of the zoo that a node's targets come from. A node that only runs a target depends on it through its
    weights, whose digest the target's folder states; one that captures or draws inputs needs the file itself."""
    entries = params_entries()["targets"]["targets"]
    if node.name.startswith(("dictionaries@", "sweep@")):
        return set()
    own = {entries[word]["source"] for word in node.arguments if word in entries}
    for dep in node.deps:
        if dep == "data/targets" or "data/targets".startswith(f"{dep}/"):
            return names
        if dep.startswith("data/targets/"):
            own.add(entries[dep.removeprefix("data/targets/").partition("/")[0]]["source"])
    return own


@cache
def shared_by_sources() -> frozenset[str]:
    """What the files of the zoo import: which of them a target needs depends on its entry in params."""
    zoo = f"{PACKAGE}.targets.zoo"
    files = {module for module in graph().modules if module.startswith(f"{zoo}.")}
    return frozenset({module for file in files for module in graph().find_modules_directly_imported_by(file)} - files)


@cache
def is_only_text(file: Path) -> bool:
    """Whether a module holds a docstring and nothing else, as most rooms' ``__init__`` do."""
    return all(isinstance(node, ast.Expr) for node in ast.parse(file.read_text(encoding="utf-8")).body)


def needed(node: Node) -> set[str]:
    """Files of code that the node's outputs can depend on."""
    files = {file_of(module) for module in closure({node.entry} | named_files(node)) - set(NO_INFLUENCE)}
    return {file.relative_to(ROOT).as_posix() for file in files if not is_only_text(file)}


def declared(node: Node) -> set[str]:
    """Files of code that dvc.yaml names, folders taken apart."""
    found: set[str] = set()
    for dep in node.deps:
        if dep.startswith(f"{PACKAGE}/"):
            path = ROOT / dep
            files = [path] if path.is_file() else list(path.rglob("*.py"))
            found |= {file.relative_to(ROOT).as_posix() for file in files if not is_only_text(file)}
    return found


def shortest(files: set[str]) -> list[str]:
    """The files as dvc.yaml should name them: a folder where all of its files are meant."""
    out: set[str] = set()

    def cover(folder: Path) -> bool:
        inside = [path for path in folder.rglob("*.py") if not is_only_text(path)]
        names = {p.relative_to(ROOT).as_posix() for p in inside}
        if names and names <= files:
            out.add(folder.relative_to(ROOT).as_posix())
            return True
        for child in folder.iterdir():
            if child.is_dir() and child.name != "__pycache__":
                cover(child)
            elif child.relative_to(ROOT).as_posix() in files:
                out.add(child.relative_to(ROOT).as_posix())
        return False

    cover(ROOT / PACKAGE)
    return sorted(out)


@cache
def params_read_by(module: str) -> frozenset[str]:
    """Stages whose params a module loads: ``load("execution", ...)``."""
    found = set()
    for node in ast.walk(ast.parse(file_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"load", "names"} and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                found.add(name.value)
    return frozenset(found)


def is_found_by_name(dep: str) -> bool:
    return dep.rpartition("/")[0].replace("/", ".") in registries()


def wanted_deps() -> dict[str, list[str]]:
    """{stage: code it should declare}, with the template's variable where a file bears the arm's name."""
    shown: dict[str, set[str]] = {}
    for node in nodes():
        arm = re.compile(rf"(?<=/){re.escape(node.arm)}(?=\.py)" if node.arm else "$^")
        variable = "${item.method}" if node.name.startswith(("interpretation@", "execution@")) else "${key}"
        if node.name.startswith(("targets@", "activations@")):
            source = params_entries()["targets"]["targets"][node.arm]["source"]
            arm, variable = re.compile(rf"(?<=/zoo/){re.escape(source)}(?=\.py)"), "${item.source}"
        names = {
            # Another file may be called as an arm is; only those that are found by name are an arm's own.
            arm.sub(lambda _, variable=variable: variable, dep) if is_found_by_name(dep) else dep
            for dep in shortest(needed(node))
        }
        shown.setdefault(node.name.partition("@")[0], set()).update(names)
    return {stage: sorted(names) for stage, names in shown.items()}


def write_deps() -> None:
    """Put the wanted dependencies on code into dvc.yaml, in place of those that are there."""
    file, stage, lines, done = ROOT / "dvc.yaml", "", [], set()
    for line in file.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"  (\w+):$", line):
            stage = match[1]
        if line.strip().startswith(f"- {PACKAGE}/"):
            continue
        lines.append(line)
        if line.strip() == "deps:" and stage not in done:
            done.add(stage)
            indent = " " * (len(line) - len(line.lstrip()) + 2)
            lines += [f"{indent}- {dep}" for dep in wanted_deps()[stage]]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_deps()
