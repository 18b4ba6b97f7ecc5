"""From a Python file of the user's own to the task family it defines."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from stages.base.text import safe_name
from stages.base.users_code import blame
from stages.contracts.task import TaskFamily
from stages.errors import UserError

__all__ = ["OwnFamily", "blamed", "family_from_file"]

PACKAGE = "lensmith_tasks_of_yours"
"""What modules of such files are called, before the file's own name."""


class OwnFamily(NamedTuple):
    family: TaskFamily
    target: str
    """What the file says with ``TARGET = "..."``; empty: nothing."""


@contextmanager
def blamed(path: Path) -> Iterator[None]:
    """An error that the user's file had a part in becomes one line that names the file and its line.

    Raises:
        UserError: the block raised, in the file or in what it called.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = blame(error, path)
        if not told.startswith(path.name):  # no line of the file was at work
            raise
        raise UserError(f"{told}; mend it there") from error


def family_from_file(path: Path) -> OwnFamily:
    """The one family that a file defines; it is called as the file is.

    Raises:
        UserError: no such file, it does not import, or it does not define exactly one complete family.
    """
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path} is no Python file: give the path of a file with one subclass of TaskFamily in it")
    path = path.resolve()
    name = f"{PACKAGE}.{safe_name(path.stem).replace('.', '_')}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # its name ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{blame(error, path)}; the file must import") from error
    own = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, TaskFamily) and value.__module__ == name
    ]
    complete = [value for value in own if not inspect.isabstract(value) and not value.__name__.startswith("_")]
    if len(complete) != 1:
        lacks = sorted(set().union(*(value.__abstractmethods__ for value in own))) if own else []
        why = f" ({own[0].__name__} lacks {', '.join(lacks)})" if lacks else ""
        found = ", ".join(value.__name__ for value in complete) or "none"
        raise UserError(f"{path.name} defines {found}{why}: define one subclass of TaskFamily with all its methods")
    missing = [
        field
        for field in (
            "title", "source", "why_hard_black_box", "why_white_box_helps", "query_kind", "needs", "n_efforts",
            "truth_recipe", "constants",
        )
        if not hasattr(complete[0], field)
    ]  # fmt: skip
    if missing:
        line = inspect.getsourcelines(complete[0])[1]
        raise UserError(f"{path.name} line {line}: {complete[0].__name__} says no {', '.join(missing)}: add them")
    with blamed(path):
        made = complete[0]()
    target = vars(module).get("TARGET", "")
    if not isinstance(target, str):
        raise UserError(f"{path.name}: TARGET is {target!r}: give the name of a target, such as 'digits_mlp'")
    return OwnFamily(made, target)
