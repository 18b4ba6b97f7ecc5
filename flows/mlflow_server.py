"""MLflow's web server as this project starts it: one worker, nothing beside it.

``mlflow ui`` on its own starts four workers, each of which has five seconds to be up, and a runner of background jobs
that imports all of MLflow once more in several processes. On two busy cores the workers are killed and started anew
for ever and no page ever answers.
"""

import os
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import TextIO
from urllib.parse import quote

from flows.environment import child_environment, state_dir
from stages import tracking
from stages.base import paths
from stages.errors import UserError

__all__ = ["Server", "command", "pages", "serving"]

HOST = "127.0.0.1"
PATIENCE_S = 600.0
"""How long it may take to answer; a loaded machine needs a minute or two."""
ENVIRONMENT = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "1"}


def command(port: int) -> list[str]:
    """What is run; docs/mlflow.md names the same."""
    place = ["--backend-store-uri", tracking.uri(), "--host", HOST, "--port", str(port)]
    return [sys.executable, "-m", "mlflow", "server", *place, "--workers", "1"]


def pages(port: int) -> list[tuple[str, str]]:
    """(what it shows, its address): the methods side by side, the report, nights, everything."""
    base = f"http://{HOST}:{port}/#/experiments/{_ask(_EXPERIMENT) or '1'}/runs"

    def listed(wanted: str, mode: str) -> str:
        return f"{base}?searchFilter={quote(wanted)}&compareRunsMode={mode}"

    report = _ask(_REPORT)
    return [
        ("methods", listed(f"tags.`{tracking.CURRENT}` = 'yes' and tags.`lensmith.kind` = 'method'", "CHART")),
        *([("page", f"{base}/{report}/artifacts")] if report else []),
        ("nights", listed("tags.`lensmith.kind` = 'night'", "TABLE")),
        ("all runs", base),
    ]


_EXPERIMENT = f"select experiment_id from experiments where name = '{tracking.EXPERIMENT}'"
_REPORT = (
    "select a.run_uuid from tags a join tags b on a.run_uuid = b.run_uuid where a.key = 'lensmith.kind' and"
    f" a.value = 'report' and b.key = '{tracking.CURRENT}' and b.value = 'yes'"
)


def _ask(query: str) -> str:
    """The first answer, from the file where that is at hand: importing MLflow to ask would take seconds."""
    file = tracking.sqlite_file(tracking.uri())
    if file is None:
        return ""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as store:
        row = store.execute(query).fetchone()
        return str(row[0]) if row else ""
    return ""


class Server:
    """The server at work."""

    def __init__(self, port: int, process: "subprocess.Popen[str]", log: Path) -> None:
        self._port, self._process, self._log = port, process, log

    def wait_until_it_answers(self) -> None:
        """
        Raises:
            UserError: it ended, or did not answer in time; says what it printed last.
        """
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise UserError(f"MLflow ended before it answered: {self._last_words()}; all of it is in {self._log}")
            with suppress(OSError, urllib.error.URLError):
                if urllib.request.urlopen(f"http://{HOST}:{self._port}/health", timeout=5).status == 200:
                    return
            time.sleep(0.2)
        raise UserError(f"MLflow did not answer within {PATIENCE_S:.0f} s: {self._log} has what it printed")

    def _last_words(self) -> str:
        lines = [line.strip() for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines()]
        return next((line for line in reversed(lines) if line), "it printed nothing")[:300]

    def wait(self) -> None:
        """Until somebody ends it."""
        self._process.wait()

    def end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, SIGKILL)
            self._process.wait()


@contextmanager
def serving(port: int) -> Iterator[Server]:
    """Start it, and end it with the block.

    Raises:
        UserError: the port is taken.
    """
    from flows.scheduler import stoppable

    _check_free(port)
    root = paths.root()
    log = state_dir(root) / "logs" / "mlflow.log"
    log.parent.mkdir(exist_ok=True)
    with stoppable(), log.open("w", encoding="utf-8") as file:
        server = Server(port, _start(port, root, file), log)
        try:
            yield server
        finally:
            server.end()


def _start(port: int, root: Path, log: TextIO) -> "subprocess.Popen[str]":
    environment = child_environment(root) | ENVIRONMENT
    return subprocess.Popen(
        command(port), cwd=root, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
        start_new_session=True,
    )  # fmt: skip


def _check_free(port: int) -> None:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"--port {port} cannot be used ({error.strerror}): give another, such as {port + 1}"
            ) from error
