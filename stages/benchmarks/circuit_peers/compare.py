"""Ours and a peer in turn on one exported card, judged by the same code.

A turn is ours, then the peer in a process of its own, one thread each. Times are of the search with what it needs of
clean and ablated activations; imports, loading and wrapping a module are not counted on either side.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from stages.benchmarks.circuit_peers.export import Exported, read_export
from stages.circuits.algorithms.methods import Settings, run_method
from stages.circuits.engine.objectives import mse
from stages.circuits.evaluation import against_truth
from stages.errors import UserError

__all__ = ["PAIRS", "compare", "judged", "our_row", "peer_rows"]

PAIRS = {"acdc": "acdc", "edge-sp": "sp", "eap": "eap", "eap-ig": "ig"}
"""Our method -> auto-circuit's."""
SCRIPT = Path(__file__).with_name("auto_circuit_peer.py")
Row = dict[str, Any]


def our_row(exported: Exported, method: str) -> Row:
    """One run of ours: seconds, edge AUC, exact recovery."""
    torch.set_num_threads(1)
    settings = Settings(tolerance=exported.card["tolerance"])
    started = time.perf_counter()
    engine = exported.engine()
    (found,) = run_method(method, engine, mse, torch.Generator().manual_seed(exported.card["seed"]), settings)
    seconds = time.perf_counter() - started
    return {"method": method, "seconds": seconds, **judged(exported, found.scores, found.mask)}


def peer_rows(exported: Exported, result: Mapping[str, Any]) -> list[Row]:
    """Rows of a peer's result file: scores brought into our order of edges and judged against the same circuit.

    Raises:
        UserError: the result is of another card or seed, or its edges are not the card's.
    """
    of, wanted = (result.get("card"), result.get("seed")), (exported.card["name"], exported.card["seed"])
    if of != wanted:
        raise UserError(f"the peer's result is of card and seed {of}, the export of {wanted}: run it on this export")
    edges, rows = exported.card["edges"], []
    for row in result["rows"]:
        if set(row["scores"]) != set(edges):
            odd = sorted(set(row["scores"]) ^ set(edges))
            raise UserError(
                f"{row['method']}: the peer's edges are not the card's ({', '.join(odd[:5])} are in one only): its"
                " graph differs, so nothing can be compared"
            )
        scores = torch.tensor([float(row["scores"][edge]) for edge in edges], dtype=torch.float64)
        kept = None if row["kept"] is None else torch.tensor([float(edge in set(row["kept"])) for edge in edges])
        rows.append(
            {"method": row["method"], "seconds": row["seconds"], "patched": row["patched"]}
            | judged(exported, scores, kept)
        )
    return rows


def judged(exported: Exported, scores: Tensor, mask: Tensor | None) -> Row:
    """Edge AUC and exact recovery; a method that only ranks is told the size."""
    found = against_truth(scores, exported.truth, mask)
    return {
        "edge_auc": found["edge_auc"],
        "exact": found["exact_recovery"],
        "told_size": mask is None,
        "size": found["size"],
    }


def compare(path: Path, python: Path, turns: int = 3, methods: Sequence[str] = tuple(PAIRS)) -> list[Row]:
    """One row per method: medians over turns, ours next to the peer's.

    Args:
        path: an exported card.
        python: interpreter of the peer's environment.
        turns: of ours and the peer.
        methods: of ``PAIRS``.

    Raises:
        UserError: an unknown method, or the peer fails.
    """
    if turns < 1 or not methods or set(methods) - set(PAIRS):
        raise UserError(f"turns {turns}, methods {list(methods)}: use {', '.join(PAIRS)} and at least one turn")
    exported = read_export(path)
    ours: dict[str, list[Row]] = {method: [] for method in methods}
    theirs: dict[str, list[Row]] = {method: [] for method in methods}
    for method in methods:
        our_row(
            exported, method
        )  # the first call of a kind pays for what torch sets up; the peer's script does the same
    for _ in range(turns):
        for method in methods:
            ours[method].append(our_row(exported, method))
        found = peer_rows(exported, _run_peer(path, python, [PAIRS[method] for method in methods]))
        for method, row in zip(methods, found, strict=True):
            theirs[method].append(row)
    rows: list[Row] = []
    for method in methods:
        both: Row = {"card": exported.card["name"], "method": method, "peer_method": PAIRS[method]}
        for who, runs in (("ours", ours[method]), ("peer", theirs[method])):
            both |= {f"{who}_{key}": value for key, value in runs[0].items() if key != "method"}
            both[f"{who}_seconds"] = median(run["seconds"] for run in runs)
        rows.append(both | {"ratio": both["peer_seconds"] / both["ours_seconds"]})
    return rows


def _run_peer(path: Path, python: Path, methods: Sequence[str]) -> Any:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [str(python), str(SCRIPT), str(path.resolve()), str(out), "--methods", *methods]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        except OSError as error:
            raise UserError(
                f"{python} cannot be started ({error}): give the python of the peer's environment"
            ) from error
        if done.returncode or not out.is_file():
            raise UserError(
                f"the peer failed: {done.stderr.strip()[-400:] or 'no result'}: see docs/circuits.md, Peers, for its"
                " environment"
            )
        return json.loads(out.read_text(encoding="utf-8"))


def main() -> None:
    """``python -m stages benchmarks.circuit_peers.compare``; see ``execute``."""
    execute(sys.argv[1:])


def execute(arguments: Sequence[str]) -> None:
    """``export CARD FILE [SEED]``, or
    ``compare FILE PYTHON [TURNS] [METHOD ...]``, which prints JSON lines."""
    from stages.benchmarks.circuit_peers.export import export_card

    match list(arguments):
        case ["export", card, file]:
            export_card(card, Path(file))
        case ["export", card, file, seed] if seed.isdecimal():
            export_card(card, Path(file), int(seed))
        case ["compare", file, python]:
            _print(compare(Path(file), Path(python)))
        case ["compare", file, python, turns, *methods] if turns.isdecimal():
            _print(compare(Path(file), Path(python), int(turns), methods or tuple(PAIRS)))
        case _:
            raise UserError(
                f"{' '.join(arguments)!r} is not understood: use `export CARD FILE [SEED]` or `compare FILE PYTHON"
                " [TURNS] [METHOD ...]`"
            )


def _print(rows: Sequence[Row]) -> None:
    for row in rows:
        sys.stdout.write(json.dumps(row, sort_keys=True) + "\n")
