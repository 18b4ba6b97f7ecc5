"""Result files -> rows. What is not there is noted with the command that makes it, never invented."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.base import paths
from stages.errors import UserError

__all__ = ["Missing", "Results", "Row", "load_results"]

Row = Mapping[str, Any]

# Result file -> (what it holds, the command that makes it).
FILES: dict[str, tuple[str, str]] = {
    "leaderboard": ("the leaderboard on validation families", "dvc repro reward"),
    "train": ("the leaderboard on train families", "dvc repro reward"),
    "per_task": ("every method on every task", "dvc repro reward"),
    "sensitivity": ("the ranking under other forms of the reward", "dvc repro reward"),
    "controls": ("controls that must come out right", "dvc repro reward"),
    "campaign": ("the research campaign", "dvc repro research"),
    "test": ("the sealed test split", "dvc repro research"),
    "test_per_task": ("every method on every test task", "dvc repro research"),
    "fresh": ("scores on instances drawn after everything was frozen", "dvc repro fresh"),
    "dictionaries": ("dictionary metrics", "dvc repro dictionary_metrics"),
    "proxies": ("how well each metric of a dictionary predicts reward", "dvc repro proxies"),
    "circuits": ("how well circuit discovery recovers known circuits", "dvc repro circuits"),
}


@dataclass(frozen=True)
class Missing:
    """A result that is not there."""

    name: str
    what: str
    made_by: str
    empty: bool = False
    """The file is there but holds nothing."""


@dataclass(frozen=True)
class Results:
    """Everything the report shows. An empty list or object means: not there."""

    leaderboard: Sequence[Row] = ()
    train: Sequence[Row] = ()
    test: Sequence[Row] = ()
    per_task: Sequence[Row] = ()
    test_per_task: Sequence[Row] = ()
    controls: Sequence[Row] = ()
    fresh: Sequence[Row] = ()
    dictionaries: Sequence[Row] = ()
    sensitivity: Row = field(default_factory=dict)
    campaign: Row = field(default_factory=dict)
    galleries: Sequence[Row] = ()
    """One per dictionary: target, hook_point, architecture, n_latents, seed, images, latents and counts."""
    proxies: Sequence[Row] = ()
    circuits: Sequence[Row] = ()
    drawings: Sequence[Row] = ()
    """Circuits to draw: title, nodes, edges, note."""
    missing: Sequence[Missing] = ()

    def lacks(self, name: str) -> Missing | None:
        """The note for a result that is not there; None if it is."""
        return next((note for note in self.missing if note.name == name), None)


def load_results() -> Results:
    """Read what is there.

    Raises:
        UserError: a file is not JSON, holds something else than it should, or not one of them is there.
    """
    found: dict[str, Any] = {}
    missing: list[Missing] = []
    for name, (what, made_by) in FILES.items():
        path = paths.metrics_file(name)
        there = path.is_file()
        value = _read(path, dict if name in ("sensitivity", "campaign") else list) if there else None
        if value:
            found[name] = value
        else:
            missing.append(Missing(name, what, made_by, empty=there))
    galleries: list[Row] = []
    for path in sorted(paths.dictionaries_dir("any").parent.glob("*/gallery.json")):
        if not path.parent.name.startswith("."):
            value = _read(path, dict)
            galleries += [{"target": value.get("target"), **one} for one in value.get("dictionaries", [])]
    if not galleries:
        missing.append(Missing("galleries", "top images of the latents", "dvc repro dictionaries"))
    path = paths.circuits_dir() / "drawings.json"
    drawings = _read(path, dict).get("circuits", []) if path.is_file() else []
    if not drawings:
        missing.append(Missing("drawings", "drawings of circuits", "dvc repro circuits", empty=path.is_file()))
    if not found and not galleries:
        raise UserError(f"there is no result in {paths.metrics_file('any').parent}: make them with `lensmith run`")
    return Results(**found, galleries=galleries, drawings=drawings, missing=missing)


def _read(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): restore it with `dvc checkout {path}`") from error
    if not isinstance(value, kind):
        raise UserError(
            f"{path} holds {type(value).__name__}, not {kind.__name__}: restore it with `dvc checkout {path}`"
        )
    return value
