"""A digest of the code that a result depends on: a module, and everything of ours that it imports.

A room's ``__init__`` re-exports nothing, so an import names the file it needs and the closure is exact. The same
closure stands in dvc.yaml, where tests compare it with grimp's.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

__all__ = ["closure", "code_digest", "digest_with_imports", "file_of"]

PACKAGE = "stages"
TOP = Path(__file__).resolve().parents[2]
NO_INFLUENCE = frozenset({"stages.errors", "stages.tracking", "stages.base.registry", "stages.base.code"})
"""They change no result: how a failure is shown, a projection to MLflow, the search for a file by its name."""


def _file(module: str) -> Path | None:
    path = TOP.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def file_of(module: str) -> Path:
    """The file of a module of ours.

    Raises:
        ValueError: there is no such module.
    """
    file = _file(module)
    if file is None:
        raise ValueError(f"{module} is no module of {TOP}")
    return file


@cache
def _imports(module: str) -> frozenset[str]:
    """Modules of ours that one imports."""
    named = _named(file_of(module).read_text(encoding="utf-8"))
    return frozenset(name for name in named if name.split(".")[0] == PACKAGE and _file(name))


def _named(text: str) -> set[str]:
    """What a text may import, inside functions too; what is imported for type checkers alone is left out."""
    found: set[str] = set()
    ahead: list[ast.AST] = [ast.parse(text)]
    while ahead:
        node = ahead.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            ahead += node.orelse
            continue
        ahead += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def closure(modules: Iterable[str]) -> frozenset[str]:
    """The modules, all that they import, and the packages those lie in."""
    reached: set[str] = set()
    ahead = set(modules)
    while ahead:
        module = ahead.pop()
        reached.add(module)
        parts = module.split(".")
        packages = {".".join(parts[:i]) for i in range(1, len(parts))}
        ahead |= (_imports(module) | packages) - reached
    return frozenset(reached)


@cache
def code_digest(*modules: str) -> str:
    """sha256 of the sources of the modules' closure, in the order of their names.

    Sources are read once a process: whatever was imported is what is digested, unless a file changed since.
    """
    sha = hashlib.sha256()
    for module in sorted(closure(modules) - NO_INFLUENCE):
        sha.update(module.encode() + b"\0" + file_of(module).read_bytes() + b"\0")
    return sha.hexdigest()


def digest_with_imports(file: Path) -> str:
    """sha256 of a user's file, of the files beside it that it imports, and of all of ours that any of them imports."""
    sha, ours, read, ahead = hashlib.sha256(), set[str](), set[Path](), [file]
    while ahead:
        one = ahead.pop(0)
        read.add(one)
        text = one.read_bytes()
        sha.update(one.name.encode() + b"\0" + text + b"\0")
        named = sorted(_named(text.decode(errors="replace")))
        ours |= {name for name in named if name.split(".")[0] == PACKAGE and _file(name)}
        beside = [file.parent.joinpath(*name.split(".")).with_suffix(".py") for name in named]
        ahead += [other for other in dict.fromkeys(beside) if other.is_file() and other not in {*read, *ahead}]
    return hashlib.sha256(sha.digest() + code_digest(*sorted(ours)).encode()).hexdigest()
