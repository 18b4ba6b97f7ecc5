"""The cascade: a proposal is taken as far as it deserves, and validation is asked about few.

1. ``import``: its text is Python and defines one method. Costs nothing.
2. ``train``: all train tasks, all seeds.
3. ``validation``: only where the train reward is above the incumbent's. So the gate is asked seldom, and less can be
   learned about validation.

Stopping between seeds or after a few instances is left out on purpose: an arm takes a tenth of a second, and rows of
every kind of question are what a researcher learns from.
"""

import ast
from collections.abc import Iterable, Sequence
from typing import get_args

from stages.contracts.journal import Reached, Result

__all__ = ["promising", "static_fault", "survivors"]

BASE = "Method"


def static_fault(source: str) -> str:
    """Why the text of a file can be no method, in one line; empty where nothing speaks against it. Nothing runs.

    A check that saves a process, not one that protects: the sandbox does that.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        return f"the file is no Python{line}: {type(error).__name__}"
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    if not any(_name(base) == BASE for node in classes for base in node.bases):
        return "the file defines no subclass of Method at its top level"
    return ""


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def promising(train_reward: float, best: Result | None) -> bool:
    """Whether validation is asked: above the incumbent's train reward, or above 0 where there is none."""
    return train_reward > (best.train.reward_mean if best is not None and best.train is not None else 0.0)


def survivors(reached: Iterable[Reached], accepted: int) -> Sequence[tuple[str, int]]:
    """How many proposals came to each stage, those that passed the gate last."""
    order = get_args(Reached)
    places = [order.index(one) for one in reached]
    return (
        ("proposed", len(places)),
        *((stage, sum(place >= at for place in places)) for at, stage in enumerate(order) if at),
        ("accepted", accepted),
    )
