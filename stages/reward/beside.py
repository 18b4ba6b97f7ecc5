"""Do the sentences of one run hold in another: targets retrained from another seed, another profile, another machine?

Each sentence that says better or worse in either run is set beside the same sentence in the other. Controls are left
out. Holding twice is more than one interval says: an interval takes the targets' weights as given.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from stages.contracts.record import Record, Verdict
from stages.contracts.reward_rows import STATEMENTS, TEST_STATEMENTS, Scope, StatementRow
from stages.errors import UserError
from stages.reward.order import spearman

__all__ = ["BesideRow", "OrderBeside", "beside", "order_beside", "sentences_of"]

Fate = Literal["holds", "only here", "only there", "reversed"]
Key = tuple[str, str, str, str]


class BesideRow(Record):
    """One sentence in two runs."""

    method: str
    """Name of the method."""
    split: str
    """As in the sentence."""
    scope: Scope
    """As in the sentence."""
    kind: str
    """Kind of question, where the sentence is about one."""
    here: float
    """Mean reward in this run."""
    here_low: float | None
    """Lower end of its 95% interval."""
    here_high: float | None
    """Upper end of its 95% interval."""
    there: float
    """Mean reward in the other run."""
    there_low: float | None
    """Lower end of its 95% interval."""
    there_high: float | None
    """Upper end of its 95% interval."""
    verdict_here: Verdict
    """Of this run."""
    verdict_there: Verdict
    """Of the other run."""
    fate: Fate
    """holds: the same verdict in both. only here, only there: the other run cannot tell. reversed: better and worse."""


class OrderBeside(Record):
    """The order of the methods by one kind of sentence, in two runs."""

    split: str
    """As in the sentences."""
    scope: Scope
    """As in the sentences."""
    kind: str
    """Kind of question, where the sentences are about one."""
    n_methods: int
    """Methods that both runs say something of."""
    spearman: float | None
    """Rank correlation of their rewards; null for fewer than four methods."""


def sentences_of(root: Path) -> tuple[StatementRow, ...]:
    """The sentences of a run.

    Args:
        root: a working copy, or a folder that holds its metrics or a copy of them.

    Raises:
        UserError: no sentences lie there.
    """
    found: list[StatementRow] = []
    for file in (STATEMENTS, TEST_STATEMENTS):
        places = [root / "metrics" / f"{file.name}.json", root / f"{file.name}.json"]
        there = next((place for place in places if place.is_file()), None)
        if there is not None:
            found += file.load(there)
    if not found:
        raise UserError(
            f"{root} has neither metrics/{STATEMENTS.name}.json nor {STATEMENTS.name}.json: give a working copy in"
            " which `lensmith run` was run, or its metrics folder"
        )
    return tuple(found)


def beside(here: Iterable[StatementRow], there: Iterable[StatementRow]) -> list[BesideRow]:
    """Every sentence that both runs have and that says better or worse in one of them, in this run's order."""
    other = {_key(row): row for row in there}
    found = []
    for row in here:
        twin = other.get(_key(row))
        if twin is None or row.is_control or row.against:
            continue
        if row.verdict == twin.verdict == "not distinguishable":
            continue
        fate: Fate = (
            "holds"
            if row.verdict == twin.verdict
            else "only here"
            if twin.verdict == "not distinguishable"
            else "only there"
            if row.verdict == "not distinguishable"
            else "reversed"
        )
        found.append(
            BesideRow(
                method=row.method, split=row.split, scope=row.scope, kind=row.kind, here=row.value, here_low=row.low,
                here_high=row.high, there=twin.value, there_low=twin.low, there_high=twin.high,
                verdict_here=row.verdict, verdict_there=twin.verdict, fate=fate,
            )
        )  # fmt: skip
    return found


def order_beside(here: Sequence[StatementRow], there: Sequence[StatementRow]) -> list[OrderBeside]:
    """Rank correlation between the runs of the methods' rewards, for each kind of sentence that both have."""
    other = {_key(row): row.value for row in there if not row.is_control and not row.against}
    groups: dict[tuple[str, Scope, str], list[tuple[float, float]]] = {}
    for row in here:
        if _key(row) in other and not row.is_control and not row.against:
            groups.setdefault((row.split, row.scope, row.kind), []).append((row.value, other[_key(row)]))
    return [
        OrderBeside(split=split, scope=scope, kind=kind, n_methods=len(pairs), spearman=spearman(*np.array(pairs).T))
        for (split, scope, kind), pairs in groups.items()
    ]


def _key(row: StatementRow) -> Key:
    return row.method, row.split, row.scope, row.kind
