"""What a circuit is looked for in: a file's ``build`` or a ``Subject``, looked at and named as the user gave it."""

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stages.base.users_code import given_by_the_user
from stages.circuits.engine.ablation import Ablation
from stages.circuits.engine.graph import Graph, Node
from stages.circuits.engine.objectives import OBJECTIVES, Objective
from stages.errors import UserError

__all__ = ["Subject", "check_subject", "graph_of", "load_subject"]


@dataclass(frozen=True)
class Subject:
    """What a circuit is looked for in. ``build()`` returns one of these, or a dict with the same keys."""

    module: nn.Module
    """A HookedRootModule in eval mode."""
    clean: Tensor
    """(n, ...) inputs."""
    graph: Graph | None = None
    """None: ``module.circuit()``."""
    counterfactual: Tensor | None = None
    """(n, ...) one for each clean input; needed for ``interchange``."""
    metric: str | Objective = "kl"
    """mse, kl, answer, projection, or a function (S, B, ..., C), (B, ..., C) -> (S, B), 0 = like the full module."""
    ablation: Ablation | None = None
    """Used where the caller states none."""


KEYS = tuple(field.name for field in fields(Subject))


def load_subject(spec: str) -> Subject:
    """``FILE.py:function`` -> what the function returns.

    Raises:
        UserError: no such file or function, it fails, or what it returns is not a subject.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file)
    if not name or not path.is_file():
        raise UserError(f"{spec!r} is no target: give FILE.py:function, where the function returns module and data")
    loading = importlib.util.spec_from_file_location(f"lensmith_circuit_{path.stem}", path)
    if loading is None or loading.loader is None:
        raise UserError(f"{path} is no Python file: its name must end in .py")
    module = importlib.util.module_from_spec(loading)
    sys.modules[loading.name] = module
    with given_by_the_user(f"{spec} fails"):
        loading.loader.exec_module(module)
    if not callable(getattr(module, name, None)):
        raise UserError(f"{path} has no function {name!r}: define it, without arguments")
    with given_by_the_user(f"{spec} fails"):
        built: Any = getattr(module, name)()
    if isinstance(built, Mapping):
        unknown, missing = sorted(map(str, set(built) - set(KEYS))), sorted({"module", "clean"} - set(built))
        if unknown or missing:
            said = [f"without {', '.join(missing)}"] * bool(missing) + [f"with unknown {', '.join(unknown)}"] * bool(
                unknown
            )
            raise UserError(
                f"{spec} returns a dict {' and '.join(said)}: module and clean are needed, graph, counterfactual,"
                " metric and ablation may be added"
            )
        built = Subject(**built)
    if not isinstance(built, Subject):
        raise UserError(f"{spec} returns {kind(built)}: return a dict with module and clean, or a Subject")
    return check_subject(built)


def check_subject(subject: Subject) -> Subject:
    """Say what is wrong with what the user gave, under the name the user gave it.

    Raises:
        UserError: a part has another type than it must have.
    """
    module: object = subject.module
    if not isinstance(module, nn.Module):
        raise UserError(f"module is {kind(module)}: give the module itself, a HookedRootModule")
    _check_inputs("clean", subject.clean)
    if subject.counterfactual is not None:
        _check_inputs("counterfactual", subject.counterfactual)
    metric: object = subject.metric
    if not callable(metric) and not (isinstance(metric, str) and metric in OBJECTIVES):
        raise UserError(
            f"metric is {metric!r}: give one of {', '.join(sorted(OBJECTIVES))}, or a function (outputs, clean) -> one"
            " loss per mask and input"
        )
    return subject


def _check_inputs(name: str, given: object) -> None:
    if not isinstance(given, Tensor):
        if type(given).__module__.partition(".")[0] == "numpy":
            remedy = f"give torch.from_numpy({name}), with .float() if it is float64"
        elif isinstance(given, Mapping):
            remedy = (
                f"it has the keys {', '.join(map(str, given))}; give one tensor, and a module whose forward takes that"
                " one (pack several inputs into it, or keep what does not vary in the module)"
            )
        elif isinstance(given, Sequence) and given and isinstance(given[0], Tensor):
            remedy = f"give torch.stack({name}) for one tensor per input; several inputs must be packed into one tensor"
        else:
            remedy = f"give a tensor with one input per row, such as torch.tensor({name})"
        raise UserError(f"{name} is {kind(given)}: {remedy}")
    if given.dim() < 1 or len(given) == 0:
        raise UserError(f"{name} has shape {tuple(given.shape)}: give at least one input, along the first axis")
    if given.is_sparse or given.is_quantized:
        raise UserError(f"{name} is {'sparse' if given.is_sparse else 'quantized'}: give a dense float tensor")


def kind(given: object) -> str:
    """ "numpy.ndarray", "dict", "nothing": what a user would call it."""
    if given is None:
        return "None (no return)"
    if isinstance(given, type):
        return f"the class {given.__name__}, not one of it"
    where = type(given).__module__
    return type(given).__name__ if where in ("builtins", "__main__") else f"{where}.{type(given).__name__}"


def graph_of(subject: Subject) -> Graph:
    """The declared graph.

    Raises:
        UserError: there is none, or it is something else.
    """
    found: Any = subject.graph
    if found is None:
        declare = getattr(subject.module, "circuit", None)
        if not callable(declare):
            raise UserError(
                f"{type(subject.module).__name__} declares no graph: give it a method circuit() that returns"
                " Graph(Node(...), ...), or return graph= from build (docs/circuits.md)"
            )
        with given_by_the_user(f"circuit() of {type(subject.module).__name__} fails"):
            found = declare()
    if isinstance(found, list | tuple) and all(isinstance(node, Node) for node in found):
        found = Graph(*found)
    if not isinstance(found, Graph):
        raise UserError(f"the graph is {kind(found)}: return Graph(Node(...), ...)")
    return found
