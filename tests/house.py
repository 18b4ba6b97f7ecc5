"""What dvc.yaml says a node depends on, and what its code really imports. Used by test_house.py."""

import ast
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from dvc.repo import Repo

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "stages"

NO_INFLUENCE = {
    "stages": "a docstring",
    "stages.errors": "how a failure is told; it changes no output",
    "stages.tracking": "a projection; it changes no output",
}
"""Modules that every stage may import and none depends on: an edit must not re-run everything."""


class Node(NamedTuple):
    name: str
    room: str
    arm: str
    deps: tuple[str, ...]
    params: dict[str, tuple[str, ...]]
    """{params file: keys, or () for the whole file}."""


@cache
def nodes() -> tuple[Node, ...]:
    """The nodes of dvc.yaml with every template filled in."""
    found = []
    with Repo(str(ROOT)) as repo:
        for stage in repo.index.stages:
            words: list[str] = str(stage.cmd).split()
            room = words[words.index("-m") + 1].removeprefix(f"{PACKAGE}.")
            plain = [dep for dep in stage.deps if type(dep).__name__ == "Dependency"]
            params: dict[str, tuple[str, ...]] = {}
            for dep in stage.deps:
                if type(dep).__name__ == "ParamsDependency":
                    given: Any = dep.params
                    params[Path(dep.fs_path).relative_to(ROOT).as_posix()] = tuple(given)
            arm = stage.addressing.partition("@")[2]
            deps = tuple(sorted(Path(dep.fs_path).relative_to(ROOT).as_posix() for dep in plain))
            found.append(Node(stage.addressing, room, arm, deps, params))
    return tuple(found)


def file_of(module: str) -> Path | None:
    """The file of a first-party module or package, if it is one."""
    path = ROOT / module.replace(".", "/")
    if path.with_suffix(".py").is_file():
        return path.with_suffix(".py")
    return path / "__init__.py" if (path / "__init__.py").is_file() else None


@cache
def imports_of(module: str) -> frozenset[str]:
    """First-party modules that a module imports, inside functions too, and the packages they lie in."""
    path = file_of(module)
    assert path is not None, module
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found |= {module.rpartition(".")[0]} - {""}
    whole = set()
    for name in found:
        parts = name.split(".")
        whole |= {".".join(parts[: i + 1]) for i in range(len(parts))}
    return frozenset(name for name in whole if name.split(".")[0] == PACKAGE and file_of(name))


def closure(roots: set[str]) -> set[str]:
    """Everything that is imported when the roots are."""
    reached, ahead = set(), set(roots)
    while ahead:
        module = ahead.pop()
        reached.add(module)
        ahead |= imports_of(module) - reached
    return reached


@cache
def loaded_by_name(module: str) -> frozenset[str]:
    """Packages out of which a module imports by name: ``import_module(f"stages.x.methods.{name}")``, or a table of
    names such as ``"stages.x.families.early_exit:EarlyExit"``."""
    path = file_of(module)
    assert path is not None, module
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    if not any(ast.unparse(call.func).endswith("import_module") for call in calls):
        return frozenset()
    texts = [
        str(node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    dotted = [text.partition(":")[0] for text in texts if text.startswith(f"{PACKAGE}.") and " " not in text]
    return frozenset(text.rpartition(".")[0] for text in dotted)


@cache
def params_read_by(module: str) -> frozenset[str]:
    """``x`` for each ``load("x", ...)`` in a module."""
    path = file_of(module)
    assert path is not None, module
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    loads = [call for call in calls if ast.unparse(call.func) == "load" and call.args]
    names = [call.args[0].value for call in loads if isinstance(call.args[0], ast.Constant)]
    return frozenset(str(name) for name in names)


def covered(path: Path, deps: tuple[str, ...]) -> bool:
    """Whether a file is a dependency, itself or by a folder above it."""
    relative = path.relative_to(ROOT)
    return any(str(part) in deps for part in (relative, *relative.parents))


def arm_files(arm: str) -> list[Path]:
    """Files that bear the name of an arm: a method, a family, a target."""
    return sorted((ROOT / PACKAGE).rglob(f"{arm}.py")) if arm else []


def needed(node: Node) -> set[Path]:
    """Every first-party file whose code can run in a node."""
    roots = {f"{PACKAGE}.{node.room}.__main__"}
    for path in arm_files(node.arm):
        roots.add(".".join(path.relative_to(ROOT).with_suffix("").parts))
    files = {file_of(module) for module in closure(roots) if module not in NO_INFLUENCE}
    return {path for path in files if path is not None}
