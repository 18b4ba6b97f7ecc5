"""Places that are awkward: odd names, read-only, moved, without git; and what is said there."""

import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from flows import mlflow_server
from flows.doctor import examine
from flows.nightly_run import _git_sha
from stages import tracking
from stages.errors import explain_os, os_cause
from tests.flows.conftest import Toy, until

ODD = "what? a#b%20c;é[x]@:+y'&"
BWRAP = shutil.which("bwrap")


@pytest.fixture(scope="module")
def odd(_fresh: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """A run in a folder whose name means something in a URI; with tracking."""
    toy = Toy(Path(shutil.copytree(_fresh, tmp_path_factory.mktemp("odd") / ODD, symlinks=True)))
    done = toy.lensmith("run", LENSMITH_TRACKING="on")
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    return toy


def test_a_folder_may_be_called_anything(odd: Toy) -> None:
    assert sorted(path.name for path in odd.root.parent.iterdir()) == [ODD], "something was written beside it"
    assert not list(odd.root.glob("file:*")) and (odd.root / "mlruns" / "mlflow.db").stat().st_size > 0
    done = odd.lensmith("doctor", "--json", LENSMITH_TRACKING="on")
    assert '"MLflow store"' in done.stdout and "runs" in done.stdout


@pytest.mark.parametrize("name", ["plain/mlflow.db", "a b/x.db", f"{ODD}/mlflow.db"])
def test_an_address_leads_back_to_its_file(tmp_path: Path, name: str) -> None:
    assert tracking.sqlite_file(tracking.sqlite_uri(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("sqlite:///mlruns/x.db?timeout=5", Path("mlruns/x.db")),
        ("http://127.0.0.1:5000", None),
        ("postgresql://u:p@h/db", None),
    ],
)
def test_addresses_that_people_write(address: str, file: Path | None) -> None:
    assert tracking.sqlite_file(address) == file


def _artifacts(root: Path) -> set[str]:
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as store:
        found = [row[0] for row in store.execute("select artifact_uri from runs")]
        return {*found, *(row[0] for row in store.execute("select artifact_location from experiments"))}


def test_a_copy_of_a_working_copy_has_addresses_of_its_own(
    odd: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(odd.root, tmp_path / "moved? too", symlinks=True))
    monkeypatch.setenv("LENSMITH_ROOT", str(copy))
    monkeypatch.setenv("LENSMITH_TRACKING", "on")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking.settle() > 1 and tracking.settle() == 0
    home, theirs = (copy / "mlruns").as_uri(), (odd.root / "mlruns").as_uri()
    assert all(uri.startswith(home) for uri in _artifacts(copy) if "artifacts" in uri)
    assert any(uri.startswith(theirs) for uri in _artifacts(odd.root)), "the original was changed"
    (tmp_path / "note.txt").write_text("x")
    with tracking.stage_run("after the move") as run:
        run.artifact(tmp_path / "note.txt")
    assert list((copy / "mlruns" / "artifacts").rglob("note.txt"))


@pytest.mark.skipif(BWRAP is None, reason="no bubblewrap: a read-only folder cannot be made here")
@pytest.mark.parametrize(
    ("words", "code"),
    [(("score", "stages/toy/stage.py"), 2), (("status",), 2), (("run",), 2), (("leaderboard",), 0), (("doctor",), 1)],
)
def test_a_read_only_working_copy_says_so_and_what_still_works(
    done_toy: Toy, words: tuple[str, ...], code: int
) -> None:
    root = str(done_toy.root)
    wall = [str(BWRAP), "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--ro-bind", root, root, "--chdir", root]
    done = subprocess.run(
        [*wall, *done_toy.arguments(*words)], env=done_toy.environment(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stderr + done.stdout
    said = done.stderr + done.stdout
    assert "fault of ours" not in said and "Traceback" not in said
    if code == 2:
        assert len(done.stderr.strip().splitlines()) == 1
        assert "read-only" in said and root in said and "`lensmith leaderboard`" in said
    if words == ("doctor",):
        assert "can be written" in said and "read-only" in said


def test_doctor_tries_to_write_rather_than_to_look(done_toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mode of a folder says nothing to root, and nothing of a full disk or a read-only mount."""
    from flows import doctor

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("LENSMITH_ROOT", str(done_toy.root))
    assert [check.state for check in examine() if check.what == "can be written"] == ["ok"]
    monkeypatch.setattr(doctor.tempfile, "NamedTemporaryFile", full)
    found = [check for check in examine() if check.what == "can be written"]
    assert found and all(check.state == "missing" and check.remedy for check in found)
    assert any(str(done_toy.root) in check.found for check in found)


@pytest.mark.parametrize(
    ("number", "said", "users_fault"),
    [
        (30, "read-only", True),
        (13, "permission denied", True),
        (2, "is not there", True),
        (28, "no space left at /x/y", False),
        (24, "ulimit -n", False),
        (5, "Input/output error", False),
        (36, "too long", True),
        (116, "Stale file handle", False),
    ],
)
def test_a_refusal_of_the_system_names_the_path_and_a_remedy(number: int, said: str, users_fault: bool) -> None:
    text, users = explain_os(OSError(number, os.strerror(number), "/x/y"))
    assert said in text and "/x/y" in text and users is users_fault
    assert "fault of ours" not in text and len(text.splitlines()) == 1


def test_a_refusal_is_found_inside_the_errors_of_libraries() -> None:
    class SafetensorError(Exception):
        pass

    SafetensorError.__module__ = "safetensors"
    found = os_cause(SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert found is not None and found.errno == 28
    found = os_cause(sqlite3.OperationalError("attempt to write a readonly database"))
    assert found is not None and found.errno == 30
    try:
        try:
            raise PermissionError(13, "Permission denied", "/p")
        except OSError as error:
            raise RuntimeError("wrapped") from error
    except RuntimeError as error:
        found = os_cause(error)
    assert found is not None and found.filename == "/p"
    assert os_cause(ValueError("he said [Errno 5]")) is None and os_cause(KeyError("x")) is None


def _path_without_git(tmp_path: Path) -> str:
    for name in ("bash", "sh", "env"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    return str(tmp_path)


def test_a_night_needs_no_git(done_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    search = _path_without_git(folder)
    done = done_toy.lensmith("nightly", "--once", LENSMITH_TRACKING="on", PATH=search)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    with closing(sqlite3.connect(done_toy.root / "mlruns" / "mlflow.db")) as store:
        assert list(store.execute("select value from tags where key = 'git_sha'")) == [("none",)]
    monkeypatch.setenv("PATH", search)
    assert _git_sha(done_toy.root) == "none"


def test_the_documented_server_answers_on_a_busy_machine(odd: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times as many busy processes as cores; `mlflow ui` with its four workers never came up beside those."""
    from tests.flows.test_nightly import free_port

    port = free_port()
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4 * len(os.sched_getaffinity(0)))
    ]
    shown = None
    try:
        shown = odd.start("mlflow", "--port", str(port), LENSMITH_TRACKING="on")
        lines: list[str] = []
        assert shown.stdout is not None
        for line in shown.stdout:
            lines.append(line)
            if "Ctrl-C" in line:
                break
        assert shown.poll() is None, shown.communicate()
        assert any("methods:" in line and "lensmith.kind" in line for line in lines)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as page:
            assert page.status == 200 and b"<html" in page.read(2000).lower()
        refused = odd.lensmith("mlflow", "--port", str(port), LENSMITH_TRACKING="on")
        assert refused.returncode == 2 and f"--port {port} cannot be used" in refused.stderr
    finally:
        for process in busy:
            process.kill()
            process.wait()
        if shown is not None:
            shown.terminate()
            assert shown.wait(600) == 130
    until(lambda: _free(port), 60)


def _free(port: int) -> bool:
    try:
        mlflow_server._check_free(port)
    except ValueError:
        return False
    return True


def test_without_a_store_there_is_nothing_to_look_at(toy: Toy) -> None:
    done = toy.lensmith("mlflow", LENSMITH_TRACKING="on")
    assert done.returncode == 2 and "lensmith run" in done.stderr and not (toy.root / "mlruns").exists()
