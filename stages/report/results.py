"""Result files -> rows. What is not there is noted with the command that makes it, never invented."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from stages.base import paths
from stages.contracts.circuit_rows import CIRCUITS, DRAWINGS, CircuitDrawing, CircuitRow
from stages.contracts.compare_rows import COMPARISON, LIVE, Comparison, LiveRow
from stages.contracts.dictionary_rows import DICTIONARIES, GALLERY, PROXIES, DictionaryRow, Gallery, ProxyRow
from stages.contracts.journal import CAMPAIGN, EVENT, CampaignSummary, Event
from stages.contracts.measurement_rows import (
    CONTROLS,
    FRESH,
    NULL,
    SENSITIVITY,
    ControlRow,
    FreshRow,
    NullRow,
    SensitivityTable,
)
from stages.contracts.record import ResultFile
from stages.contracts.research_rows import LABELS, SCENARIOS, TEST_PATH, LabelsRow, PathRow, ScenarioRow
from stages.contracts.reward_rows import (
    LEADERBOARD,
    PER_TASK,
    STATEMENTS,
    TEST,
    TEST_PER_TASK,
    TEST_STATEMENTS,
    TRAIN,
    LeaderboardRow,
    StatementRow,
    TaskRow,
    TestRow,
)
from stages.errors import UserError

__all__ = ["Missing", "Results", "load_results"]

Shape = TypeVar("Shape")


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
    """Everything the report shows. An empty list or None means: not there."""

    leaderboard: Sequence[LeaderboardRow] = ()
    train: Sequence[LeaderboardRow] = ()
    test: Sequence[TestRow] = ()
    per_task: Sequence[TaskRow] = ()
    test_per_task: Sequence[TaskRow] = ()
    statements: Sequence[StatementRow] = ()
    """Of every split that is open; those of the sealed test once it was opened."""
    controls: Sequence[ControlRow] = ()
    fresh: Sequence[FreshRow] = ()
    nulls: Sequence[NullRow] = ()
    dictionaries: Sequence[DictionaryRow] = ()
    sensitivity: SensitivityTable | None = None
    campaign: CampaignSummary | None = None
    journal: Sequence[Event] = ()
    """Of the campaign."""
    path: Sequence[PathRow] = ()
    """Its incumbents on the sealed test."""
    comparison: Comparison | None = None
    live: Sequence[LiveRow] = ()
    """Researchers in campaigns that were run."""
    labels: Sequence[LabelsRow] = ()
    """Methods by the number of labels."""
    scenarios: Sequence[ScenarioRow] = ()
    """What kind of method each is."""
    galleries: Sequence[Gallery] = ()
    """One per dictionary."""
    proxies: Sequence[ProxyRow] = ()
    circuits: Sequence[CircuitRow] = ()
    drawings: Sequence[CircuitDrawing] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Kind of question of each task family, where the tasks are at hand."""
    missing: Sequence[Missing] = ()

    @property
    def best_built_in(self) -> LeaderboardRow | None:
        """The first of the leaderboard."""
        return self.leaderboard[0] if self.leaderboard else None

    def lacks(self, name: str) -> Missing | None:
        """The note for a result that is not there; None if it is."""
        return next((note for note in self.missing if note.name == name), None)


class _Reader:
    """Reads result files and notes those that are not there, or are empty."""

    def __init__(self) -> None:
        self.missing: list[Missing] = []

    def read(self, file: ResultFile[Shape], nothing: Shape, path: Path | None = None) -> Shape:
        there = (path or file.path()).is_file()
        value = file.load(path) if there else nothing
        if value == nothing:
            self.note(file, there)
        return value

    def optional(self, file: ResultFile[Shape]) -> Shape | None:
        if file.path().is_file():
            return file.load()
        self.note(file, False)
        return None

    def note(self, file: ResultFile[Shape], there: bool) -> None:
        self.missing.append(Missing(file.name, file.about, file.command, empty=there))


def load_results() -> Results:
    """Read what is there.

    Raises:
        UserError: a file is not JSON or holds something else than it should, or not one of them is there.
    """
    reader = _Reader()
    leaderboard, train = reader.read(LEADERBOARD, ()), reader.read(TRAIN, ())
    per_task, sensitivity = reader.read(PER_TASK, ()), reader.optional(SENSITIVITY)
    controls, campaign = reader.read(CONTROLS, ()), reader.optional(CAMPAIGN)
    test, test_per_task = reader.read(TEST, ()), reader.read(TEST_PER_TASK, ())
    statements = (*reader.read(STATEMENTS, ()), *reader.read(TEST_STATEMENTS, ()))
    path, journal = reader.read(TEST_PATH, ()), _journal()
    comparison, live = reader.optional(COMPARISON), reader.read(LIVE, ())
    labels, scenarios = reader.read(LABELS, ()), reader.read(SCENARIOS, ())
    fresh, nulls = reader.read(FRESH, ()), reader.read(NULL, ())
    dictionaries = reader.read(DICTIONARIES, ())
    proxies, circuits = reader.read(PROXIES, ()), reader.read(CIRCUITS, ())
    galleries: list[Gallery] = []
    for one in sorted(paths.dictionaries_dir("any").parent.glob("*/gallery.json")):
        if not one.parent.name.startswith("."):
            galleries += GALLERY.load(one).dictionaries
    if not galleries:
        reader.missing.append(Missing("galleries", GALLERY.about, GALLERY.command))
    drawn = paths.circuits_dir() / "drawings.json"
    drawings = DRAWINGS.load(drawn).circuits if drawn.is_file() else ()
    if not drawings:
        reader.note(DRAWINGS, drawn.is_file())
    found = (leaderboard, train, per_task, sensitivity, controls, campaign, test, test_per_task, fresh, dictionaries)
    if not any((*found, proxies, circuits, galleries)):
        raise UserError(f"there is no result in {paths.metrics_file('any').parent}: make them with `lensmith run`")
    return Results(
        leaderboard=leaderboard,
        train=train,
        test=test,
        per_task=per_task,
        test_per_task=test_per_task,
        statements=statements,
        controls=controls,
        fresh=fresh,
        nulls=nulls,
        dictionaries=dictionaries,
        sensitivity=sensitivity,
        campaign=campaign,
        journal=journal,
        path=path,
        comparison=comparison,
        live=live,
        labels=labels,
        scenarios=scenarios,
        galleries=galleries,
        proxies=proxies,
        circuits=circuits,
        drawings=drawings,
        kinds=_kinds(),
        missing=reader.missing,
    )


def _journal() -> tuple[Event, ...]:
    """Events of the campaign whose summary the page shows."""
    path = paths.campaign_dir("campaign") / "events.jsonl"
    if not path.is_file():
        return ()
    try:
        return tuple(EVENT.validate_json(line, strict=True) for line in path.read_bytes().splitlines())
    except ValidationError as error:
        raise UserError(f"{path} is damaged: make it anew with `dvc repro -f {CAMPAIGN.made_by}`") from error


def _kinds() -> dict[str, str]:
    """{family: kind of question}, from the public facts of the tasks."""
    found: dict[str, str] = {}
    for path in sorted(paths.task_dir("any").parent.glob("*/family.json")):
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            name = path.parent.name
            raise UserError(f"{path} is not JSON ({error}): make it anew with `dvc repro -f tasks@{name}`") from error
        if isinstance(facts, dict) and isinstance(facts.get("query_kind"), str):
            found[path.parent.name] = facts["query_kind"].lower()
    return found
