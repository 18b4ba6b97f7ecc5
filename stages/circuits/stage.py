"""Stage ``circuits``: every method on every card -> metrics/circuits.json and data/circuits/.

metrics/circuits.json holds one row per card and method (exact recovery, AUC, passes; no times, which are not stable:
see ``lensmith bench circuits``); data/circuits/cards.json the known circuits and how they were derived, drawings.json
circuits for the report to draw.
"""

from pydantic import Field

from stages import tracking
from stages.base import paths
from stages.base.params import Params, load
from stages.circuits.drawings import drawings
from stages.circuits.known.known_circuits import card_named
from stages.circuits.recovery import bench_rows, card_rows
from stages.contracts.circuit_rows import CIRCUITS, DRAWINGS, KNOWN_CIRCUITS, CircuitRow, Drawings

__all__ = ["Config", "main", "run"]


class Config(Params):
    cards: tuple[str, ...]
    """Cards or subjects; empty: all of them."""
    methods: tuple[str, ...] = Field(min_length=1)
    """Names as in stages/circuits/algorithms/methods.py."""
    seeds: int = Field(ge=1, le=1000)
    """Per card and method: sample of inputs, partners, starts and gates."""
    drawn: dict[str, tuple[str, ...]]
    """Methods to draw, by card."""
    orders: int = Field(ge=1, le=1000)
    """Random orders of cutting in which a card's circuit must come out the same."""


def run(config: Config) -> tuple[CircuitRow, ...]:
    """Derive the cards' circuits, run every method, write both files; returns the rows of metrics/circuits.json.

    Raises:
        UserError: an unknown card or method, or a compiled program without tracr.
    """
    with tracking.stage_run("circuits", config.model_dump()) as log:
        known = card_rows(config.cards, config.orders, lambda name: print(f"circuits: truth of {name}", flush=True))
        rows = bench_rows(
            config.cards,
            config.methods,
            config.seeds,
            config.orders,
            lambda name: print(f"circuits: {name}", flush=True),
        )
        for row in rows:
            if row.exact_recovery is not None:
                log({f"exact_{row.card}_{row.method}": row.exact_recovery}, 0)
    drawn = [one for name, methods in sorted(config.drawn.items())
             for one in drawings(card_named(name), methods, config.orders)]  # fmt: skip
    found = tuple(row.untimed().rounded() for row in rows)
    KNOWN_CIRCUITS.save(tuple(known), paths.circuits_dir() / "cards.json")
    DRAWINGS.save(Drawings(circuits=tuple(drawn)), paths.circuits_dir() / "drawings.json")
    CIRCUITS.save(found)
    return found


def main() -> None:
    run(load("circuits", Config))
