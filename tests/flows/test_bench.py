"""`lensmith bench pipeline` on the toy: it works in a copy, and its counts are those of the copy."""

import json

import pytest
from flows.benchmark import arm_file, copy_without_results

from tests.flows.conftest import Toy

# A second stage whose arms share a file with those of the first, as a method's file does.
SECOND = """
  again:
    matrix:
      name: ${arms}
    cmd: python work.py again-${item.name} data/again/${item.name}
    deps:
      - work.py
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
    cold, warm, changed = json.loads(done.stdout)
    assert (cold["executed"], warm["executed"], changed["executed"]) == (6, 0, 2)
    assert cold["cached"] == 0 and warm["cached"] == 6
    assert changed["changed"] == "source/a.py"
    assert toy.log() == [] and (toy.root / "dvc.lock").read_bytes() == before, "the original is untouched"


def test_the_copy_has_sources_and_neither_results_nor_cache(done_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LENSMITH_ROOT", str(done_toy.root))
    copy = done_toy.root.parent / "bench"
    copy_without_results(done_toy.root, copy)
    there = {path.name for path in copy.iterdir()}
    assert {"dvc.yaml", "dvc.lock", "work.py", "params", "source", ".dvc"} <= there
    assert not there & {"data", "metrics", ".git", ".lensmith", "mlruns"}
    assert not (copy / ".dvc" / "cache").exists()
