"""From a Python file to the method it defines."""

import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType

from stages.base.text import safe_name
from stages.base.users_code import blame
from stages.contracts.method import Method
from stages.errors import MethodError, UserError

__all__ = ["from_file", "method_name"]


def method_name(method: Method) -> str:
    """Its ``name``, else its class name in snake case; letters, digits, dots, dashes and underscores only."""
    name = method.name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(method).__name__).lower()
    return safe_name(name)


def from_file(path: Path, shown: str = "") -> Method:
    """The one method that a Python file defines.

    Args:
        shown: name of the file in messages; empty: its own.

    Raises:
        UserError: no such file.
        MethodError: it does not import, or does not define exactly one Method that can be made without arguments.
    """
    shown = shown or path.name
    if not path.is_file():
        raise UserError(f"{path} is not a file: give the path of a Python file with one Method in it")
    spec = importlib.util.spec_from_file_location(f"lensmith_method_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        raise MethodError(shown, "import", blame(error, path, shown), _remedy(error, path)) from error
    return _only_method(module, path, shown)


def _only_method(module: ModuleType, path: Path, name: str) -> Method:
    classes = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Method) and value.__module__ == module.__name__
    ]
    public = [value for value in classes if not inspect.isabstract(value) and not value.__name__.startswith("_")]
    if len(public) != 1:
        found = ", ".join(value.__name__ for value in public) or "none"
        why = ""
        if classes and not public:
            missing = sorted(set().union(*(value.__abstractmethods__ for value in classes)))
            why = f" ({classes[0].__name__} lacks {', '.join(missing)})" if missing else ""
        raise MethodError(
            name, "import", f"it defines {found}{why}", "Define one subclass of Method, with interpret and answer."
        )
    try:
        return public[0]()
    except Exception as error:
        raise MethodError(
            name,
            "construction",
            blame(error, path, name),
            "A method must be constructible without arguments; what it keeps belongs into I(M).",
        ) from error


def _remedy(error: BaseException, path: Path) -> str:
    """What to do about a file that does not import."""
    if isinstance(error, ModuleNotFoundError) or "relative import" in str(error):
        wanted = getattr(error, "name", "") or ""
        beside = [p for p in path.parent.glob("*") if p.stem == wanted.split(".")[0]] if wanted else []
        if beside or "relative import" in str(error) or not wanted:
            return "A method is one file, and nothing beside it is there when it runs: copy what it needs into it."
        if wanted.split(".")[0] in ("stages", "flows", "tests"):
            return "A method may import `lensmith` and the installed libraries, and no other part of this project."
        return (
            "A method is one file: copy a module of your own into it; a library must be installed in the environment."
        )
    return "Mend the file; it must import."
