"""The tables of docs/circuits.md, written between markers from what was just measured."""

from collections.abc import Sequence
from pathlib import Path

from stages.base import paths
from stages.circuits.algorithms.methods import METHODS
from stages.circuits.recovery import bench_rows, card_rows
from stages.contracts.circuit_rows import KnownCircuit, TimedCircuitRow
from stages.errors import UserError

__all__ = ["card_table", "replace_between", "write_tables"]

BEGIN, END = "<!-- {name}: begin -->", "<!-- {name}: end -->"


def write_tables(page: Path | None = None, seeds: int = 10) -> None:
    """Measure everything (minutes) and write it into the page.

    Raises:
        UserError: the page has no markers.
    """
    page = page or paths.root() / "docs" / "circuits.md"
    rows = bench_rows((), tuple(METHODS), seeds, progress=lambda name: print(f"tables: {name}", flush=True))
    text = page.read_text(encoding="utf-8")
    for name, table in (
        ("cards", card_table(card_rows())),
        ("auc", pivot(rows, "edge_auc")),
        ("exact", exact_table(rows)),
        ("cost", cost_table(rows)),
        ("curves", pivot(rows, "cmd")),
    ):
        text = replace_between(text, name, table)
    page.write_text(text, encoding="utf-8")


def replace_between(text: str, name: str, new: str) -> str:
    """The text with everything between the markers of ``name`` replaced.

    Raises:
        UserError: a marker is missing.
    """
    begin, end = BEGIN.format(name=name), END.format(name=name)
    if begin not in text or end not in text:
        raise UserError(f"the page has no line {begin!r} followed by {end!r}: add both where the table goes")
    head, _, rest = text.partition(begin)
    return f"{head}{begin}\n{new}\n{end}{rest.partition(end)[2]}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def card_table(rows: Sequence[KnownCircuit]) -> str:
    """Size of each card's circuit and how it was derived."""
    return table(
        ["card", "edges", "circuit", "both derivations agree", "orders", "subsets tried"],
        [
            [
                row.card,
                str(row.n_edges),
                "-" if row.truth_edges is None else str(row.truth_edges),
                "yes" if row.agree else "no: several circuits are minimal" if not row.unique else "no",
                str(row.orders),
                str(row.subsets_tried),
            ]
            for row in rows
        ],
    )


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def pivot(rows: Sequence[TimedCircuitRow], key: str) -> str:
    """Cards down, methods across."""
    found = {(row.card, row.method): row for row in rows}
    names = list(dict.fromkeys(row.card for row in rows))
    methods = [method for method in METHODS if any(row.method == method for row in rows)]
    return table(
        ["card", *methods], [[name, *(_text(getattr(found[name, m], key)) for m in methods)] for name in names]
    )


def exact_table(rows: Sequence[TimedCircuitRow]) -> str:
    """Seeds in which exactly the known circuit came out."""
    found = {(row.card, row.method): row for row in rows}
    names = list(dict.fromkeys(row.card for row in rows))

    def share(name: str, method: str, key: str = "exact_recovery") -> str:
        row = found[name, method]
        value = row.exact_recovery if key == "exact_recovery" else row.exact_before_polish
        return "-" if value is None else f"{round(value * row.seeds)}/{row.seeds}"

    return table(
        ["card", "circuit", *(m for m in METHODS if m != "random"), "edge-sp before polish"],
        [
            [
                name,
                str(found[name, "edge-sp"].truth_edges),
                *(share(name, m) for m in METHODS if m != "random"),
                share(name, "edge-sp", "exact_before_polish"),
            ]
            for name in names
        ],
    )


def cost_table(rows: Sequence[TimedCircuitRow]) -> str:
    """Passes and time per seed, median over cards and the largest."""
    lines = []
    for method in METHODS:
        mine = [row for row in rows if row.method == method and row.forwards is not None]
        if not mine or method == "random":
            continue
        reverse = next((row for row in mine if row.card == "reverse-4-zero"), None)
        if reverse is None:
            continue
        slowest = max(mine, key=lambda row: row.seconds_per_seed or 0.0)
        lines.append(
            [
                method,
                f"{reverse.forwards:.0f}",
                f"{reverse.backwards:.0f}",
                f"{reverse.seconds_per_seed:.3f}",
                f"{slowest.seconds_per_seed:.3f} ({slowest.card})",
            ]
        )
    return table(["method", "forwards", "backwards", "s per seed, reverse-4-zero", "slowest card"], lines)


def main() -> None:
    """``python -m stages tools.circuit_tables``."""
    write_tables()
