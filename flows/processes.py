"""The processes of a run's nodes: their groups are noted on disk, so that a killed run leaves
nothing running behind.

A note says which process it means by process id, start time and boot, since a process id alone is
used again.
"""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil

from flows.environment import state_dir

__all__ = ["ChildProcess", "ChildProcesses", "ProcessIdentity", "nodes_at_work"]

GRACE_S = 5.0
"""How long an interrupted child may take to end by itself."""


class ChildProcess(Protocol):
    """A process that leads a process group of its own."""

    pid: int

    def wait(self, timeout: float) -> int | None:
        """Its exit status, negative for a signal; None if it is still at work after ``timeout``
        seconds.
        """


@dataclass(frozen=True)
class ProcessIdentity:
    """Which process did what, beyond doubt."""

    node: str
    pid: int
    started: float
    """Seconds since the epoch, as psutil tells it."""
    boot: str
    host: str

    def is_alive(self) -> bool:
        """Whether this very process runs, here and since then."""
        if (self.boot, self.host) != (_boot(), socket.gethostname()):
            return False
        with suppress(psutil.Error):
            return bool(psutil.Process(self.pid).create_time() == self.started)
        return False

    def group(self) -> Iterator[psutil.Process]:
        """The processes of the group that it leads or led.

        While the group has a member, its number is given to no new process. So where the number now
        belongs to a process that started later, the group is gone, and that process is somebody
        else's.
        """
        if (self.boot, self.host) != (_boot(), socket.gethostname()):
            return
        if psutil.pid_exists(self.pid) and not self.is_alive():
            return
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError, PermissionError):
                if os.getpgid(process.pid) == self.pid and process.create_time() >= self.started:
                    yield process


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return str(int(psutil.boot_time()))


def _read_identities(folder: Path) -> Iterator[tuple[Path, ProcessIdentity | None]]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            yield path, ProcessIdentity(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            yield path, None  # half-written by a run that was killed


class ChildProcesses:
    """The process groups at work."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = state_dir(root) / "children"
        self._folder.mkdir(exist_ok=True)
        # Worker threads add and remove while the main thread may be stopping everything.
        self._lock = threading.Lock()
        self._running: dict[int, ChildProcess] = {}
        self.stopping = False

    def add(self, process: ChildProcess, node: str) -> None:
        with suppress(psutil.Error):  # it may have ended already
            started = psutil.Process(process.pid).create_time()
            identity = ProcessIdentity(node, process.pid, started, _boot(), socket.gethostname())
            self._note(process.pid).write_text(json.dumps(asdict(identity)), encoding="utf-8")
        with self._lock:
            self._running[process.pid] = process
            if self.stopping:
                _signal_group(process.pid, signal.SIGKILL)

    def remove(self, process: ChildProcess) -> None:
        with self._lock:
            self._running.pop(process.pid, None)
        self._note(process.pid).unlink(missing_ok=True)

    def _note(self, pid: int) -> Path:
        return self._folder / f"{socket.gethostname()}-{pid}.json"

    def stop(self) -> None:
        """Interrupt every group, and kill what does not end."""
        with self._lock:
            self.stopping = True
            running = dict(self._running)
        for pid in running:
            _signal_group(pid, signal.SIGINT)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(map(_group_exists, running)):
            time.sleep(0.05)
        for pid in running:
            _signal_group(pid, signal.SIGKILL)

    def end_leftovers(self) -> int:
        """Kill what a killed run of this working copy left behind; returns how many processes that
        were.
        """
        ended = []
        for path, identity in _read_identities(self._folder):
            if identity is not None:
                for process in identity.group():
                    with suppress(psutil.Error):
                        process.kill()
                        ended.append(process)
            path.unlink(missing_ok=True)
        # DVC takes the outputs of a process for busy until it is gone altogether.
        psutil.wait_procs(ended, timeout=GRACE_S)
        return len(ended)


def nodes_at_work(root: Path) -> list[str]:
    """Nodes that a run is reproducing now, as it noted them."""
    notes = _read_identities(root / ".lensmith" / "children")
    return sorted(identity.node for _, identity in notes if identity is not None)


def _group_exists(pid: int) -> bool:
    with suppress(ProcessLookupError):
        with suppress(PermissionError):
            os.killpg(pid, 0)
        return True
    return False


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it may have ended by itself in the meantime
        os.killpg(pid, number)
