"""Warm processes: one that has the libraries imported, and forks a child per command.

Importing torch, scikit-learn and transformer_lens takes 4 s of CPU time, in each of the graph's
nodes. So a run starts two processes, one with the stages' libraries and one with DVC, that import
and do nothing else: they open no file of the workspace, start no thread and never touch CUDA, so a
fork of them is like a process that has just started. They end with the run, however that ends, and
their forks with them.

The answer to a request (``stages.__main__.request_fork``) is the fork's process id, then its exit
status. A fork whose requester is gone is killed.
"""

import contextlib
import ctypes
import gc
import importlib
import marshal
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flows import lock_file
from stages.__main__ import WARM, load_stage, read_number, request_fork

__all__ = ["WarmChild", "WarmParents", "supported", "warm_parents"]

OFF, DVC_ONLY = "off", "dvc"
"""Values of ``LENSMITH_WARM``, for people: every process is started anew; or only the stages'
are.
"""

STAGE_LIBRARIES = (
    "ruamel.yaml",
    "jinja2",
    "psutil",
    "threadpoolctl",
    "pydantic",
    "rich.progress",
    "joblib",
    "numpy",
    "torch",
    "safetensors.torch",
    "scipy.stats",
    "scipy.io",
    "sklearn.linear_model",
    "sklearn.datasets",
    "sklearn.decomposition",
    "sklearn.dummy",
    "sklearn.ensemble",
    "sklearn.neighbors",
    "transformer_lens",
)
"""What most nodes import. Not sae_lens (0.5 s): two stages import it, and only for some
dictionaries.
"""

DVC_LIBRARIES = (
    "dvc.cli",
    "dvc.cli.parser",
    "dvc.commands.repro",
    "dvc.repo",
    "dvc.repo.reproduce",
    "dvc.stage.run",
    "dvc.stage.cache",
    "dvc.output",
    "dvc.dependency.param",
    "dvc.fs",
    "dvc.scm",
    "dvc.cachemgr",
    "dvc.dvcfile",
    "dvc.parsing",
    "dvc.utils.serialize",
    "dvc_data.hashfile.db.local",
    "dvc_data.hashfile.checkout",
    "dvc_data.hashfile.state",
    "dvc_data.index",
    "ruamel.yaml",
    "scmrepo.git",
    "voluptuous",
)

PR_SET_PDEATHSIG = 1


def supported() -> bool:
    """Whether this system has what a warm process needs (Linux), and nobody has switched it off."""
    return hasattr(os, "pidfd_open") and os.environ.get(WARM) != OFF


class WarmChild:
    """A fork at work, as the requester sees it; like ``subprocess.Popen`` in what a run needs of
    it.
    """

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self._connection = connection
        self._status: int | None = None

    def wait(self, timeout: float) -> int | None:
        """Its exit status, negative for a signal; None if it is still at work after ``timeout``
        seconds.
        """
        if self._status is None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._connection, selectors.EVENT_READ)
                if not selector.select(timeout):
                    return None
            with contextlib.suppress(OSError):
                self._status = read_number(self._connection)
            self._connection.close()
            if self._status is None:  # the warm process was killed, and its forks die with it
                self._status = -signal.SIGKILL
        return self._status


@dataclass(frozen=True)
class WarmParents:
    """Addresses of the warm processes of a run. Plain data, so that workers on the same machine can
    use them.
    """

    dvc: str
    stages: str
    """Empty: none, since few nodes are stale and the imports would take longer than they save."""

    def start_dvc(
        self, arguments: list[str], root: Path, environment: Mapping[str, str], output: int
    ) -> WarmChild | None:
        """Fork a DVC command in a process group of its own; None if the warm process does not
        answer.
        """
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        pid = 0
        try:
            with open(os.devnull, "rb") as nothing:  # noqa: PTH123
                connection.connect(self.dvc)
                files = [nothing.fileno(), output, output]
                argv = ["dvc", *arguments]
                pid = request_fork(connection, argv, str(root), dict(environment), 0, files)
        except OSError:
            pid = 0
        if not pid:
            connection.close()
            return None
        return WarmChild(connection, pid)


@contextmanager
def warm_parents(root: Path, environment: Mapping[str, str], *, stages: bool) -> Iterator[WarmParents | None]:
    """Start the warm processes, and end them with the block. None where they are not supported.

    Args:
        root: the working copy.
        environment: of the processes.
        stages: whether the stages' libraries are worth importing.
    """
    if not supported():
        yield None
        return
    stages = stages and os.environ.get(WARM) != DVC_ONLY
    # Not below root: the path of a socket may have 107 characters and no more.
    folder = Path(tempfile.mkdtemp(prefix="lensmith-warm-"))
    kinds = ("dvc", "stages") if stages else ("dvc",)
    read_end, write_end = os.pipe()
    processes = []
    # numpy and scikit-learn bring pyarrow, whose allocator would start a thread.
    environment = dict(environment) | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
    # Some libraries ask at import whether there is a GPU: ask the driver's library, which leaves no
    # CUDA context.
    environment |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    try:
        for kind in kinds:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
                # Bound here, so that requests can queue while the libraries are still being
                # imported.
                listener.bind(str(folder / kind))
                listener.listen(128)
                with (root / ".lensmith" / f"warm-{kind}.log").open("wb") as log:
                    command = [
                        sys.executable,
                        "-m",
                        "flows.warm",
                        kind,
                        str(listener.fileno()),
                        str(read_end),
                    ]
                    process = subprocess.Popen(
                        command,
                        cwd=root,
                        env=environment,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=[listener.fileno(), read_end],
                        process_group=0,  # not a session: a fork joins the group of its requester
                    )
                processes.append(process)
        os.close(read_end)
        yield WarmParents(str(folder / "dvc"), str(folder / "stages") if stages else "")
    finally:
        os.close(write_end)  # which ends them
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(folder, ignore_errors=True)


