"""`lensmith bench pipeline` on the toy: it works in a copy, and its counts are those of the
copy.
"""

import json

import pytest

from flows.commands.bench_pipeline import arm_file, copy_without_results
from tests.flows.conftest import Toy

# A second stage whose arms share a file with those of the first, as a method's file does.
SECOND = """
  again:
    matrix:
      name: ${arms}
    cmd: python -m stages toy again-${item.name} data/again/${item.name}
    deps:
      - stages/toy/stage.py
      - source/${item.name}.py
      - data/arm/${item.name}
    outs:
      - data/again/${item.name}
  join:
"""


def test_cold_warm_and_one_arm_changed(toy: Toy) -> None:
    text = (toy.root / "dvc.yaml").read_text().replace("source/${item.name}.txt", "source/${item.name}.py")
    (toy.root / "dvc.yaml").write_text(text.replace("\n  join:\n", SECOND))
    for arm in ("a", "b"):
        (toy.root / "source" / f"{arm}.py").write_text("1\n")
    assert toy.lensmith("run").returncode == 0
    assert arm_file(toy.root / "dvc.lock", toy.root) == "source/a.py"
    before = (toy.root / "dvc.lock").read_bytes()
    toy.forget_log()
    done = toy.lensmith("bench", "pipeline", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["executed"] == {"cold": 6, "again": 0, "one_method_changed": 2}
    assert found["changed"] == "source/a.py"
    assert all(found[f"{run}_s"] > 0 for run in found["executed"])
    assert set(found["cpu_s"]) == set(found["executed"]) and min(found["cpu_s"].values()) > 0
    stages = {stage["node"]: stage for stage in found["stages"]}
    assert set(stages) == {"first", "arm@a", "arm@b", "again@a", "again@b", "join"}
    wall_s = sum(stage["wall_s"] for stage in stages.values())
    computation_s = sum(stage["computation_s"] for stage in stages.values())
    assert found["share_outside_computation"] == pytest.approx(1 - computation_s / wall_s, abs=1e-3)
    assert toy.log() == [] and (toy.root / "dvc.lock").read_bytes() == before, "the original is untouched"


def test_the_copy_has_sources_and_neither_results_nor_cache(done_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(done_toy.root))
    copy = done_toy.root.parent / "bench"
    copy_without_results(done_toy.root, copy)
    there = {path.name for path in copy.iterdir()}
    assert {"dvc.yaml", "dvc.lock", "stages", "params", "source", ".dvc"} <= there
    assert not there & {"data", "metrics", ".git", ".lensmith", "mlruns"}
    assert not (copy / ".dvc" / "cache").exists()
