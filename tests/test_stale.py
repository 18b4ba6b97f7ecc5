"""How much a change makes stale, counted with ``dvc status`` in a copy of the graph in which everything has been run.

The copy's results are placeholders, which DVC is told to take for what the stages wrote: nothing is computed.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from dvc.repo import Repo

from tests.house import ROOT

COPIED = ("stages", "params", "dvc.yaml", "results")
READS_ALL_TASKS = {"baseline", "reward", "research", "sealed_test", "fresh", "twins"}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("stale") / "copy"
    root.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copyfile(source, root / name)
    Repo.init(str(root), no_scm=True).close()
    subprocess.run(["git", "init", "-q", "."], cwd=root, check=True)
    with Repo(str(root)) as repo:
        outs = [Path(out.fs_path) for stage in repo.index.stages for out in stage.outs]
    for out in outs:
        file = out if out.suffix else out / "result"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(out.relative_to(root)), encoding="utf-8")
    before = Path.cwd()
    os.chdir(root)
    try:
        with Repo(str(root)) as repo:
            repo.commit(force=True)
        assert stale(root) == set()
        yield root
    finally:
        os.chdir(before)


def stale(root: Path) -> set[str]:
    with Repo(str(root)) as repo:
        return {node for node, changes in repo.status().items() if changes}


@pytest.fixture
def changed(copy: Path) -> Iterator[Path]:
    """The copy, put back as it was after the test."""
    kept = copy.parent / "kept"
    for name in ("stages", "params"):
        shutil.copytree(copy / name, kept / name, symlinks=True)
    yield copy
    for name in ("stages", "params"):
        shutil.rmtree(copy / name)
        shutil.move(kept / name, copy / name)
    kept.rmdir()
    assert stale(copy) == set()


def add_line(root: Path, file: str, key: str, name: str, value: object) -> None:
    path = root / "params" / file
    params = yaml.safe_load(path.read_text(encoding="utf-8"))
    if isinstance(params[key], dict):
        params[key][name] = value
    else:
        params[key] = [*params[key], name]
    path.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def test_a_new_method_is_six_nodes(changed: Path) -> None:
    methods = changed / "stages" / "interpretation" / "methods"
    shutil.copyfile(methods / "pca.py", methods / "zz_new.py")
    add_line(changed, "reward.yaml", "methods", "zz_new", None)
    found = stale(changed)
    assert found == {"interpretation@zz_new", "execution@zz_new", "reward", "sealed_test", "fresh", "twins"}


def test_a_method_that_changes_is_its_own_arms_and_what_compares(changed: Path) -> None:
    with (changed / "stages" / "interpretation" / "methods" / "circuit.py").open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert stale(changed) == {"interpretation@circuit", "execution@circuit", "sealed_test", "fresh", "twins"}


def test_a_new_family_is_one_node_and_those_that_read_all_tasks(changed: Path) -> None:
    families = changed / "stages" / "tasks" / "families"
    shutil.copyfile(families / "edge_radius.py", families / "zz_new.py")
    add_line(changed, "tasks.yaml", "families", "zz_new", {"split": "train", "targets": ["digits_mlp"]})
    found = stale(changed)
    own = {node for node in found if node.endswith("@zz_new")}
    rest = {node.partition("@")[0] for node in found - own}
    assert len(own) <= 5 and "tasks@zz_new" in own
    assert rest <= READS_ALL_TASKS | {"execution", "downstream"}, "they read no tasks"


def test_a_new_target_leaves_the_others_alone(changed: Path) -> None:
    zoo = changed / "stages" / "targets" / "zoo"
    shutil.copyfile(zoo / "digits_mlp.py", zoo / "zz_new.py")
    add_line(changed, "targets.yaml", "targets", "zz_new", {"source": "zz_new", "steps": 600, "seed": 0})
    found = stale(changed)
    assert "targets@zz_new" in found
    assert not {node for node in found if node.startswith("targets@")} - {"targets@zz_new"}


@pytest.mark.parametrize("room", ["tools", "benchmarks", "redteam"])
def test_rooms_that_no_node_computes_with_make_nothing_stale(changed: Path, room: str) -> None:
    for file in (changed / "stages" / room).rglob("*.py"):
        with file.open("a", encoding="utf-8") as text:
            text.write("\n# changed\n")
    assert stale(changed) == set()


def test_wording_of_the_report_is_the_report_alone(changed: Path) -> None:
    for file in (changed / "stages" / "report").glob("*.py"):
        if file.name != "copies.py":
            with file.open("a", encoding="utf-8") as text:
                text.write("\n# changed\n")
    assert stale(changed) == {"report"}
