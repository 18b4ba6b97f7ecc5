"""Walk the graph: each node is one ``dvc --wait-for-lock repro --single-item NODE`` in a process of its own.

``--single-item`` is what lets arms run side by side: without it every process would also reproduce the shared parents
and want a write lock on their outputs. It is safe here because the parents have been reproduced before.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path

import psutil

from flows.environment import state_dir
from flows.graph import Graph
from flows.outcome import Outcome, cause_of, computation_of, state_of

__all__ = ["Children", "at_work", "repro", "walk"]

GRACE_S = 5.0
"""How long an interrupted child may take to end by itself."""


class Children:
    """The process groups at work, on disk too, so that a run that was killed leaves nothing running behind."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._folder = state_dir(root) / "children"
        self._folder.mkdir(exist_ok=True)
        # Worker threads add and remove while the main thread may be stopping everything.
        self._lock = threading.Lock()
        self._running: dict[int, subprocess.Popen[str]] = {}
        self.stopping = False

    def add(self, process: "subprocess.Popen[str]", node: str) -> None:
        with self._lock:
            self._running[process.pid] = process
            (self._folder / str(process.pid)).write_text(node, encoding="utf-8")
            if self.stopping:
                _signal_group(process.pid, signal.SIGKILL)

    def remove(self, process: "subprocess.Popen[str]") -> None:
        with self._lock:
            self._running.pop(process.pid, None)
            (self._folder / str(process.pid)).unlink(missing_ok=True)

    def stop(self) -> None:
        """Interrupt every group, and kill what does not end."""
        with self._lock:
            self.stopping = True
            running = dict(self._running)
        for pid in running:
            _signal_group(pid, signal.SIGINT)
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and any(process.poll() is None for process in running.values()):
            time.sleep(0.05)
        for pid in running:
            _signal_group(pid, signal.SIGKILL)

    def end_leftovers(self) -> int:
        """Kill what a killed run of this working copy left behind; returns how many processes that were."""
        groups = {int(path.name) for path in self._folder.iterdir() if path.name.isdigit()}
        ended = []
        if groups:
            for process in psutil.process_iter():
                with suppress(psutil.Error, ProcessLookupError, PermissionError):
                    if os.getpgid(process.pid) in groups and Path(process.cwd()) == self._root:
                        process.kill()
                        ended.append(process)
            # DVC holds the outputs of a process for busy until it is gone altogether.
            psutil.wait_procs(ended, timeout=GRACE_S)
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)
        return len(ended)


def at_work(root: Path) -> list[str]:
    """Nodes that a run is reproducing now, as it noted them."""
    folder = root / ".lensmith" / "children"
    return sorted(path.read_text(encoding="utf-8") for path in folder.iterdir()) if folder.is_dir() else []


def _signal_group(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):  # it may have ended by itself in the meantime
        os.killpg(pid, number)


def repro(
    node: str,
    root: Path,
    environment: Mapping[str, str],
    children: Children,
    on_line: Callable[[str, str], None] = lambda node, line: None,
) -> Outcome:
    """Reproduce one node whose parents are up to date. Its whole output goes to .lensmith/logs/<node>.log."""
    started = time.monotonic()
    logs = state_dir(root) / "logs"
    logs.mkdir(exist_ok=True)
    lines: list[str] = []
    with (logs / f"{node}.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", node],
            cwd=root,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        children.add(process, node)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                log.flush()
                lines.append(line.rstrip("\n"))
                on_line(node, lines[-1])
            code = process.wait()
        finally:
            children.remove(process)
    wall = time.monotonic() - started
    if children.stopping:
        return Outcome(node, "interrupted", wall)
    if code != 0:
        cause, users = cause_of(lines)
        return Outcome(node, "failed", wall, None, cause, users)
    return Outcome(node, state_of(lines), wall, computation_of(lines))


def walk(
    graph: Graph,
    todo: set[str],
    work: Callable[[str], Outcome],
    *,
    jobs: int = 2,
    stop: Callable[[], None] = lambda: None,
    on_start: Callable[[str], None] = lambda node: None,
    on_end: Callable[[Outcome], None] = lambda outcome: None,
    on_tick: Callable[[], None] = lambda: None,
) -> list[Outcome]:
    """Do ``todo`` in graph order, ``jobs`` at a time. A node that fails blocks what depends on it and nothing else.

    Args:
        graph: the whole graph.
        todo: nodes to reproduce; the others count as cached.
        work: reproduces one node; called in a worker thread.
        jobs: nodes at work at once.
        stop: ends the work under way; called where this thread is interrupted.
        on_start, on_end, on_tick: told in this thread; ``on_tick`` several times a second.
    """
    outcomes: dict[str, Outcome] = {}
    waiting = graph.nodes
    running: dict[Future[Outcome], str] = {}

    def close(outcome: Outcome) -> None:
        outcomes[outcome.node] = outcome
        on_end(outcome)

    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            while waiting or running:
                for node in list(waiting):
                    parents = [outcomes.get(parent) for parent in graph.parents[node]]
                    if any(parent is None for parent in parents):
                        continue
                    bad = [parent for parent in parents if parent and parent.state in {"failed", "blocked"}]
                    if bad:
                        waiting.remove(node)
                        close(Outcome(node, "blocked", cause=f"{bad[0].node} {bad[0].state}"))
                    elif node not in todo:
                        waiting.remove(node)
                        close(Outcome(node, "cached"))
                    elif len(running) < jobs:
                        waiting.remove(node)
                        on_start(node)
                        running[pool.submit(work, node)] = node
                done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    close(future.result())
                on_tick()
        except BaseException:
            stop()  # first, since leaving the pool waits for its threads
            raise
    return [outcomes[node] for node in graph.nodes]
