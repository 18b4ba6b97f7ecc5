"""Same verdict on any machine: the toy graph again with other sums, which is what another machine means.

Two threads instead of one, and numpy and torch without the vector instructions of this processor: sums come in another
order, so last digits differ everywhere. Targets are trained again with one thread: training in two is slow.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests import toy

BUILD = """
import sys
from pathlib import Path
from tests import toy
toy.build(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None)
"""
FILES = ("train.json", "leaderboard.json")


def other_machine(threads: int) -> dict[str, str]:
    core = np._core._multiarray_umath
    used = [name for name in core.__cpu_dispatch__ if core.__cpu_features__.get(name)]
    slower = {"NPY_DISABLE_CPU_FEATURES": " ".join(used)} if used else {}
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    # A thread that has nothing to do sleeps: spinning, two of them stand still where the machine is busy.
    counts |= {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
    return os.environ | counts | slower | {"ATEN_CPU_CAPABILITY": "default", "PYTHONPATH": str(toy.ROOT)}


def rows(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    found = [row for file in FILES for row in json.loads((root / "metrics" / file).read_text(encoding="utf-8"))]
    return {(row["split"], row["method"]): row for row in found}


def rebuilt(root: Path, targets: str, threads: int) -> dict[tuple[str, str], dict[str, Any]]:
    command = [sys.executable, "-c", BUILD, str(root), targets]
    done = subprocess.run(command, cwd=toy.ROOT, env=other_machine(threads), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return rows(root)


def test_on_the_same_targets_every_verdict_is_the_same(built: Path, tmp_path: Path) -> None:
    here, there = rows(built), rebuilt(tmp_path, str(built), threads=2)
    assert here.keys() == there.keys() and here
    for key, row in here.items():
        assert (row["verdict"], row["status"]) == (there[key]["verdict"], there[key]["status"]), key


def test_on_targets_that_are_trained_again_no_verdict_is_reversed(built: Path, tmp_path: Path) -> None:
    """Training multiplies last digits, so these are other targets, as another seed's would be. Intervals are about the
    target at hand and say nothing of others: they need not overlap, and "worse" may become "not distinguishable".
    """
    here, there = rows(built), rebuilt(tmp_path, "", threads=1)
    assert here.keys() == there.keys()
    for key, row in here.items():
        assert {row["verdict"], there[key]["verdict"]} != {"better", "worse"}, key
