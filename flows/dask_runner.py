"""`--runner dask`: nodes run on Dask workers, which share the working copy as a folder.

A worker runs what a thread of a run would: ``dvc repro`` of one node, in a process group of its
own. The log of the node lies in the shared folder, so the run shows its lines from there.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from flows.nodes import TICK_S, LogTail, log_file, reproduce_node
from flows.outcome import Outcome
from flows.processes import ChildProcesses
from flows.warm import WarmParents
from stages.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DaskRunner", "dask_client"]

CONNECT_S = 10
"""How long a scheduler may take to answer."""
WORKERLESS_S = 60
"""How long a node waits where there is no worker at all: one that died may be started again."""


@contextmanager
def dask_client(scheduler: str, jobs: int) -> "Iterator[Client]":
    """A client of the scheduler at an address, or of a cluster of ``jobs`` processes on this
    machine.

    Raises:
        UserError: Dask is not installed, or no scheduler answers.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UserError(
            f"--runner dask needs the extra 'dask' ({error}): install it with"
            " `pip install -c constraints.txt -e '.[dask]'`, or use --runner threads"
        ) from error
    # A worker that is busy in a node answers late, and must not be taken for dead; a node that
    # failed fails again.
    settings = {
        "distributed.comm.timeouts.connect": f"{CONNECT_S}s",
        "distributed.scheduler.allowed-failures": 0,
        "distributed.worker.daemon": False,  # stages start processes of their own
        "distributed.worker.profile.enabled": False,
        "distributed.scheduler.worker-ttl": None,
        # What goes wrong is said by the node's outcome; a worker that is told to end while it reports
        # calls that an error.
        "logging": {"distributed": "critical"},
    }
    with dask.config.set(settings):
        if not scheduler:
            with (
                LocalCluster(
                    n_workers=jobs,
                    threads_per_worker=1,
                    processes=True,
                    dashboard_address=None,
                    memory_limit=0,
                    silence_logs="CRITICAL",
                ) as cluster,
                Client(cluster) as client,
            ):
                yield client
            return
        try:
            client = Client(scheduler, timeout=CONNECT_S)
        except (OSError, ValueError) as error:
            raise UserError(
                f"no Dask scheduler answers at --scheduler {scheduler} ({type(error).__name__}):"
                " start one with"
                " `dask scheduler`, and a worker per machine with `dask worker ADDRESS`, or"
                " correct the address"
            ) from error
        with client:
            if not client.scheduler_info()["workers"]:
                raise UserError(
                    f"the Dask scheduler at {scheduler} has no worker: start one on each machine"
                    " with"
                    f" `dask worker {scheduler} --nthreads 1`, in a folder they share"
                )
            yield client


class DaskRunner:
    """Reproduces nodes on the workers of a cluster."""

    def __init__(self, client: "Client", root: Path, environment: Mapping[str, str], warm: WarmParents | None) -> None:
        self._client, self._root, self._warm = client, root, warm
        self._environment = dict(environment)
        self._run = uuid4().hex
        self._stopping = False

    def reproduce(self, node: str, on_line: Callable[[str], None]) -> Outcome:
        from distributed import TimeoutError as NotYet
        from distributed.scheduler import KilledWorker

        log_file(self._root, node).unlink(missing_ok=True)
        tail = LogTail(log_file(self._root, node))
        future = self._client.submit(
            _reproduce_here,
            node,
            str(self._root),
            self._environment,
            (self._warm, socket.gethostname()),
            self._run,
            key=f"{node}-{self._run}",
            pure=False,
        )
        had_workers = time.monotonic()
        while True:
            try:
                outcome: Outcome = future.result(timeout=TICK_S)
            except (NotYet, TimeoutError):
                for line in tail.read():
                    on_line(line)
                if self._has_workers():
                    had_workers = time.monotonic()
                elif time.monotonic() - had_workers > WORKERLESS_S:
                    future.cancel()
                    cause = "no Dask worker is left to run it: start some with `dask worker`, then run again"
                    return Outcome(node, "failed", cause=cause)
                continue
            except KilledWorker:
                cause = "its Dask worker died, most likely for memory: give it more, or use fewer"
                return Outcome(node, "failed", cause=cause)
            except Exception as error:  # whatever Dask or the network did, the run goes on
                if self._stopping:
                    return Outcome(node, "interrupted")
                cause = f"its Dask worker could not run it ({type(error).__name__}: {error})"
                return Outcome(node, "failed", cause=f"{cause}; look at the worker's output, then run again")
            for line in tail.read(final=True):
                on_line(line)
            return outcome

    def _has_workers(self) -> bool:
        try:
            return bool(self._client.nthreads())
        except Exception:  # what is wrong then is said by the result that is waited for
            return True

    def stop(self) -> None:
        """Interrupt the nodes at work on all workers."""
        self._stopping = True
        with suppress(Exception):  # whatever the cluster's state is, the run ends
            self._client.run(_stop_here, self._run)


# Below: what runs in a worker.

_AT_WORK: dict[str, ChildProcesses] = {}
"""Run -> its processes at work on this worker."""

OURS = ("LENSMITH_", "RUN_PARENT_ID", "DVC_", "MLFLOW_", "HF_", "PYTHON", "DO_NOT_TRACK")
THREADS = ("OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_")
"""How the variables begin that a worker on another machine takes from the run; PATH and the like
are its own.
"""


def _reproduce_here(
    node: str,
    root: str,
    environment: dict[str, str],
    warm_of: tuple[WarmParents | None, str],
    run: str,
) -> Outcome:
    from distributed import get_worker
    from distributed.worker import thread_state

    folder = Path(root)
    if not (folder / "dvc.yaml").is_file():
        cause = (
            f"{socket.gethostname()} has no {root}: mount the working copy there under the same"
            " path,"
            " so that all workers share it"
        )
        return Outcome(node, "failed", cause=cause, users_fault=True)
    warm, host = warm_of
    if host != socket.gethostname():
        warm = None
        ours = {name: value for name, value in environment.items() if name.startswith(OURS + THREADS)}
        environment = dict(os.environ) | ours
    children = _AT_WORK.setdefault(run, ChildProcesses(folder))
    worker, key = get_worker(), thread_state.key

    def cancelled() -> bool:
        task = worker.state.tasks.get(key)
        return task is None or task.state in {"cancelled", "released", "forgotten"}

    return reproduce_node(node, folder, environment, children, warm=warm, cancelled=cancelled)


def _stop_here(run: str) -> None:
    children = _AT_WORK.get(run)
    if children is not None:
        children.stop()