# Below: what runs inside a warm process.


@dataclass
class _Fork:
    pid: int
    pidfd: int
    connection: socket.socket | None
    own_group: bool

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.own_group:
                os.killpg(self.pid, signal.SIGKILL)
            else:
                os.kill(self.pid, signal.SIGKILL)


class _Request:
    """What a fork is to run."""

    def __init__(self, connection: socket.socket) -> None:
        header, self.files, _, _ = socket.recv_fds(connection, 8, 3)
        size, data = int.from_bytes(header, "little"), bytearray()
        while len(data) < size:
            part = connection.recv(size - len(data))
            if not part:
                raise EOFError("the requester is gone")
            data += part
        if len(self.files) != 3:
            raise EOFError("a request without its files")
        self.argv, self.cwd, self.environment, self.group = marshal.loads(bytes(data))

    def close(self) -> None:
        for file in self.files:
            os.close(file)

    def become(self) -> None:
        """Make this process, just forked, what it would be had it been started for the request."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(PermissionError, ProcessLookupError):  # a requester of another session
            os.setpgid(0, self.group)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for number, file in enumerate(self.files):
            os.dup2(file, number)
        self.close()
        os.chdir(self.cwd)
        os.environ.clear()
        os.environ.update(self.environment)
        sys.argv = list(self.argv)
        sys.path[0] = self.cwd
        random = sys.modules.get("numpy.random")
        if random is not None:
            random.seed()  # Python's own generator does so by itself after a fork


def _serve(listener: socket.socket, lifeline: int) -> _Request | None:
    """Fork for each request. Returns a request in the fork, and None in the parent when the run has
    ended.
    """
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, "listener")
    selector.register(lifeline, selectors.EVENT_READ, "lifeline")
    forks: dict[int, _Fork] = {}
    loaded = _code_on_disk()
    while True:
        for key, _ in selector.select():
            if key.data == "lifeline":
                for fork in forks.values():
                    fork.kill()
                for fork in forks.values():
                    with contextlib.suppress(ChildProcessError):
                        os.waitpid(fork.pid, 0)
                return None
            if key.data == "listener":
                connection, _ = listener.accept()
                connection.settimeout(10)  # a requester sends at once; one that does not must not stop the others
                try:
                    request = _Request(connection)
                except (OSError, EOFError):
                    connection.close()
                    continue
                if _code_on_disk() != loaded:
                    request.close()
                    with contextlib.suppress(OSError):
                        connection.sendall((0).to_bytes(8, "little", signed=True))
                    connection.close()
                    continue
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    listener.close()
                    os.close(lifeline)
                    connection.close()
                    for fork in forks.values():
                        os.close(fork.pidfd)
                        if fork.connection is not None:
                            fork.connection.close()
                    return request
                with contextlib.suppress(OSError):  # the fork does the same: whoever is first
                    os.setpgid(pid, request.group)
                request.close()
                fork = _Fork(pid, os.pidfd_open(pid), connection, own_group=not request.group)
                forks[pid] = fork
                selector.register(fork.pidfd, selectors.EVENT_READ, fork)
                selector.register(connection, selectors.EVENT_READ, fork)
                with contextlib.suppress(OSError):
                    connection.sendall(pid.to_bytes(8, "little", signed=True))
                continue
            fork = key.data
            if key.fd == fork.pidfd:
                _, status = os.waitpid(fork.pid, 0)
                code = os.waitstatus_to_exitcode(status)
                selector.unregister(fork.pidfd)
                os.close(fork.pidfd)
                del forks[fork.pid]
                if fork.connection is not None:
                    selector.unregister(fork.connection)
                    with contextlib.suppress(OSError):
                        fork.connection.sendall(code.to_bytes(8, "little", signed=True))
                    fork.connection.close()
            elif fork.connection is not None and fork.pid in forks:
                # Nothing is sent after a request, so this is its end: the requester was killed.
                selector.unregister(fork.connection)
                fork.connection.close()
                fork.connection = None
                fork.kill()


def _code_on_disk() -> tuple[tuple[str, int, int], ...]:
    """Size and time of the files of ours that are imported: where they change, a fork would run old
    code.
    """
    found = []
    for name, module in sorted(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] == "stages" and file:
            with contextlib.suppress(OSError):
                facts = os.stat(file)  # noqa: PTH116
                found.append((name, facts.st_mtime_ns, facts.st_size))
    return tuple(found)


def main() -> None:
    kind, listener, lifeline = sys.argv[1], socket.socket(fileno=int(sys.argv[2])), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import stages.__main__ as entry

    for library in STAGE_LIBRARIES if kind == "stages" else DVC_LIBRARIES:
        with contextlib.suppress(ImportError):  # the command that needs it says so
            importlib.import_module(library)
    if kind == "dvc":
        lock_file.install()
    gc.collect()
    gc.freeze()  # so that the forks' collectors leave the shared pages alone
    if kind == "dvc":
        gc.disable()  # its forks end within a second, and what they build has no circles worth looking for
    request = _serve(listener, lifeline)
    if request is None:
        return
    request.become()
    if kind == "dvc":
        from dvc.cli import main as dvc

        sys.exit(dvc(sys.argv[1:]))
    # Worker processes of the stage look here for the module that was started.
    sys.modules["__main__"] = entry
    sys.argv[0] = str(entry.__file__)
    from stages.errors import run_stage

    run_stage(load_stage)


if __name__ == "__main__":
    main()
