"""How a method's process tree is started, and how it ends: cold, by bubblewrap, or forked from a warm parent.

Both ways end in the same walls (``warm_parent`` says how a fork gets them). A cold start takes seconds of CPU, nearly
all of them for importing torch; a fork takes a hundredth of that.
"""

import atexit
import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from stages.errors import InfraError
from stages.sandbox.bubblewrap import command
from stages.sandbox.groups import Group, descendants
from stages.sandbox.limits import WARM
from stages.sandbox.seccomp import supported

__all__ = ["START_SECONDS", "Cold", "Tree", "forget_warm_parent", "forks", "start"]

START_SECONDS = 120.0
"""A process that has not imported its method by then is stopped."""
_CREDENTIALS = struct.Struct("3i")
FORK_SECONDS = 60.0


class Tree(Protocol):
    """A method's process and everything below it."""

    root: int
    """When it ends, everything in it ends."""
    code: int | None
    """How it ended; None: it has not."""
    used_s: float
    """CPU time of all of it, known once it has ended."""
    text: bool
    """Whether the method's text is sent to it; else it sees the file."""

    def kill(self) -> None:
        """End it, and wait for that."""

    def wait(self, patience: float) -> None:
        """Until it has ended by itself, for some seconds."""

    def broken(self) -> str:
        """What is wrong with the machinery that it hangs on; empty: nothing."""


def start(source: str, theirs: socket.socket, group: Group, *, trust: bool, cold: bool = False) -> Tree:
    """A process with the other end of a connection.

    Args:
        source: absolute path of a method's file, or RUNNER.
        theirs: the other end.
        group: told all processes before any code of the method runs.
        trust: no sandbox.
        cold: not from the warm parent.

    Raises:
        InfraError: no process could be started.
    """
    # What runs programs of methods is started cold: its memory is not laid out as that of the methods' processes.
    forked = not trust and not cold and source.endswith(".py") and Path(source).is_file()
    parent = _warm_parent() if forked else None
    tree: Tree = Cold(source, theirs, trust=trust) if parent is None else parent.fork(theirs)
    for pid in {tree.root, *descendants(tree.root)}:
        group.add(pid)
    return tree


