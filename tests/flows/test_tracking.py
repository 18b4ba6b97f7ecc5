"""MLflow as a projection: complete where it can be written, and never in the way."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from stages import tracking
from tests.flows.conftest import REPOSITORY


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its schema: making it takes seconds, copying it does not."""
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LENSMITH_ROOT", str(root))
        patch.setenv("LENSMITH_TRACKING", "on")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        tracking.open_store()
    return root / "mlruns"


@pytest.fixture
def root(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(migrated, tmp_path / "mlruns")
    monkeypatch.setenv("LENSMITH_ROOT", str(tmp_path))
    monkeypatch.setenv("LENSMITH_TRACKING", "on")
    for name in ("MLFLOW_TRACKING_URI", "RUN_PARENT_ID", "DVC_STAGE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def ask(root: Path, query: str) -> list[tuple[str, ...]]:
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as database:
        return list(database.execute(query))


def test_points_params_and_end(root: Path) -> None:
    with tracking.stage_run("train", {"lr": 0.1, "sae": {"k": 8}}) as log:
        for step in range(3):
            log({"loss": 1 / (step + 1)}, step)
    assert ask(root, "select key, value from params order by key") == [
        ("lr", "0.1"),
        ("sae.k", "8"),
    ]
    assert [row[0] for row in ask(root, "select value from metrics order by step")] == [
        1,
        1 / 2,
        1 / 3,
    ]
    assert ask(root, "select name, status from runs") == [("train", "FINISHED")]


def test_more_points_than_one_batch_holds(root: Path) -> None:
    with tracking.stage_run("long") as log:
        for step in range(tracking.FLUSH_POINTS + 5):
            log({"loss": float(step)}, step)
    assert ask(root, "select count(*) from metrics") == [(tracking.FLUSH_POINTS + 5,)]


def test_child_of_the_run_that_the_environment_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tracking.stage_run("night") as parent:
        monkeypatch.setenv("RUN_PARENT_ID", parent.id)
        with tracking.stage_run("stage"):
            pass
    assert ask(root, "select value from tags where key = 'mlflow.parentRunId'") == [(parent.id,)]


def test_failure_is_noted_and_goes_on_its_way(root: Path) -> None:
    with pytest.raises(ZeroDivisionError), tracking.stage_run("bad") as log:
        log({"loss": 1.0}, 0)
        raise ZeroDivisionError
    assert ask(root, "select status from runs") == [("FAILED",)]
    assert ask(root, "select count(*) from metrics") == [(1,)], "what was noted before is kept"


def test_orphans_of_a_killed_process_are_marked(root: Path) -> None:
    orphan = tracking.Run("night")
    orphan.tag({"kind": "night"})
    assert tracking.end_orphans(kind="other") == 0
    assert tracking.end_orphans(kind="night") == 1
    assert ask(root, "select status from runs") == [("KILLED",)]


def test_names_that_mlflow_refuses_are_made_legal(root: Path) -> None:
    with tracking.stage_run("odd", {"a@b": 1}) as log:
        log({"arm@a:loss": 1.0}, 0)
        log.tag({"stage.arm@a": "cached"})
    assert ask(root, "select key from metrics") == [("arm_a_loss",)]
    assert ("stage.arm_a",) in ask(root, "select key from tags")


@pytest.mark.parametrize("uri", ["sqlite:////proc/nowhere/mlflow.db", f"sqlite:///{__file__}", "http://127.0.0.1:9"])
def test_unreachable_store_is_one_warning(
    root: Path, uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with tracking.stage_run("train", {"lr": 1}) as log:
        log({"loss": 1.0}, 0)
        log.tag({"a": "b"})
    said = capsys.readouterr()
    lines = said.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"warning: MLflow at {uri}") and "Remedy" in lines[0]
    assert said.out == ""


def test_off_writes_and_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom stages import tracking\n"
        "with tracking.stage_run('x', {'a': 1}) as log:\n    log({'loss': 1.0}, 0)\n"
        "print('mlflow' in sys.modules)"
    )
    environment = os.environ | {
        "LENSMITH_TRACKING": "off",
        "LENSMITH_ROOT": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_first_users_do_not_collide(tmp_path: Path) -> None:
    code = "from stages import tracking\nwith tracking.stage_run('x') as log:\n    log({'loss': 1.0}, 0)"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    environment |= {
        "LENSMITH_TRACKING": "on",
        "LENSMITH_ROOT": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for process in running:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0 and "warning" not in said, said
    assert ask(tmp_path, "select status from runs") == [("FINISHED",)] * 3
    assert ask(tmp_path, "select count(*) from experiments where name = 'lensmith'") == [(1,)]


def names(root: Path, run: str) -> set[str]:
    return {row[0] for row in ask(root, f"select key from latest_metrics where run_uuid = '{run}'")}


def test_a_run_has_few_numbers_and_its_parts_are_runs_of_their_own(root: Path) -> None:
    with tracking.stage_run("dictionaries") as log:
        log({"loss": 1.0, "noise_flip/reward": 0.5}, 0)
        log({f"noise_flip/assisted/seed{seed}/tight/score": 0.25 for seed in range(200)}, 0)
        for step in (1, 2, 3):
            log({f"layer.0/{kind}/losses/mse": 1 / step for kind in ("topk", "standard")}, step)
    assert names(root, log.id) == {"loss", "noise_flip/reward"}
    children = ask(
        root,
        "select r.name, r.run_uuid, r.status from runs r join tags t on t.run_uuid = r.run_uuid"
        f" where t.key = 'mlflow.parentRunId' and t.value = '{log.id}' order by r.name",
    )
    assert [(name, status) for name, _, status in children] == [
        ("layer.0/standard", "FINISHED"),
        ("layer.0/topk", "FINISHED"),
    ]
    for _, run, _ in children:
        points = ask(root, f"select key, step, value from metrics where run_uuid = '{run}' order by step")
        assert points == [("losses/mse", 1, 1.0), ("losses/mse", 2, 0.5), ("losses/mse", 3, 1 / 3)]
    (file,) = (root / "mlruns" / "artifacts" / log.id).rglob("details.csv")
    lines = file.read_text().splitlines()
    assert lines[0] == "name,step,value" and len(lines) == 201
    assert lines[1] == "noise_flip/assisted/seed0/tight/score,0,0.25"


def test_runs_of_one_run_of_the_graph_are_found_by_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tracking.RUN, "2026-01-01 1")
    with tracking.stage_run("a"), tracking.stage_run("b"):
        pass
    assert ask(root, "select count(*) from tags where key = 'lensmith.run' and value = '2026-01-01 1'") == [(2,)]


def test_only_the_latest_of_its_kind_is_current(root: Path) -> None:
    for i in range(3):
        assert tracking.supersede(**{"lensmith.kind": "method"}) == (i > 0) * 2
        for method in ("pca", "sae"):
            with tracking.stage_run(f"method {method}") as log:
                log.tag({"lensmith.kind": "method", tracking.CURRENT: "yes"})
                log.describe("what it is")
                log.text("rows.json", "{}")
    found = ask(root, "select value, count(*) from tags where key = 'lensmith.current' group by value")
    assert dict(found) == {"yes": 2, "no": 4}
    assert ask(root, "select count(*) from tags where key = 'mlflow.note.content'") == [(6,)]
    about = ask(root, "select value from experiment_tags where key = 'mlflow.note.content'")
    assert "lensmith.current" in about[0][0]
