"""Reproduce one node: ``dvc --wait-for-lock repro --single-item NODE`` in a process of its own.

``--single-item`` is what lets arms run side by side: without it every process would also reproduce
the shared parents and want a write lock on their outputs. It is safe here because the parents have
been reproduced before.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from flows.environment import state_dir
from flows.outcome import Outcome, outcome_of, read_status
from flows.processes import ChildProcess, ChildProcesses
from flows.warm import OFF, WarmParents
from stages.__main__ import WARM
from stages.errors import STATUS

__all__ = ["LogTail", "log_file", "reproduce_node"]

TICK_S = 0.2
"""How often the log of a node at work is looked at."""


class ColdProcess:
    """A command in a new interpreter, in a process group of its own."""

    def __init__(self, command: list[str], root: Path, environment: Mapping[str, str], output: int) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        self.pid = self._process.pid

    def wait(self, timeout: float) -> int | None:
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


class LogTail:
    """The lines that are added to a file, as they come."""

    def __init__(self, path: Path) -> None:
        self._path, self._position, self._rest = path, 0, ""

    def read(self, *, final: bool = False) -> Iterator[str]:
        """Whole lines that are new; ``final``: also an unfinished one."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                data = file.read()
        except OSError:  # not there yet
            return
        self._position += len(data)
        *lines, self._rest = (self._rest + data.decode("utf-8", "replace")).split("\n")
        yield from lines
        if final and self._rest:
            yield self._rest
            self._rest = ""


def log_file(root: Path, node: str) -> Path:
    """The whole output of the last attempt at a node."""
    return root / ".lensmith" / "logs" / f"{node}.log"


def _status_file(root: Path, node: str) -> Path:
    return root / ".lensmith" / "status" / f"{node}.json"


def reproduce_node(
    node: str,
    root: Path,
    environment: Mapping[str, str],
    children: ChildProcesses,
    *,
    warm: WarmParents | None = None,
    on_line: Callable[[str], None] = lambda line: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Outcome:
    """Reproduce one node whose parents are up to date. Its whole output goes to
    .lensmith/logs/<node>.log.

    Args:
        node: the node.
        root: the working copy.
        environment: of the process.
        children: the processes at work; the node's is added while it is.
        warm: the processes to fork it from; None: a new interpreter.
        on_line: given each line that DVC and the stage print.
        cancelled: asked now and then; once it says yes, the processes at work are ended.
    """
    started = time.monotonic()
    state_dir(root)
    log, status = log_file(root, node), _status_file(root, node)
    for folder in (log.parent, status.parent):
        folder.mkdir(exist_ok=True)
    status.unlink(missing_ok=True)
    stages = warm.stages if warm and warm.stages else OFF
    environment = dict(environment) | {STATUS: str(status), WARM: stages}
    output: list[str] = []
    tail = LogTail(log)

    def follow(*, final: bool = False) -> None:
        for line in tail.read(final=final):
            output.append(line)
            on_line(line)

    with log.open("wb") as file:
        process = _start(node, root, environment, warm, file.fileno())
    children.add(process, node)
    try:
        while (code := process.wait(TICK_S)) is None:
            follow()
            if not children.stopping and cancelled():
                children.stop()
    finally:
        children.remove(process)
    follow(final=True)
    wall_s = time.monotonic() - started
    if children.stopping:
        return Outcome(node, "interrupted", wall_s)
    return outcome_of(node, wall_s, code, read_status(status), output)


def _start(
    node: str, root: Path, environment: Mapping[str, str], warm: WarmParents | None, output: int
) -> ChildProcess:
    arguments = ["--wait-for-lock", "repro", "--single-item", node]
    child = warm.start_dvc(arguments, root, environment, output) if warm else None
    return child or ColdProcess([sys.executable, "-m", "dvc", *arguments], root, environment, output)