class Cold:
    """See ``Tree``: a new interpreter, in the sandbox or with our rights."""

    text = False

    def __init__(self, source: str, theirs: socket.socket, *, trust: bool = False) -> None:
        self.code: int | None = None
        self.used_s = 0.0
        descriptor, read, write = theirs.fileno(), *os.pipe()
        passed: list[int] = []
        if trust:
            line = [sys.executable, "-I", "-m", "stages.sandbox.worker", source, str(descriptor)]
            environment = {"HOME": "/nonexistent", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PATH": os.defpath}
        else:
            line, passed = command(source, descriptor, write)
            environment = {}
        try:
            self._process = subprocess.Popen(
                line,
                pass_fds=[descriptor, *passed],
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=environment,
            )
        finally:
            for each in {*passed, write}:
                os.close(each)
        self.root = self._process.pid
        with os.fdopen(read, "rb") as told:
            if not trust:
                with contextlib.suppress(ValueError, KeyError):
                    self.root = int(json.loads(told.read())["child-pid"])

    def kill(self) -> None:
        # First the inner process: when it dies the kernel ends its whole namespace, and the outer one can account for
        # it.
        for kill, pid in ((os.kill, self.root), (os.killpg, self._process.pid)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                kill(pid, signal.SIGKILL)
            if kill is os.kill and pid != self._process.pid:
                self.wait(1.0)
        self.wait(None)

    def wait(self, patience: float | None) -> None:
        until = None if patience is None else time.monotonic() + patience
        while self.code is None:
            try:
                pid, status, used = os.wait4(self._process.pid, 0 if until is None else os.WNOHANG)
            except ChildProcessError:
                self.code = self._process.returncode = -signal.SIGKILL
                return
            if pid:
                self.code = self._process.returncode = os.waitstatus_to_exitcode(status)
                self.used_s = used.ru_utime + used.ru_stime
            elif until is not None and time.monotonic() > until:
                return
            else:
                time.sleep(0.005)

    def broken(self) -> str:
        return ""


class Forked:
    """See ``Tree``: a child of the warm parent."""

    text = True

    def __init__(self, parent: "WarmParent", status: socket.socket, root: int) -> None:
        self.root = root
        self.code: int | None = None
        self.used_s = 0.0
        self._parent, self._status = parent, status
        self._handle = os.pidfd_open(root)  # a number may be given to another process, a handle is of one

    def kill(self) -> None:
        if self.code is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            self.wait(5.0)
        if self.code is None:
            self.code = -signal.SIGKILL
        self._status.close()
        with contextlib.suppress(OSError):
            os.close(self._handle)

    def wait(self, patience: float) -> None:
        if self.code is not None or not select.select([self._status], [], [], patience)[0]:
            return
        try:
            told = json.loads(self._status.recv(1 << 12))
            self.code, self.used_s = int(told["code"]), float(told["cpu_s"])
        except (ValueError, OSError):  # the outer process is gone, and so is the parent
            self.code = -signal.SIGKILL

    def broken(self) -> str:
        return "" if self._parent.alive() else "the parent of the methods' processes has ended"


class WarmParent:
    """A sandbox that holds no method, from which methods' processes are forked.

    Raises:
        InfraError: it does not start here, or not as it should.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair()
        try:
            self._tree = Cold(WARM, theirs)
        finally:
            theirs.close()
        try:
            self._control.settimeout(START_SECONDS)
            if self._control.recv(1) != b"\0":
                raise InfraError("it ended")
            self._looked_at()
        except (OSError, InfraError) as error:
            self.close()
            raise InfraError(f"no warm parent of methods' processes starts here: {error}") from error

    def _looked_at(self) -> None:
        """That a fork of it can share nothing: memory that is written by one and seen by others, and other threads,
        which would hold locks for ever."""
        for pid in descendants(self._tree.root):
            status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            if "\nThreads:\t1\n" not in status:
                raise InfraError("it has several threads")
            maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
            shared = [line for line in maps if line.split()[1][1::2] == "ws"]
            if shared:
                raise InfraError(f"it has shared memory: {shared[0]}")

    def alive(self) -> bool:
        return not select.select([self._control], [], [], 0)[0]  # it has nothing to say: what comes is its end

    def fork(self, theirs: socket.socket) -> Tree:
        """A process in namespaces of its own, which has the other end of a connection and waits for its method.

        Raises:
            InfraError: it could not be made.
        """
        ours, status = socket.socketpair()
        try:
            # The kernel says who wrote: the number that our side knows it by, whatever it is called in there.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.settimeout(FORK_SECONDS)
            try:
                socket.send_fds(self._control, [b"\0"], [theirs.fileno(), status.fileno()])
            finally:
                status.close()
            said, about, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(_CREDENTIALS.size))
            if said != b"\n":
                raise InfraError("a fork of the warm parent did not come into its namespaces")
            (credentials,) = (data for _, kind, data in about if kind == socket.SCM_CREDENTIALS)
            return Forked(self, ours, _CREDENTIALS.unpack(credentials)[0])
        except (OSError, ValueError, InfraError) as error:
            ours.close()
            raise InfraError(f"no method's process could be forked: {error}") from error

    def close(self) -> None:
        self._control.close()
        self._tree.kill()


_parents: dict[int, WarmParent | None] = {}
"""Of this process: a fork of it makes its own."""


def _warm_parent() -> WarmParent | None:
    """The warm parent of this process; None where there can be none, so that every start is a cold one."""
    me = os.getpid()
    found = _parents.get(me)
    if found is not None and not found.alive():
        forget_warm_parent()
    if me not in _parents:
        _parents.clear()  # those of the process that this one is a fork of, if it is one
        atexit.register(forget_warm_parent)
        try:
            # Without a filter of system calls a method could enter namespaces, mount and trace.
            _parents[me] = WarmParent() if supported() else None
        except InfraError:
            _parents[me] = None
    return _parents[me]


def forks() -> float:
    """CPU seconds that the warm parent of this process has taken; 0: there is none."""
    found = _parents.get(os.getpid())
    if found is None or not found.alive():
        return 0.0
    pid = descendants(found._tree.root)[0]
    return time.clock_gettime((~pid << 3) | 2)


def forget_warm_parent() -> None:
    """End it; the next method starts a new one."""
    found = _parents.pop(os.getpid(), None)
    if found is not None:
        with contextlib.suppress(OSError):
            found.close()
